"""The numbers of a run that a baseline records, each with its scale and the direction in which it gets worse."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ...core.observations import Tensor
from ...core.trace import Trace

#: Wall-clock time: compared on the same kind of machine only, by a ratio of its own.
SECONDS = "seconds.step"
#: The first and the last fifth of the training losses are averaged.
BLOCK = 5
#: Fewer values do not allow an estimate of their noise.
LEAST = 10


@dataclass(frozen=True)
class Noise:
    """The spread of a number, estimated from one run alone."""

    #: Standard deviation, on the measure's scale, and the degrees of freedom behind it.
    sd: float
    df: float


@dataclass(frozen=True)
class Measure:
    """One number of a run."""

    value: float
    #: ``log``: spread is compared on the logarithm, for values that are positive and differ by factors.
    scale: Literal["linear", "log"]
    worse: Literal["lower", "higher", "either"]
    #: Number of rows that it is a share of; 0: it is no share.
    rows: int = 0
    #: None: it cannot be estimated from one run.
    noise: Noise | None = None


def measures(trace: Trace) -> dict[str, Measure]:
    """All measures of the run, by name.

    ``loss.drop``: first minus last loss on the probe's fixed rows, dropout off (nats for cross-entropies). ``training_loss.drop``: mean of
    the first fifth of the training losses minus mean of the last. ``metric.NAME``: at the end. ``motion.GROUP``: median over the group's
    trainable tensors of (rms displacement by gradients / summed learning rates); groups are the head and, of the base, embeddings,
    matrices, norms, biases and adapters. ``gradient.PART``: median over the steps of the L2 norm of the part's gradients, as the optimizer
    saw them. ``seconds.step``: wall-clock seconds of training, a step.

    >>> from pytest_ftcheck import example_trace
    >>> found = measures(example_trace())
    >>> found["motion.head"].value, found["motion.head"].scale
    (0.25, 'log')
    """
    return dict(_all(trace))


def _all(trace: Trace) -> Iterator[tuple[str, Measure]]:
    if trace.probe_loss is not None and len(trace.probe_loss.points) > 1:
        points = trace.probe_loss.points
        yield "loss.drop", Measure(points[0].loss - points[-1].loss, "linear", "lower")
    if len(trace.losses) > 1:
        yield "training_loss.drop", _drop(trace.losses)
    for metric in trace.metrics:
        if metric.lower_is_better:  # the perplexity of a language model is its loss once more
            continue
        share = metric.rows if 0 <= metric.last <= 1 else 0
        noise = Noise(binomial_sd(metric.last, share, 1), max(share - 1, 1)) if share else None
        yield f"metric.{metric.name}", Measure(metric.last, "linear", "lower", share, noise)
    groups: dict[str, list[float]] = {}
    for tensor in trace.tensors:
        if tensor.trainable and (used := tensor.budget_used) is not None:
            groups.setdefault(_group(tensor), []).append(used)
    for name, used_budgets in sorted(groups.items()):
        yield f"motion.{name}", Measure(_median(used_budgets), "log", "either")
    for part in ("head", "base"):
        norms = _norms([t for t in trace.tensors if (t.part == "head") == (part == "head") and t.trainable])
        if norms:
            yield f"gradient.{part}", Measure(_median(norms), "log", "either", noise=_median_noise(norms))
    if trace.steps and trace.training_seconds > 0:
        yield SECONDS, Measure(trace.training_seconds / len(trace.steps), "log", "higher")


def _group(tensor: Tensor) -> str:
    return "head" if tensor.part == "head" else f"base.{tensor.role}"


def _median(values: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else statistics.median(values)


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    """L2 norm of all their gradients together, at each recorded step at which one of them had a gradient."""
    series = [t.grad_norms for t in tensors if t.grad_norms]
    found = []
    for step in zip(*series, strict=False):
        present = [norm for norm in step if norm != -1]
        if present:
            found.append(math.hypot(*present))
    return found


def _drop(losses: Sequence[float]) -> Measure:
    size = max(1, len(losses) // BLOCK)
    value = sum(losses[:size]) / size - sum(losses[-size:]) / size
    found = _noise_around_trend(losses)
    noise = Noise(found.sd * math.sqrt(2 / size), found.df) if found else None
    return Measure(value, "linear", "lower", noise=noise)


def _median_noise(norms: Sequence[float]) -> Noise | None:
    """Noise of the median's logarithm: the median's standard error is sqrt(pi / 2) times the mean's (for normal values, many of them)."""
    if min(norms) <= 0:
        return None
    found = _noise_around_trend([math.log(n) for n in norms])
    return Noise(found.sd * math.sqrt(math.pi / 2 / len(norms)), found.df) if found else None


def _noise_around_trend(values: Sequence[float]) -> Noise | None:
    """Noise around a trend, from the mean square successive difference (von Neumann, Kent, Bellinson and Hart 1941), with the degrees
    of freedom of a chi-square that has its variance."""
    if len(values) < LEAST or not all(map(math.isfinite, values)):
        return None
    n = len(values)
    squares = sum((b - a) ** 2 for a, b in itertools.pairwise(values))
    return Noise(math.sqrt(squares / (2 * (n - 1))), 2 * (n - 1) ** 2 / (3 * n - 4))


def binomial_sd(share: float, rows: int, runs: int) -> float:
    """Standard deviation of a share of so many rows, as if each row were right by chance. The share is Jeffreys' estimate over all runs:
    100 % of 64 rows leave room for the next run to miss one.

    >>> round(binomial_sd(1.0, 64, 5), 4)
    0.0049
    """
    estimate = (share * rows * runs + 0.5) / (rows * runs + 1)
    return math.sqrt(estimate * (1 - estimate) / rows)
