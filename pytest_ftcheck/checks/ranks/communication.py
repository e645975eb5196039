"""The gradients of the ranks: the same on all at the optimizer's step, and the mean of what each rank computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from ...core.formatting import number, plural
from ...core.verdict import Verdict
from ..spec import Fault
from . import faults
from .record import BARE, NO_SYNC, Rank, RankStep
from .sketch_distance import mean, ratio, relative
from .weights import agree_again, apart_at_end

NAME = "ranks_agree"
#: Relative distance up to which gradients are the same: bfloat16 rounds to 4e-3 a number, less over many. Averaged gradients are the same
#: to the bit on all ranks; those of different rows are about 1 apart.
SAME = 1e-3
#: Cosine from which a gradient has the direction of the ranks' mean: rounding of bfloat16 leaves 0.99999, one of other rows is below 0.9.
PARALLEL = 0.999
#: Tolerance of a factor.
NEAR = 0.05
#: Steps that must show a factor: one may be chance where gradients are clipped by code that is not torch's.
LEAST_STEPS = 2


def gradients_differ(ranks: Sequence[Rank]) -> Verdict | None:
    """Gradients at the optimizer's step, where the weights differ in the end: ranks may also average their weights now and then."""
    apart = [at_step for at_step in _steps(ranks) if any(_apart(at_step[0], other) for other in at_step[1:])]
    if not apart or not apart_at_end(ranks) or agree_again(ranks):
        return None
    first = apart[0]
    farthest = max(relative(first[0].gradients, other.gradients) for other in first[1:])
    headline = (
        f"The gradients at the optimizer's step differ between ranks at {len(apart)} of {plural(len(_steps(ranks)), 'recorded step')}, "
        f"from step {first[0].step} on (relative distance {number(farthest)})."
    )
    evidence: tuple[dict[str, Any], ...] = tuple(
        {
            "rank": rank.rank,
            "step": step.step,
            "model called": step.call or "not known",
            "gradients": "averaged" if _changed(step) else "its own",
        }
        for rank, step in zip(ranks, first, strict=True)
    )
    return _why(ranks, first).verdict(NAME, headline, evidence=evidence)


def gradients_differ_from_the_start(ranks: Sequence[Rank]) -> Verdict | None:
    """The same, where it is so at the first step already. Later ones are compared in vain where one rank has taken a step more."""
    first = _steps(ranks)[:1]
    return gradients_differ(ranks) if first and any(_apart(first[0][0], other) for other in first[0][1:]) else None


def _why(ranks: Sequence[Rank], steps: Sequence[RankStep]) -> Fault:
    """How the model was called before the first step at which gradients differ."""
    if any(_changed(step) for step in steps):  # they were averaged or otherwise changed, and differ all the same
        return faults.RANK_GRADIENTS_DIFFER
    calls = {step.call for step in steps}
    if any(rank.sharded or rank.sharded_otherwise for rank in ranks):  # parameters that FSDP is told to ignore
        return faults.RANK_GRADIENTS_DIFFER
    if NO_SYNC in calls:
        return faults.NO_SYNC_LEFT_ON
    if BARE in calls and any(rank.wrapped for rank in ranks):
        return faults.WRAPPER_BYPASSED
    if calls == {BARE}:
        return faults.RANKS_TRAIN_ALONE
    return faults.RANK_GRADIENTS_DIFFER


def scaled(ranks: Sequence[Rank]) -> Verdict | None:
    """The gradient at the step against the mean of what the ranks computed: a multiple of it, by the number of ranks."""
    found = [one for at_step in _steps(ranks) if (one := _factor(at_step)) is not None]
    for fault, expected in (
        (faults.GRADIENTS_SUMMED, float(len(ranks))),
        (faults.GRADIENTS_AVERAGED_TWICE, 1.0 / len(ranks)),
    ):
        steps = [(factor, weight) for factor, weight in found if _near(factor, expected)]
        if len(steps) < LEAST_STEPS or len(steps) < len(found):
            continue
        known = [weight for _, weight in steps if weight is not None]
        factor = number(steps[0][0])
        headline = (
            f"The gradient at the optimizer's step is {factor} times the mean of the ranks' own gradients, at each of "
            f"{plural(len(steps), 'step')}."
        )
        if not known:
            text = f"{headline} Whether each rank's loss makes up for it is not known: it is none of torch's losses."
            return Verdict(NAME, "inconclusive", text, remedy=fault.remedy)
        if _near(median(known), 1.0):  # a step that a GradScaler skipped counts with the next
            return fault.with_details(factor=factor).verdict(NAME, headline)
    return None


def _factor(at_step: Sequence[RankStep]) -> tuple[float, float | None] | None:
    """``(gradient / mean of the local ones, loss / mean over the rank's rows)``; None: it is no multiple."""
    if not all(step.local for step in at_step):
        return None
    compared = ratio(at_step[0].gradients, mean([step.local for step in at_step]))
    if compared is None or compared[1] < PARALLEL or not 0 < at_step[0].clipped < math.inf:
        return None
    weights = [step.loss_weight for step in at_step if step.loss_weight is not None]
    weight = sum(weights) / len(weights) if len(weights) == len(at_step) else None
    return compared[0] / at_step[0].clipped, weight


def _near(value: float, expected: float) -> bool:
    return abs(value - expected) <= NEAR * expected


def _apart(one: RankStep, other: RankStep) -> bool:
    return relative(one.gradients, other.gradients) > SAME


def _changed(step: RankStep) -> bool:
    """Whether the gradient at the step is another one than this rank computed."""
    compared = ratio(step.gradients, step.local)
    return compared is not None and compared[1] < PARALLEL


def _steps(ranks: Sequence[Rank]) -> list[tuple[RankStep, ...]]:
    """The steps that all ranks recorded, side by side."""
    return list(zip(*(rank.steps for rank in ranks), strict=False))
