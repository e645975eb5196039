"""The learning rate really applied at each step is the declared one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.intent import Intent
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, check
from . import faults

#: Distance from the declared rate that is let pass, as a share of the peak; a shift of one step is let pass as well, for schedules are
#: counted from 0 or from 1, and end at 0 or one step before it.
CLOSE = 0.05
#: Steps that must be too far away before a schedule is another one.
FEW = 2
#: Without a declared schedule: share of the run, at its end, and least steps, at a learning rate of zero.
IDLE, IDLE_STEPS = 0.25, 5
#: Share of the highest rate below which one counts as zero there: three drops to a tenth, as in step schedules, leave 1e-3; a cosine is
#: below 1e-4 for the last 0.7 % of its steps, a polynomial of power 4 for the last 10 %.
NOTHING = 1e-4
#: Share of the declared peak that must be reached to tell a pace.
LEAST_HEIGHT = 0.3
#: Paces that are tried: steps of the schedule for each step of the optimizer.
PACES = (*range(2, 65), 96, 128, 256)


@dataclass(frozen=True)
class _Fault:
    fault: str
    headline: str
    cause: str
    remedy: str


@check(
    stage=Stage.OPTIMIZER,
    position=3,
    faults=(
        faults.LR_ZERO,
        faults.SCHEDULER_ON_ANOTHER_OPTIMIZER,
        faults.SCHEDULER_BEFORE_OPTIMIZER,
        faults.SCHEDULER_TOO_OFTEN,
        faults.SCHEDULER_TOO_SELDOM,
        faults.GROUP_NOT_SCHEDULED,
        faults.LR_CONSTANT,
        faults.PEAK_LR_DIFFERS,
        faults.WARMUP_DIFFERS,
        faults.DECAYS_TOO_EARLY,
        faults.SCHEDULE_DIFFERS,
    ),
)
def check_lr_follows_schedule(trace: Trace) -> Verdict:
    """The learning rate really applied at each step is the declared one.

    Declared: `Intent.peak_lr`, ``schedule``, ``warmup_steps``, ``total_steps``; the run may be the first part of it, and one group with
    those rates is enough, for groups may have rates of their own. Where nothing is declared: the learning rate is not zero throughout
    or for the last quarter of the run, and the scheduler that was handed over drives this optimizer, and is stepped after it.

    >>> from pytest_ftcheck import Intent, example_trace
    >>> check_lr_follows_schedule(example_trace(intent=Intent(peak_lr=5e-5))).status
    'pass'
    >>> print(check_lr_follows_schedule(example_trace(intent=Intent(peak_lr=1e-3))).headline)
    You meant a peak LR of 0.00100; it reached 5.00e-05 in 20 steps.
    """
    series = _series(trace)
    measured = f"learning rates in force at {plural(len(series[0]) if series else 0, 'step')}"
    if not series or not series[0]:
        return Verdict(
            "lr_follows_schedule", "skipped", "no step with a known learning rate was taken.", measured=measured
        )
    best, expected = _best(trace, series)
    idle = None if _as_declared(trace, best, expected) else _zero(best)
    meant = _against_intent(trace, series, best, expected)
    if meant is not None and any(_against_intent(trace, [s], s, expected) is None for s in _others(trace)):
        meant = None
    found = [f for f in (_structure(trace, best), meant, idle) if f]
    limit = f"within {percent(CLOSE)} of the declared peak, one step earlier or later"
    if found:
        first = found[0]
        return Verdict(
            "lr_follows_schedule",
            "fail",
            first.headline,
            evidence=_rows(best, expected),
            limit=limit if trace.intent is not None and trace.intent.peak_lr is not None else "",
            causes=(first.cause, *(f.headline for f in found[1:])),
            remedy=first.remedy,
            measured=measured,
            fault=first.fault,
        )
    return Verdict("lr_follows_schedule", "pass", _passed(trace, best, expected), limit=limit, measured=measured)


def _passed(trace: Trace, best: Sequence[float], expected: Sequence[float | None]) -> str:
    spread = f"{number(best[0])} at the first step, {number(max(best))} at most, {number(best[-1])} at the last"
    declared = any(e is not None for e in expected) or (trace.intent is not None and trace.intent.peak_lr is not None)
    return f"The learning rate was {spread}{', as declared' if declared else ''}."


def _series(trace: Trace) -> list[tuple[float, ...]]:
    """Learning rates of each group of the watched optimizer over its steps; groups that came later begin with zeros."""
    lrs = [s.lrs for s in trace.steps if s.by_watched_optimizer]
    if not lrs:
        return []
    groups = max(len(r) for r in lrs)
    # a group that holds nothing of this model, or nothing that is meant to learn, says nothing
    held = {g.index for g in trace.optimizer.groups if g.tensors}
    out = [tuple(r[g] if g < len(r) else 0.0 for r in lrs) for g in range(groups) if not held or g in held]
    return [s for s in out if all(math.isfinite(v) for v in s)]


def _others(trace: Trace) -> list[tuple[float, ...]]:
    """The same of another optimizer that steps on the model as often: the declared peak may be that of the head's own optimizer."""
    lrs = [s.lrs for s in trace.steps if not s.by_watched_optimizer]
    if len(lrs) != sum(s.by_watched_optimizer for s in trace.steps) or len({len(r) for r in lrs}) != 1:
        return []
    return [s for s in zip(*lrs, strict=True) if any(s) and all(math.isfinite(v) for v in s)]


