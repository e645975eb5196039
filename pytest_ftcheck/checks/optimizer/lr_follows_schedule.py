"""The learning rate applied at each step is the declared one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.intent import Intent
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, check, combine
from . import faults

NAME = "lr_follows_schedule"
#: Tolerated distance from the declared rate, as a share of the peak; a shift of one step is tolerated as well, because schedules count
#: from 0 or from 1, and end at 0 or one step before it.
TOLERANCE = 0.05
#: Steps that must be off before the schedule is another one. A single step shows a rate above the peak, and no shape: a lower rate may
#: be the first of a warm-up.
LEAST_MISSES = 2
#: Without a declared schedule: share of the run, at its end, and least steps, at a learning rate of zero.
IDLE_SHARE, IDLE_STEPS = 0.25, 5
#: Share of the highest rate below which a rate counts as zero there: three drops to a tenth, as in step schedules, leave 1e-3; a cosine is
#: below 1e-4 for the last 0.7 % of its steps, a polynomial of power 4 for the last 10 %.
NEGLIGIBLE = 1e-4
#: Share of the declared peak that must be reached to judge the pace.
LEAST_HEIGHT = 0.3
#: Paces that are tried: steps of the schedule for each step of the optimizer.
PACES = (*range(2, 65), 96, 128, 256)


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
    """The learning rate applied at each step is the declared one.

    Declared: `Intent.peak_lr`, ``schedule``, ``warmup_steps``, ``total_steps``; the run may be the first part of the schedule, and one
    group that follows it is enough, because groups may have rates of their own. Where nothing is declared: the learning rate is not zero
    throughout or for the last quarter of the run, and the scheduler passed in drives this optimizer and steps after it.

    >>> from pytest_ftcheck import Intent, example_trace
    >>> check_lr_follows_schedule(example_trace(intent=Intent(peak_lr=5e-5))).status
    'pass'
    >>> print(check_lr_follows_schedule(example_trace(intent=Intent(peak_lr=1e-3))).headline)
    Declared: a peak LR of 0.00100; it reached 5.00e-05 in 20 steps.
    """
    series = _rates_by_group(trace)
    measured = f"learning rates in force at {plural(len(series[0]) if series else 0, 'step')}"
    if not series or not series[0]:
        return Verdict(NAME, "skipped", "no step with a known learning rate was taken.", measured=measured)
    best, expected = _best(trace, series)
    idle = None if _as_declared(trace, best, expected) else _zero(best)
    deviation = _against_intent(trace, series, best, expected)
    others = _rates_of_other_optimizer(trace)
    if deviation is not None and any(_against_intent(trace, [rates], rates, expected) is None for rates in others):
        deviation = None
    findings = (_structure(trace, best), deviation, idle)
    limit = f"within {percent(TOLERANCE)} of the declared peak, one step earlier or later"
    declared = trace.intent is not None and trace.intent.peak_lr is not None
    evidence = _rows(best, expected)
    if failure := combine(findings, evidence=evidence, limit=limit if declared else "", measured=measured):
        return failure
    return Verdict(NAME, "pass", _passed(trace, best, expected), limit=limit, measured=measured)


def _passed(trace: Trace, best: Sequence[float], expected: Sequence[float | None]) -> str:
    spread = f"{number(best[0])} at the first step, {number(max(best))} at most, {number(best[-1])} at the last"
    declared = any(e is not None for e in expected) or (trace.intent is not None and trace.intent.peak_lr is not None)
    return f"The learning rate was {spread}{', as declared' if declared else ''}."


def _rates_by_group(trace: Trace) -> list[tuple[float, ...]]:
    """Learning rates of each group of the watched optimizer over its steps; groups that came later begin with zeros."""
    lrs = [s.lrs for s in trace.steps if s.by_watched_optimizer]
    if not lrs:
        return []
    groups = max(len(r) for r in lrs)
    # a group that holds no tensor of this model is not judged
    held = {g.index for g in trace.optimizer.groups if g.tensors}
    series = [tuple(r[g] if g < len(r) else 0.0 for r in lrs) for g in range(groups) if not held or g in held]
    return [rates for rates in series if all(math.isfinite(v) for v in rates)]


def _rates_of_other_optimizer(trace: Trace) -> list[tuple[float, ...]]:
    """The same of another optimizer that steps on the model as often: the declared peak may be that of the head's own optimizer."""
    lrs = [s.lrs for s in trace.steps if not s.by_watched_optimizer]
    if len(lrs) != sum(s.by_watched_optimizer for s in trace.steps) or len({len(r) for r in lrs}) != 1:
        return []
    return [rates for rates in zip(*lrs, strict=True) if any(rates) and all(math.isfinite(v) for v in rates)]


