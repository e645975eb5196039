"""`check_trainable` and `assert_trainable`: does this head learn from these features?"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..checks.assertions import enforce
from ..checks.data.metric_improves import check_metric_improves
from ..checks.loss.loss_decreases import LEAST_DROP, check_loss_decreases
from ..core import arguments
from ..core.hypothesis_target import toward_border
from ..core.recipe import Recipe
from ..core.trace import Trace
from ..core.verdict import Verdict
from ..training.finetune import finetune
from .features import Features, features_of

NAME = "trainable"
#: Short enough for a hundred examples in seconds, long enough for the sign test on every step's own batch.
STEPS, BATCH = 30, 32
#: Probes of the training: what `loss_decreases` and `metric_improves` judge.
PROBES = ("loss", "descent", "metrics")
#: Standard deviations above the mean that one value in a hundred of a normal distribution exceeds.
ONE_IN_A_HUNDRED = 2.33


def check_trainable(
    head: nn.Module,
    features: Features | tuple[Any, Any],
    *,
    lr: float = 1e-3,
    steps: int = STEPS,
    batch_size: int = BATCH,
    seed: int = 0,
    **recipe: Any,
) -> Verdict:
    """A head learns from the features of a frozen base, as judged by `check_loss_decreases` and `check_metric_improves`.

    The head is trained for ``steps`` steps on the training rows and restored bit for bit; loss and metrics are measured with dropout off,
    metrics on the held-out rows if there are any. Fails if either check fails, is inconclusive if either is (and neither fails). The
    verdict's margin says by how many standard errors the metric rose above its limit; a search under ``@given`` follows it to the border.
    Where the untrained head is nearly perfect by chance, so that no metric can rise, the loss alone decides.

    :param head: takes ``[rows, width]`` and gives logits.
    :param features: `Features`, or ``(x [rows, width], y [rows])``.
    :param lr: peak learning rate.  :param batch_size: rows a step, drawn without replacement until all were seen.
    :param seed: of the order of rows and of dropout.  :param recipe: further fields of `Recipe`, such as ``optimizer="sgd"``.
    :raises ValueError, TypeError: integer features, one class only, a head that does not take the features, fields that `Recipe` refuses.

    >>> import torch
    >>> from torch import nn
    >>> from pytest_ftcheck import InitScheme, check_trainable
    >>> x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    >>> head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> check_trainable(InitScheme.kaiming_normal().apply(head), (x, (x[:, 0] > 0).long()), lr=1e-2).status
    'pass'
    >>> check_trainable(InitScheme.zeros().apply(head), (x, (x[:, 0] > 0).long()), lr=1e-2).ok  # only the last bias moves
    False
    """
    return _judge(train(head, features, lr=lr, steps=steps, batch_size=batch_size, seed=seed, **recipe))


def assert_trainable(
    head: nn.Module,
    features: Features | tuple[Any, Any],
    *,
    lr: float = 1e-3,
    steps: int = STEPS,
    batch_size: int = BATCH,
    seed: int = 0,
    **recipe: Any,
) -> Verdict:
    """Raise `CheckFailed` unless the head learns from the features; arguments as `check_trainable`.

    >>> import torch
    >>> from torch import nn
    >>> from pytest_ftcheck import assert_trainable
    >>> x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    >>> _ = torch.manual_seed(0)
    >>> assert_trainable(nn.Linear(16, 2), (x, (x[:, 0] > 0).long()), lr=1e-2).ok
    True
    """
    __tracebackhide__ = True
    trace = train(head, features, lr=lr, steps=steps, batch_size=batch_size, seed=seed, **recipe)
    verdict = _judge(trace)
    if verdict.margin is not None and _starts_above_prior(trace):
        # two borders, initial weights too small and too large: each is searched by itself, or the nearer one would hide the other
        toward_border(verdict.margin, label=f"{NAME}, from a loss above the class-prior baseline")
    return enforce(verdict, trace)


def _starts_above_prior(trace: Trace) -> bool:
    """The head starts above the class-prior loss, by more than the least drop that counts."""
    probe = trace.probe_loss
    entropy = None if probe is None else probe.prior_entropy
    return probe is not None and entropy is not None and probe.points[0].loss > (1 + LEAST_DROP) * entropy


def train(
    head: nn.Module,
    features: Features | tuple[Any, Any],
    *,
    lr: float,
    steps: int,
    batch_size: int,
    seed: int,
    **recipe: Any,
) -> Trace:
    """The fine-tune behind `check_trainable`."""
    if not isinstance(head, torch.nn.Module):
        raise TypeError(f"head is a {type(head).__name__}: expected a torch.nn.Module that takes features")
    arguments.whole("batch_size", batch_size, least=1, most=arguments.MOST_ROWS)
    if given := sorted({"eval_batches", "head", "batches", "model"} & set(recipe)):
        raise TypeError(f"{given[0]}: not an argument of this check; it trains on the features, and judges by them")
    Recipe(lr=lr, steps=steps, seed=seed)  # refuses bad values before rows are drawn
    features = features_of(features)
    # a head in bfloat16 takes no float32
    dtype = next((p.dtype for p in head.parameters() if p.is_floating_point()), features.x.dtype)
    batches = drawn(features.x.to(dtype), features.y, batch_size, steps, seed)
    held = None
    if features.held_x is not None and features.held_y is not None:
        held = list(zip(torch.split(features.held_x.to(dtype), 256), torch.split(features.held_y, 256), strict=True))
    names = tuple(dict.fromkeys(n.split(".")[0] for n, _ in head.named_parameters()))
    trace: Trace = finetune(
        head,
        batches,
        head=names,
        lr=lr,
        steps=steps,
        seed=seed,
        eval_batches=held,
        probes=recipe.pop("probes", PROBES),
        **recipe,
    )
    return trace


def drawn(x: Any, y: Any, size: int, steps: int, seed: int) -> list[tuple[Any, Any]]:
    """As many batches as there are steps, rows in random order, none twice before all were seen."""
    size = min(size, len(x))
    g = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [torch.randperm(len(x), generator=g, device="cpu") for _ in range(-(-max(1, steps) * size // len(x)))]
    ).to(x.device)
    return [(x[i], y[i]) for i in torch.split(order[: max(1, steps) * size], size)]


def _judge(trace: Trace) -> Verdict:
    loss, metric = check_loss_decreases(trace), check_metric_improves(trace)
    notes: tuple[str, ...] = ()
    judges = [loss, metric]
    if metric.status == "inconclusive" and loss.status == "pass" and _cannot_improve(trace):
        judges = [loss]
        notes = ("the untrained head is nearly perfect by chance: the loss alone decides",)
    deciding = next((v for status in ("fail", "inconclusive") for v in judges if v.status == status), loss)
    other = metric if deciding is loss else loss
    return replace(
        deciding,
        check=NAME,
        margin=_margin(trace, loss, deciding),
        notes=(*deciding.notes, *notes, f"{other.check} ({other.status}): {other.headline}"),
    )


def _cannot_improve(trace: Trace) -> bool:
    """Whether the metric starts within two standard errors of 1: no run could improve it measurably."""
    metric = trace.metrics[0] if trace.metrics else None
    return metric is not None and 1 - metric.first <= 2 * _error(metric.rows)


def _error(rows: int) -> float:
    """The largest standard error that a share of so many rows can have."""
    return 0.5 / math.sqrt(max(1, rows))


def _margin(trace: Trace, loss: Verdict, deciding: Verdict) -> float | None:
    """Distance from the border; 0 is on it.

    Of the metric, in standard errors: how far it rose above its start and above the majority baseline, and above what one in a hundred
    label permutations reaches; the smallest of the three. Where the loss does not pass: what it lacks of the least drop, as a share.
    """
    parts = []
    if trace.metrics:
        m = trace.metrics[0]
        floor = m.first if m.baseline is None else max(m.first, m.baseline)
        parts.append((m.last - floor) / _error(m.rows))
        if m.deviations is not None:
            parts.append(m.deviations - ONE_IN_A_HUNDRED)
    drop = _drop(trace)
    if drop is not None and (not parts or loss.status != "pass"):
        parts.append(drop / LEAST_DROP - 1)
    known = [part for part in parts if math.isfinite(part)]
    if not known:
        return None
    # the checks know more than these numbers: they decide the sign
    return max(0.0, min(known)) if deciding.ok else min(0.0, *known)


def _drop(trace: Trace) -> float | None:
    """Relative drop of the probe's loss."""
    probe = trace.probe_loss
    if probe is None or len(probe.points) < 2 or not probe.points[0].loss:
        return None
    return (probe.points[0].loss - probe.points[-1].loss) / abs(probe.points[0].loss)