def _best(trace: Trace, series: Sequence[Sequence[float]]) -> tuple[Sequence[float], list[float | None]]:
    """The group that comes nearest to what was declared, else the one with the highest rate; and what was declared for each step."""
    intent, n = trace.intent, len(series[0])
    peak = intent.peak_lr if intent is not None else None
    plans = [_expected(intent, range(n))]
    if any(late := _skipped(trace)):
        plans.append(_expected(intent, [i + k for i, k in enumerate(late)]))

    def away(pair: tuple[Sequence[float], list[float | None]]) -> tuple[float, float]:
        rates, expected = pair
        misses = len(_misses(rates, expected, peak or 1.0))
        return misses, abs(math.log(max(max(rates), 1e-300) / peak)) if peak else -max(rates)

    return min(((s, e) for s in series for e in plans), key=away)


def _expected(intent: Intent | None, steps: Iterable[int]) -> list[float | None]:
    return [intent.lr_at(i) if intent is not None else None for i in steps]


def _skipped(trace: Trace) -> list[int]:
    """For each step, how many before it were skipped (by a GradScaler, say), while the scheduler may have gone on."""
    at = [s.iteration for s in trace.steps if s.by_watched_optimizer and s.iteration is not None]
    if len(at) < 2 or len(at) != sum(s.by_watched_optimizer for s in trace.steps):
        return []
    gaps = sorted(b - a for a, b in pairwise(at))
    every = (trace.intent.accumulation if trace.intent is not None else None) or max(1, gaps[len(gaps) // 2])
    return [max(0, (it + 1) // every - 1 - i) for i, it in enumerate(at)]


def _misses(rates: Sequence[float], expected: Sequence[float | None], peak: float) -> list[int]:
    """Steps at which the rate is too far from the declared one, and from that of the step before and after it."""
    out = []
    for i, rate in enumerate(rates):
        near = [e for e in expected[max(0, i - 1) : i + 2] if e is not None]
        if expected[i] is not None and not min(near) - CLOSE * peak <= rate <= max(near) + CLOSE * peak:
            out.append(i)
    return out


# ------------------------------------------------------------------ structure
def _structure(trace: Trace, best: Sequence[float]) -> _Fault | None:
    o = trace.optimizer
    if o.scheduler_of_other_optimizer:
        return _Fault(
            "scheduler_on_another_optimizer",
            f"{o.scheduler} drives another optimizer than the {o.name} that trains this model, whose learning rate goes from "
            f"{number(best[0])} to {number(best[-1])}.",
            "the optimizer was built again after the scheduler (in another cell, after preparing or wrapping)",
            f"build {o.scheduler} over the optimizer that steps",
        )
    own = sum(s.by_watched_optimizer for s in trace.steps)
    if o.scheduler_stepped_first and (2 * o.scheduler_stepped_first > own or _at_first(trace)):
        return _Fault(
            "scheduler_before_optimizer",
            f"{o.scheduler} had been stepped before the optimizer at {o.scheduler_stepped_first} of {plural(own, 'step')}: the schedule's first "
            f"learning rate is skipped, it begins at {number(best[0])}.",
            "scheduler.step() comes before optimizer.step() in the loop",
            "call scheduler.step() after optimizer.step()",
        )
    return None


def _at_first(trace: Trace) -> bool:
    """Only the first step can be told by itself to come too late."""
    return bool(trace.steps) and trace.steps[0].iteration == 0 and trace.optimizer.scheduler_stepped_first > 0


def _zero(best: Sequence[float]) -> _Fault | None:
    """What needs no declaration: a rate that never leaves zero, or is back at it long before the end."""
    if len(best) > 1 and not any(best):
        return _Fault(
            "lr_zero",
            f"The learning rate is 0 at each of {len(best)} steps.",
            "lr=0, a schedule that never leaves zero (a warm-up whose scheduler is never stepped), or one that was over before it began",
            "print scheduler.get_last_lr() over the first steps; step the scheduler after each optimizer step",
        )
    idle = 0
    for rate in reversed(best):
        if rate > 0 and rate >= NOTHING * max(best):
            break
        idle += 1
    if idle >= max(IDLE_STEPS, IDLE * len(best)) and idle < len(best):
        left = max(best[len(best) - idle :])
        value = f"at most {number(left)} ({percent(left / max(best))} of its highest)" if left else "0"
        return _Fault(
            "decays_too_early",
            f"The learning rate is {value} for the last {idle} of {len(best)} steps: the schedule ends at step {len(best) - idle}.",
            "the schedule was made for fewer steps than the run has, or is stepped more often than the optimizer (a step size or "
            "decay meant for epochs; a plateau that waits for the wrong direction)",
            "give the schedule the number of optimizer steps (batches an epoch x epochs / accumulation)",
        )
    return None


# ------------------------------------------------------------------ against what was declared
def _as_declared(trace: Trace, best: Sequence[float], expected: Sequence[float | None]) -> bool:
    """All of it was declared, and is so: a rate of zero at the end, too."""
    peak = trace.intent.peak_lr if trace.intent is not None else None
    return bool(peak) and None not in expected and any(best) and not _misses(best, expected, peak or 1.0)


def _against_intent(
    trace: Trace, series: Sequence[Sequence[float]], best: Sequence[float], expected: Sequence[float | None]
) -> _Fault | None:
    intent = trace.intent
    if intent is None or not intent.peak_lr:
        return None
    if all(e is None for e in expected):
        return _peak_alone(intent, best)
    misses = _misses(best, expected, intent.peak_lr)
    if len(misses) < min(FEW, len(best)):
        return _left_behind(intent, series, best, expected)
    return _named(intent, best, expected, misses)


def _peak_alone(intent: Intent, best: Sequence[float]) -> _Fault | None:
    """The shape is not declared: a rate above the peak is wrong, and one below it that stands still or falls."""
    peak, seen = float(intent.peak_lr or 0.0), max(best)
    rising = len(best) <= (intent.warmup_steps or 0) or (best[-1] == seen and best[0] < seen)
    if not any(best) or (seen < peak and rising) or abs(seen - peak) <= CLOSE * peak:
        return None
    return _other_peak(peak, seen, len(best))


def _other_peak(peak: float, seen: float, steps: int) -> _Fault:
    return _Fault(
        "peak_lr_differs",
        f"You meant a peak LR of {number(peak)}; it reached {number(seen)} in {plural(steps, 'step')}.",
        f"the optimizer was built with another rate ({number(seen / peak)} times the declared one)",
        f"pass lr={peak:g}; look at what comes after it (a default, a config, a scheduler that sets its own)",
    )


def _left_behind(
    intent: Intent, series: Sequence[Sequence[float]], best: Sequence[float], expected: Sequence[float | None]
) -> _Fault | None:
    """The best group follows; another one stands still though its rate should move with it."""
    known = [e for e in expected if e is not None]
    peak = float(intent.peak_lr or 0.0)
    if intent.thaw_step or max(known) - min(known) < 0.5 * peak:
        return None
    still = [s for s in series if s is not best and max(s) > 0 and max(s) - min(s) < 0.01 * max(s)]
    if not still or max(best) - min(best) < 0.5 * peak:
        return None
    return _Fault(
        "group_not_scheduled",
        f"{plural(len(still), 'parameter group')} of {len(series)} {'keeps' if len(still) == 1 else 'keep'} a constant learning rate of "
        f"{number(max(still[0]))}, while the schedule goes from {number(best[0])} over {number(max(best))} to {number(best[-1])}.",
        "only some groups are scheduled (optimizer.param_groups[0]['lr'] = ..., a group added after the scheduler, a list of lambdas)",
        "set the rate of each group: for g in optimizer.param_groups",
    )


def _named(intent: Intent, best: Sequence[float], expected: Sequence[float | None], misses: Sequence[int]) -> _Fault:
    """Which other schedule it is."""
    peak, seen, n = float(intent.peak_lr or 0.0), max(best), len(best)
    known = [e for e in expected if e is not None]
    moving = max(known) - min(known) > 0.2 * peak
    meant = _words(intent)
    if not any(best):
        return _Fault(
            "lr_zero",
            f"You meant {meant}; the learning rate is 0 at each of {plural(n, 'step')}.",
            "lr=0, or a warm-up that begins at zero and whose scheduler is never stepped",
            "call scheduler.step() after each optimizer step",
        )
    if max(best) - min(best) < 0.01 * seen and moving:
        return _Fault(
            "lr_constant",
            f"You meant {meant}; the learning rate is {number(seen)} at each of {n} steps.",
            "no scheduler is stepped, or it drives another optimizer than the one that steps",
            "build the scheduler over this optimizer and step it after each optimizer step",
        )
    if moving and (held := _staircase(best, intent, peak)):
        return _Fault(
            "scheduler_too_seldom",
            f"You meant {meant}; the learning rate changes only every {held} steps: {number(best[-1])} at step {n - 1}, where "
            f"{number(expected[n - 1])} was meant.",
            "the scheduler is stepped once an epoch, but its numbers are steps",
            "call scheduler.step() after each optimizer step",
        )
    if moving and (pace := _pace(best, intent, peak)):
        times = f" (accumulation is {intent.accumulation})" if (intent.accumulation or 1) > 1 else ""
        return _Fault(
            "scheduler_too_often",
            f"You meant {meant}; the schedule runs {pace} times as fast: {number(best[-1])} at step {n - 1}, where "
            f"{number(expected[n - 1])} was meant.",
            f"the scheduler is stepped {pace} times for each optimizer step: once for every batch{times}, process or call too many",
            "call scheduler.step() once, right after optimizer.step()",
        )
    scaled = [None if e is None else e * seen / (max(known) or 1.0) for e in expected]
    # a shape that hardly moves says nothing of its pace, only of its height
    if max(known) > 0 and len(_misses(best, scaled, seen)) < min(FEW, n):
        return _other_peak(max(known), seen, n) if max(known) < peak else _other_peak(peak, seen, n)
    if rise := _longer_warmup(best, intent, peak):
        return _Fault(
            "warmup_differs",
            f"You meant {meant}; the learning rate reached {number(seen)} in {n} steps, for it rises as in a warm-up of {rise:,} steps.",
            f"the warm-up is {rise:,} steps and not {intent.warmup_steps or 0:,}: longer than the run, or counted in other units",
            f"num_warmup_steps={intent.warmup_steps or 0}, in optimizer steps",
        )
    fault = _zero(best)
    if fault is not None:
        return _Fault(fault.fault, f"You meant {meant}. {fault.headline}", fault.cause, fault.remedy)
    if seen > peak * (1 + CLOSE) or (seen < peak * (1 - CLOSE) and max(known) == peak):
        return _other_peak(peak, seen, n)
    at = misses[0]
    return _Fault(
        "schedule_differs",
        f"You meant {meant}; the learning rate leaves it at step {at}: {number(best[at])}, where {number(expected[at])} was meant "
        f"({len(misses)} of {n} steps are off).",
        "the schedule is another one, or has another length, warm-up or end",
        f"compare the scheduler's arguments: {meant}",
    )


def _words(intent: Intent) -> str:
    parts = [f"a peak LR of {number(float(intent.peak_lr or 0.0))}"]
    if intent.schedule:
        parts.append(f"{intent.schedule} schedule")
    if intent.warmup_steps:
        parts.append(f"{intent.warmup_steps:,} steps of warm-up")
    if intent.total_steps and intent.schedule == "linear":
        parts.append(f"{intent.total_steps:,} steps in all")
    return ", ".join(parts)


def _pace(best: Sequence[float], intent: Intent, peak: float) -> int | None:
    """How many times as fast as declared, if that is what it is."""
    if max(best) < LEAST_HEIGHT * peak:
        return None  # next to zero fits any schedule that is over
    found: list[tuple[float, int]] = []
    for k in PACES:
        for shift in (0, 1, k - 1):  # a shift of one step is many steps of the schedule here
            expected = [intent.lr_at(k * i + shift) for i in range(len(best))]
            if len(_misses(best, expected, peak)) < min(FEW, len(best)):
                found.append((math.fsum(abs(r - (e or 0.0)) for r, e in zip(best, expected, strict=True)), k))
    return min(found)[1] if found else None


def _staircase(best: Sequence[float], intent: Intent, peak: float) -> int | None:
    """For how many steps the rate is held, if it is the schedule of epochs."""
    changes = [i for i in range(1, len(best)) if abs(best[i] - best[i - 1]) > 1e-6 * peak]
    if not changes or len(changes) > (len(best) - 1) / 3:
        return None
    held = changes[0]
    even = all((i - held) % held == 0 for i in changes)
    moved = sum((intent.lr_at(i) or 0.0) != (intent.lr_at(i - 1) or 0.0) for i in range(1, len(best)))
    return held if even and held > 1 and moved > 0.5 * len(best) else None


def _longer_warmup(best: Sequence[float], intent: Intent, peak: float) -> int | None:
    """The length of the warm-up that would take the rates to the declared peak, if they do nothing but rise."""
    n = len(best)
    slope = best[-1] / max(1, n - 1)
    if n < 3 or slope <= 0 or not all(abs(r - slope * i) <= slope * 1.01 for i, r in enumerate(best)):
        return None
    length = round(peak * (n - 1) / (best[-1] - best[0]))
    return length if length > (intent.warmup_steps or 0) and length >= n else None


def _rows(best: Sequence[float], expected: Sequence[float | None]) -> tuple[dict[str, Any], ...]:
    n = len(best)
    shown = sorted({0, 1, n // 4, n // 2, 3 * n // 4, n - 1} & set(range(n)))
    return tuple({"step": i, "LR": best[i], "meant": expected[i]} for i in shown)
