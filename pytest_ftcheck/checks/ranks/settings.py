"""What each rank's trace says beside weights and rows: settings, learning rates, numbers of steps, losses that are not finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.verdict import Verdict
from . import faults
from .record import Rank, RankRun
from .weights import apart_at_end

NAME = "ranks_agree"
#: Relative difference of two settings that are the same number, computed in another order.
SAME = 1e-6
#: Share of the highest learning rate below which a rate counts as zero (as in lr_follows_schedule), and least steps at the end with such a
#: rate.
NEGLIGIBLE, IDLE_STEPS = 1e-4, 3
#: Tolerance of the share of the run, at its end, that a schedule stepped once a rank leaves idle, and of its pace.
NEAR = 0.15


def _runs(ranks: Sequence[Rank]) -> list[tuple[Rank, RankRun]]:
    return [(rank, rank.run) for rank in ranks if rank.run is not None]


# ---------------------------------------------------------------------- settings
def differ(ranks: Sequence[Rank]) -> Verdict | None:
    """Settings of the parameter groups, and the learning rates of all steps."""
    for rank, run in _runs(ranks)[1:]:
        first = _runs(ranks)[0][1]
        found = next(_differences(first, run), None)
        if found is not None:
            what, a, b = found
            evidence: tuple[dict[str, Any], ...] = (
                {"setting": what, f"rank {ranks[0].rank}": a, f"rank {rank.rank}": b},
            )
            headline = f"{what} is {_plain(a)} on rank {ranks[0].rank}, and {_plain(b)} on rank {rank.rank}."
            return faults.RANK_SETTINGS_DIFFER.verdict(NAME, headline, evidence=evidence)
    return None


def _differences(a: RankRun, b: RankRun) -> Iterator[tuple[str, Any, Any]]:
    if len(a.groups) != len(b.groups):
        yield "The number of parameter groups", len(a.groups), len(b.groups)
        return
    for index, (one, other) in enumerate(zip(a.groups, b.groups, strict=True)):
        pairs: dict[str, tuple[float | None, float | None]] = {"weight_decay": (one.weight_decay, other.weight_decay)}
        pairs |= {
            name: (one.settings.get(name), other.settings.get(name)) for name in {**one.settings, **other.settings}
        }
        for name, (x, y) in pairs.items():
            if not _same(x, y):
                yield f"Group {index}: {name}", x, y
    for step, x_rates, y_rates in zip(a.lrs_at, a.lrs, b.lrs, strict=False):
        for index, (x, y) in enumerate(zip(x_rates, y_rates, strict=False)):
            if not _same(x, y):
                yield f"Group {index}: the learning rate at step {step}", x, y


def _same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return a == b or (a != a and b != b) or abs(a - b) <= SAME * max(abs(a), abs(b))


def _plain(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------- steps
def steps_differ(ranks: Sequence[Rank]) -> Verdict | None:
    """Numbers of optimizer steps, where the weights differ in the end: with uneven rows, DDP's join() sends the weights to all."""
    counts = {rank.rank: run.steps for rank, run in _runs(ranks)}
    if len(set(counts.values())) < 2 or not apart_at_end(ranks):
        return None
    least, most = min(counts, key=lambda r: counts[r]), max(counts, key=lambda r: counts[r])
    return faults.RANK_STEPS_DIFFER.verdict(
        NAME,
        f"Rank {most} took {plural(counts[most], 'step')}, rank {least} took {counts[least]}.",
        evidence=tuple({"rank": rank, "steps": count} for rank, count in counts.items()),
    )


# ---------------------------------------------------------------------- not finite
def nonfinite_on_one(ranks: Sequence[Rank]) -> Verdict | None:
    """A loss that is not finite on some ranks earlier than on the others; else a gradient, before it is averaged."""
    losses = {rank.rank: run.first_nonfinite_loss for rank, run in _runs(ranks)}
    gradients = {rank.rank: rank.first_nonfinite_local for rank in ranks}
    for what, first in (
        ("iteration {at}, whose loss is not finite", losses),
        ("step {at}, whose gradient is not finite", gradients),
    ):
        known = [at for at in first.values() if at is not None]
        if not known:
            continue
        begins = [rank for rank, at in first.items() if at == min(known)]
        if len(begins) == len(ranks):
            return None  # all at once: no rank is the cause
        names = ", ".join(map(str, begins))
        where = what.format(at=min(known))
        verb = "begins" if len(begins) == 1 else "begin"
        return faults.NONFINITE_ON_ONE_RANK.with_details(rank=names).verdict(
            NAME,
            f"{'Rank' if len(begins) == 1 else 'Ranks'} {names} {verb} in {where}; on the other ranks it still is.",
            evidence=tuple({"rank": rank, "first": "none" if at is None else at} for rank, at in first.items()),
        )
    return None


# ---------------------------------------------------------------------- the schedule
def schedule_once_a_rank(ranks: Sequence[Rank]) -> Verdict | None:
    """A scheduler that steps once a rank for each optimizer step, and learning rates of zero for the part of the run that this leaves.

    Accelerate steps its schedulers so. A schedule that was built for the steps of one process is right then: its end is the run's.
    """
    world = len(ranks)
    pace = max((s.pace for rank in ranks for s in rank.schedulers), default=0.0)
    runs = _runs(ranks)
    if abs(pace - world) > NEAR * world or not runs:
        return None
    lrs, steps = runs[0][1].lrs, runs[0][1].steps
    highest = max((max(rates, default=0.0) for rates in lrs), default=0.0)
    idle = 0
    for rates in reversed(lrs):
        if max(rates, default=0.0) > NEGLIGIBLE * highest:
            break
        idle += 1
    share = idle / len(lrs) if lrs else 0.0
    if idle < IDLE_STEPS or not highest or abs(share - (1 - 1 / world)) > NEAR:
        return None
    name = next(s.name for rank in ranks for s in rank.schedulers if s.pace == pace)
    return faults.SCHEDULE_ONCE_A_RANK.with_details(pace=number(pace), ranks=world).verdict(
        NAME,
        f"{name} steps {number(pace)} times for each optimizer step, and the learning rate is 0 for the last {percent(share)} of "
        f"{plural(steps, 'step')}.",
    )
