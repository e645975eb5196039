"""`sweep`: which initial weights learn at which learning rate?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..core import arguments
from ..core.arguments import as_positive, distinct, sequence
from ..core.formatting import as_given
from ..core.init_scheme import InitScheme
from ..core.recipe import Recipe
from ..instruments.task_readers.registered import prior_entropy
from ..seeds.executors import ExecutorOrFactory
from .engine import seeds_of_a_task, train_heads
from .extract import module_of
from .features import Features, features_of
from .jobs import Job, Plan, Run, judged_rows
from .judge_heads import deciding_headline, judge, traces
from .result import Cell, SweepResult, mark_of
from .sweep_parts import sweep_parts

#: Standard deviations and learning rates of a sweep that names none: three decades around the founding question's 0.02, and from
#: a rate at which nothing moves in 30 steps to one at which everything diverges.
STDS = tuple(float(f"{10 ** (-3 + 3 * i / 11):.2g}") for i in range(12))
LRS = tuple(float(f"{10 ** (-6 + i / 2):.2g}") for i in range(13))
SEEDS = 3


def sweep(
    head: nn.Module | Callable[[], nn.Module],
    features: Features | tuple[Any, Any],
    *,
    schemes: Sequence[InitScheme | float] | None = None,
    lrs: Sequence[float] | None = None,
    seeds: int | Sequence[int] = SEEDS,
    recipe: Recipe | None = None,
    batch_size: int = 32,
    momentum: float = 0.0,
    mark: tuple[float, float] | Recipe | None = None,
    vectorise: bool = True,
    executor: ExecutorOrFactory | None = None,
    **recipe_fields: Any,
) -> SweepResult:
    """Train a copy of the head for every scheme, learning rate and seed, all at once, and judge each: does it learn?

    A head that is a stack of linear layers, activations, Dropout and LayerNorm is trained in groups whose weights are stacked; any other
    one by one, and ``result.engine`` says why. The results are the same up to rounding and up to dropout masks, which are drawn
    from separate generators. The head, its weights, and torch's random states and switches stay as they are.

    A cell is trainable in these steps (``yes``) if `loss_decreases` and `metric_improves` pass on its numbers; ``no`` if one of them
    fails; ``unclear`` otherwise. Their limits are documented there.

    :param head: the head, ``[rows, width] -> [rows, outputs]``, or a function that makes one; never changed.
    :param features: what enters it, by :func:`extract_features` or ``Features.of``; or ``(x [rows, width], y [rows])``.
    :param schemes: initialisations; a number stands for ``InitScheme.normal(std=number)``. None: twelve stds from 0.001 to 1.
    :param lrs: peak learning rates. None: thirteen from 1e-6 to 1.
    :param seeds: how many, or which; each seeds initial weights, order of rows, and dropout.
    :param recipe: optimizer, steps (30 if there is no recipe), schedule, weight decay, clipping.
    :param recipe_fields: single fields of it.
    :param batch_size: rows a step.  :param momentum: of ``sgd``.
    :param mark: your own ``(std, lr)``, or recipe, to be marked on the map.
    :param vectorise: False: one by one, by torch's own modules and optimizers.
    :param executor: where it is computed, a task a seed (several where a seed has less than four heads): an object with
        ``submit(fn, *args)``, or a function that makes one, as in :func:`finetune`. The cells are the same, bit for bit; of heads that are
        trained one by one, those of a sweep here on one thread.
    :raises TypeError, ValueError: an argument that is none of these, or a head that does not take the features; before any training.

    >>> import torch
    >>> from pytest_ftcheck.initialization.heads import Head
    >>> x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    >>> features = Features.of(x, (x[:, 0] > 0).long(), held_out=0.25)
    >>> result = sweep(Head(16, 2, widths=[16]), features, schemes=[0.02, 0.2], lrs=[1e-5, 1e-2], seeds=1)
    >>> result.engine, result.trainable
    ('vectorised', [[0.0, 1.0], [0.0, 1.0]])
    """
    began = time.perf_counter()
    features = features_of(features)
    arguments.flag("vectorise", vectorise)
    made = _head(head)
    chosen, stds = _schemes(schemes)
    rates = _rates(lrs)
    numbers = _seeds(seeds)
    plan = _plan(recipe, recipe_fields, batch_size, momentum)
    marked = mark_of(mark)
    jobs = [Job(s, lr, seed) for s in chosen for lr in rates for seed in numbers]
    if executor is None:
        runs, engine = train_heads(made, features, jobs, plan, vectorise=vectorise)
        cells, metric, baseline = _judge_cells(runs, jobs, features, plan)
    else:
        parts = seeds_of_a_task(made, features, numbers, len(chosen) * len(rates), plan, vectorise=vectorise)
        given = {"head": made, "features": features, "schemes": chosen, "lrs": rates, "recipe": plan.recipe}
        given |= {"batch_size": batch_size, "momentum": momentum, "vectorise": vectorise}
        found = sweep_parts(sweep, executor, given, parts)
        of_job = {(c.scheme, c.lr, c.seed): c for part in found for c in part.cells}
        cells = tuple(of_job[repr(j.scheme), j.lr, j.seed] for j in jobs)
        engine, metric, baseline = found[0].engine, found[0].metric, found[0].baseline
    _, y, source = features.judged
    y = judged_rows(y, y)[1]
    return SweepResult(
        cells=cells,
        schemes=tuple(map(repr, chosen)),
        names=tuple(s.name for s in chosen),
        stds=stds,
        lrs=rates,
        seeds=numbers,
        head=_describe(made),
        source=features.source,
        rows=len(features.x),
        judged=len(y),
        judged_by=source,
        metric=metric,
        baseline=baseline,
        blind_loss=blind_loss(features),
        recipe=plan.recipe,
        batch_size=min(plan.batch_size, len(features.x)),
        momentum=plan.momentum,
        engine=engine,
        seconds=time.perf_counter() - began,
        mark=marked,
    )


def _judge_cells(
    runs: Sequence[Run], jobs: Sequence[Job], features: Features, plan: Plan
) -> tuple[tuple[Cell, ...], str, float | None]:
    cells: list[Cell] = []
    baseline_loss = blind_loss(features)
    found = traces(runs, jobs, features, plan)
    for run, job, trace in zip(runs, jobs, found, strict=True):
        verdicts = judge(trace)
        metric = trace.metrics[0]
        scale = abs(run.first)
        cells.append(
            Cell(
                scheme=repr(job.scheme),
                lr=job.lr,
                seed=job.seed,
                learnt=(baseline_loss - run.last) / baseline_loss if math.isfinite(run.last) else math.nan,
                loss_first=run.first,
                loss_last=run.last,
                drop=(run.first - run.last) / scale if scale > 0 and math.isfinite(run.last) else math.nan,
                metric_first=metric.first,
                metric_last=metric.last,
                p_value=1.0 if metric.p_value is None else metric.p_value,
                grad_norm=run.grad_norm,
                std_first=run.std_first,
                std_last=run.std_last,
                moved_first=run.moved_first,
                moved_last=run.moved_last,
                dead=run.dead,
                finite=run.finite,
                trainable=verdicts[0] if run.finite else "no",
                why=deciding_headline(verdicts),
            )
        )
    return tuple(cells), found[0].metrics[0].name, found[0].metrics[0].baseline


def blind_loss(features: Features) -> float:
    """The loss of a class-prior prediction on the judged rows: the labels' entropy; for numbers, their variance.

    >>> round(blind_loss(Features.of([[1.0], [2.0]], [0, 1])), 4)
    0.6931
    """
    _, y, _ = features.judged
    y = judged_rows(y, y)[1]
    entropy = prior_entropy(features.task, [y])
    if entropy is None:
        entropy = float(y.double().var(0, correction=0).mean())
    return max(entropy, 1e-12)  # all judged rows the same: any loss is above it


# ---------------------------------------------------------------------- arguments
def _head(head: Any) -> nn.Module:
    made = module_of("head", head)
    if not any(p.requires_grad for p in made.parameters()):
        raise ValueError(f"head: no parameter of this {type(made).__name__} is trainable (requires_grad=False)")
    return made


def _schemes(schemes: Any) -> tuple[tuple[InitScheme, ...], tuple[float | None, ...]]:
    given = list(STDS) if schemes is None else sequence("schemes", schemes)
    made = [
        s if isinstance(s, InitScheme) else InitScheme.normal(std=as_positive(f"schemes[{i}]", s))
        for i, s in enumerate(given)
    ]
    distinct("schemes", made)
    return tuple(made), tuple(std_of(s) for s in made)


def std_of(scheme: InitScheme) -> float | None:
    """The standard deviation of a scheme that draws all weights from one normal distribution, with zero biases; else None.

    >>> std_of(InitScheme.normal(std=0.02)), std_of(InitScheme.xavier_normal())
    (0.02, None)
    """
    std = scheme.weight.std if scheme.weight.kind == "normal" else None
    return std if std is not None and scheme == InitScheme.normal(std=std) else None


def _rates(lrs: Any) -> tuple[float, ...]:
    given = list(LRS) if lrs is None else sequence("lrs", lrs)
    rates = sorted(as_positive(f"lrs[{i}]", v) for i, v in enumerate(given))
    distinct("lrs", rates)
    return tuple(rates)


def _seeds(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        arguments.whole("seeds", seeds, least=1, most=arguments.MOST_SEEDS)
        return tuple(range(seeds))
    numbers = sequence("seeds", seeds, most=arguments.MOST_SEEDS)
    for i, seed in enumerate(numbers):
        arguments.seed(f"seeds[{i}]", seed)
    distinct("seeds", numbers)
    return tuple(numbers)


def _plan(recipe: Recipe | None, recipe_fields: dict[str, Any], batch_size: Any, momentum: Any) -> Plan:
    if recipe is not None and not isinstance(recipe, Recipe):
        raise TypeError(f"recipe={as_given(recipe)}: expected a Recipe")
    accepted = ("optimizer", "steps", "warmup", "schedule", "weight_decay", "max_grad_norm")
    unknown = sorted(set(recipe_fields) - set(accepted))
    if unknown:
        hint = "; give lrs= and seeds=" if unknown[0] in ("lr", "seed") else ""
        raise TypeError(f"sweep() has no argument {unknown[0]!r}{hint}; of a Recipe it takes {', '.join(accepted)}")
    made = replace(recipe or Recipe(steps=30), **recipe_fields)
    arguments.whole("batch_size", batch_size, least=1, most=arguments.MOST_ROWS)
    arguments.number("momentum", momentum, least=0, below=1)
    if momentum and made.optimizer != "sgd":
        raise ValueError(
            f"momentum={as_given(momentum)} is given with optimizer={as_given(made.optimizer)}: expected 'sgd'"
        )
    return Plan(made, batch_size, float(momentum))


def _describe(head: nn.Module) -> str:
    """``Linear(384, 384) - ReLU - Dropout(0.2) - Linear(384, 2)``."""
    parts = []
    for module in head.modules():
        if any(True for _ in module.children()):
            continue
        kind = type(module).__name__
        if isinstance(module, nn.Linear):
            kind += f"({module.in_features}, {module.out_features})"
        elif isinstance(module, nn.Dropout):
            kind += f"({module.p:g})"
        parts.append(kind)
    return " - ".join(parts[:12]) + (" - ..." if len(parts) > 12 else "")