def _best(trace: Trace, series: Sequence[Sequence[float]]) -> tuple[Sequence[float], list[float | None]]:
    """The group that comes nearest to the declaration, else the one with the highest rate; and the rate declared for each step and for
    the one after the last, which a schedule that counts from 1 has already."""
    intent, n = trace.intent, len(series[0])
    peak = intent.peak_lr if intent is not None else None
    declarations = [_expected(intent, range(n + 1))]
    if any(skipped := _skipped(trace)):
        declarations.append(_expected(intent, [i + k for i, k in enumerate([*skipped, skipped[-1]])]))

    def distance(pair: tuple[Sequence[float], list[float | None]]) -> tuple[float, float]:
        rates, expected = pair
        misses = len(_misses(rates, expected, peak or 1.0))
        return misses, abs(math.log(max(max(rates), 1e-300) / peak)) if peak else -max(rates)

    return min(((rates, expected) for rates in series for expected in declarations), key=distance)


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
    """Steps at which the rate is too far from the declared one, and from that of the step before and after it.

    :param expected: the declared rate of each step, and of the one after the last.
    """
    out = []
    for i, rate in enumerate(rates):
        near = [e for e in expected[max(0, i - 1) : i + 2] if e is not None]
        if expected[i] is not None and not min(near) - TOLERANCE * peak <= rate <= max(near) + TOLERANCE * peak:
            out.append(i)
    return out


# ------------------------------------------------------------------ structure
def _structure(trace: Trace, best: Sequence[float]) -> Verdict | None:
    o = trace.optimizer
    if o.scheduler_of_other_optimizer:
        return faults.SCHEDULER_ON_ANOTHER_OPTIMIZER.with_details(scheduler=o.scheduler).verdict(
            NAME,
            f"{o.scheduler} drives another optimizer than the {o.name} that trains this model, whose learning rate goes from "
            f"{number(best[0])} to {number(best[-1])}.",
        )
    steps = sum(s.by_watched_optimizer for s in trace.steps)
    early = o.scheduler_stepped_first
    if early and (
        2 * early > steps or trace.steps[0].iteration == 0
    ):  # only at the very first step is a single one conclusive
        return faults.SCHEDULER_BEFORE_OPTIMIZER.verdict(
            NAME,
            f"{o.scheduler} stepped before the optimizer at {early} of {plural(steps, 'step')}: the schedule's first learning rate is "
            f"skipped, and training begins at {number(best[0])}.",
        )
    return None


def _zero(best: Sequence[float]) -> Verdict | None:
    """What needs no declaration: a rate that never leaves zero, or returns to it long before the end."""
    n = len(best)
    if n > 1 and not any(best):
        return faults.LR_ZERO.verdict(NAME, f"The learning rate is 0 at each of {n} steps.")
    idle = 0
    for rate in reversed(best):
        if rate > 0 and rate >= NEGLIGIBLE * max(best):
            break
        idle += 1
    if not max(IDLE_STEPS, IDLE_SHARE * n) <= idle < n:
        return None
    left = max(best[n - idle :])
    value = f"at most {number(left)} ({percent(left / max(best))} of its highest)" if left else "0"
    return faults.DECAYS_TOO_EARLY.verdict(
        NAME, f"The learning rate is {value} for the last {idle} of {n} steps: the schedule ends at step {n - idle}."
    )


# ------------------------------------------------------------------ against the declaration
def _as_declared(trace: Trace, best: Sequence[float], expected: Sequence[float | None]) -> bool:
    """The rate of every step was declared, and is as declared: a rate of zero at the end, too."""
    peak = trace.intent.peak_lr if trace.intent is not None else None
    return bool(peak) and None not in expected and any(best) and not _misses(best, expected, peak or 1.0)


def _against_intent(
    trace: Trace, series: Sequence[Sequence[float]], best: Sequence[float], expected: Sequence[float | None]
) -> Verdict | None:
    intent = trace.intent
    if intent is None or not intent.peak_lr:
        return None
    if len(best) < LEAST_MISSES and max(best) <= intent.peak_lr * (1 + TOLERANCE):
        return _too_few_steps(intent, best, expected)
    if all(e is None for e in expected):
        return _peak_alone(intent, best)
    misses = _misses(best, expected, intent.peak_lr)
    if len(misses) < min(LEAST_MISSES, len(best)):
        return _constant_group(intent, series, best, expected)
    return _deviation(intent, best, expected, misses)


def _too_few_steps(intent: Intent, best: Sequence[float], expected: Sequence[float | None]) -> Verdict | None:
    """What so few steps leave open: a rate at or below the peak that is not the declared one; None: it is."""
    peak = float(intent.peak_lr or 0.0)
    if not _misses(best, [peak if e is None else e for e in expected], peak):
        return None
    return Verdict(
        NAME,
        "inconclusive",
        f"Declared: {_declaration(intent)}; {plural(len(best), 'step')} at a learning rate of {number(best[0])} "
        "may be the first of a warm-up, or another schedule.",
        remedy=f"train {LEAST_MISSES} steps or more",
    )


def _peak_alone(intent: Intent, best: Sequence[float]) -> Verdict | None:
    """The shape is not declared: a rate above the peak is wrong, and so is one below it that stays constant or falls."""
    peak, reached = float(intent.peak_lr or 0.0), max(best)
    rising = len(best) <= (intent.warmup_steps or 0) or (best[-1] == reached and best[0] < reached)
    if not any(best) or (reached < peak and rising) or abs(reached - peak) <= TOLERANCE * peak:
        return None
    return _other_peak(peak, reached, len(best))


def _other_peak(peak: float, reached: float, steps: int) -> Verdict:
    fault = faults.PEAK_LR_DIFFERS.with_details(ratio=number(reached / peak), peak=f"{peak:g}")
    return fault.verdict(
        NAME, f"Declared: a peak LR of {number(peak)}; it reached {number(reached)} in {plural(steps, 'step')}."
    )


def _constant_group(
    intent: Intent, series: Sequence[Sequence[float]], best: Sequence[float], expected: Sequence[float | None]
) -> Verdict | None:
    """The best group follows the schedule; another one stays constant although its rate should change with it."""
    known = [e for e in expected[: len(best)] if e is not None]
    peak = float(intent.peak_lr or 0.0)
    if intent.thaw_step or max(known) - min(known) < 0.5 * peak:
        return None
    constant = [s for s in series if s is not best and max(s) > 0 and max(s) - min(s) < 0.01 * max(s)]
    if not constant or max(best) - min(best) < 0.5 * peak:
        return None
    return faults.GROUP_NOT_SCHEDULED.verdict(
        NAME,
        f"{plural(len(constant), 'parameter group')} of {len(series)} {'keeps' if len(constant) == 1 else 'keep'} a constant learning "
        f"rate of {number(max(constant[0]))}, while the schedule goes from {number(best[0])} over {number(max(best))} to "
        f"{number(best[-1])}.",
    )


def _deviation(
    intent: Intent, best: Sequence[float], expected: Sequence[float | None], misses: Sequence[int]
) -> Verdict:
    """How the learning rate differs from the declared schedule."""
    peak, reached, n = float(intent.peak_lr or 0.0), max(best), len(best)
    known = [e for e in expected[:n] if e is not None]
    changing = max(known) - min(known) > 0.2 * peak
    declared = _declaration(intent)
    if not any(best):
        return faults.LR_ZERO.verdict(
            NAME, f"Declared: {declared}; the learning rate is 0 at each of {plural(n, 'step')}."
        )
    if max(best) - min(best) < 0.01 * reached and changing:
        return faults.LR_CONSTANT.verdict(
            NAME, f"Declared: {declared}; the learning rate is {number(reached)} at each of {n} steps."
        )
    at_end = f"{number(best[-1])} instead of {number(expected[n - 1])} at step {n - 1}"
    if changing and (held := _steps_held(best, intent, peak)):
        return faults.SCHEDULER_TOO_SELDOM.verdict(
            NAME, f"Declared: {declared}; the learning rate changes only every {held} steps: {at_end}."
        )
    if changing and (pace := _pace(best, intent, peak)):
        fault = faults.SCHEDULER_TOO_OFTEN.with_details(pace=pace)
        if (intent.accumulation or 1) > 1:
            fault = fault.because(f"{fault.cause} (accumulation is {intent.accumulation})")
        return fault.verdict(NAME, f"Declared: {declared}; the schedule runs {pace} times as fast: {at_end}.")
    scaled = [None if e is None else e * reached / (max(known) or 1.0) for e in expected]
    # a shape that hardly changes shows its height, not its pace
    if max(known) > 0 and len(_misses(best, scaled, reached)) < min(LEAST_MISSES, n):
        return _other_peak(min(max(known), peak), reached, n)
    if warmup := _longer_warmup(best, intent, peak):
        return faults.WARMUP_DIFFERS.with_details(warmup=warmup, declared=intent.warmup_steps or 0).verdict(
            NAME,
            f"Declared: {declared}; the learning rate reached {number(reached)} in {n} steps: it rises as in a warm-up of "
            f"{warmup:,} steps.",
        )
    idle = _zero(best)
    if idle is not None:
        return replace(idle, headline=f"Declared: {declared}. {idle.headline}")
    if reached > peak * (1 + TOLERANCE) or (reached < peak * (1 - TOLERANCE) and max(known) == peak):
        return _other_peak(peak, reached, n)
    at = misses[0]
    return faults.SCHEDULE_DIFFERS.with_details(declared=declared).verdict(
        NAME,
        f"Declared: {declared}; the learning rate first differs at step {at}: {number(best[at])} instead of {number(expected[at])} "
        f"({len(misses)} of {n} steps are off).",
    )


def _declaration(intent: Intent) -> str:
    """The declared schedule in words."""
    parts = [f"a peak LR of {number(float(intent.peak_lr or 0.0))}"]
    if intent.schedule:
        parts.append(f"{intent.schedule} schedule")
    if intent.warmup_steps:
        parts.append(f"{plural(intent.warmup_steps, 'warm-up step')}")
    if intent.total_steps and intent.schedule == "linear":
        parts.append(f"{plural(intent.total_steps, 'step')} in total")
    return ", ".join(parts)


def _pace(best: Sequence[float], intent: Intent, peak: float) -> int | None:
    """How many times as fast as declared the schedule runs, if that explains the rates."""
    if max(best) < LEAST_HEIGHT * peak:
        return None  # rates next to zero fit any schedule that has ended
    fits: list[tuple[float, int]] = []
    for k in PACES:
        for shift in (0, 1, k - 1):  # a shift of one optimizer step is many steps of the schedule here
            expected = [intent.lr_at(k * i + shift) for i in range(len(best))]
            if len(_misses(best, expected, peak)) < min(LEAST_MISSES, len(best)):
                fits.append((math.fsum(abs(r - (e or 0.0)) for r, e in zip(best, expected, strict=True)), k))
    return min(fits)[1] if fits else None


def _steps_held(best: Sequence[float], intent: Intent, peak: float) -> int | None:
    """For how many steps each rate is held, if the schedule is stepped once per epoch."""
    changes = [i for i in range(1, len(best)) if abs(best[i] - best[i - 1]) > 1e-6 * peak]
    if not changes or len(changes) > (len(best) - 1) / 3:
        return None
    held = changes[0]
    even = all((i - held) % held == 0 for i in changes)
    declared = sum((intent.lr_at(i) or 0.0) != (intent.lr_at(i - 1) or 0.0) for i in range(1, len(best)))
    return held if even and held > 1 and declared > 0.5 * len(best) else None


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
    return tuple({"step": i, "LR": best[i], "declared": expected[i]} for i in shown)
