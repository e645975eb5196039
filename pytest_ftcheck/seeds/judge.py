"""One check over several seeds: the verdict is that of Wald's test over the seeds' own verdicts."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.formatting import number, percent, plural
from ..core.trace import Trace
from ..core.verdict import Status, Verdict
from .calibration import gather
from .runs import LONGER, Runs
from .sprt import CONFIDENCE, Decision, SeedTest, seeds_to_claim
from .thresholds import Threshold, breaking_point, reserve, value_of

Check = Callable[..., Verdict]
#: So many seeds that cannot tell, even when run longer, end the test: more of the same will not tell either.
PATIENCE = 3
_PASSES, _COUNTS = ("pass", "advice"), ("pass", "advice", "fail")
#: The share of seeds that people want to hear of.
_WANTED = 0.95


@dataclass(frozen=True)
class Seen:
    """What one seed said."""

    seed: int
    verdict: Verdict
    #: What was judged: the run, or the longer one.
    trace: Trace
    longer: bool = False

    @property
    def status(self) -> str:
        """Of the seed's own verdict."""
        return self.verdict.status


@dataclass(frozen=True)
class Statistic:
    """A numeric limit of the check, and where it would have to be for each seed to just pass."""

    limit: Threshold
    bound: float
    #: One a seed; None: this limit does not decide it.
    values: tuple[float | None, ...]


def judge(
    check: Check, runs: Runs, arguments: Sequence[Any], options: Mapping[str, Any], thresholds: Sequence[Threshold] = ()
) -> Verdict:
    """The verdict of a check over seeds; bad arguments raise as they do over one trace.

    Seeds are trained one after the other until the test has decided (``seeds="auto"``), or all of them. A seed that cannot tell is run
    once more with twice the steps if ``max_seconds`` allows; if it still cannot, it counts for neither side. Nothing that is undecided
    in the end passes.

    >>> from pytest_ftcheck import check_weights_move, example_trace
    >>> runs = Runs(lambda seed, steps: example_trace(seconds=seed, notes=(str(seed),)), example_trace().recipe, "auto")
    >>> judge(check_weights_move, runs, (), {}).headline
    '3 of 3 seeds pass; nearest to its limit, seed 0: 4 of 4 tensors moved, by 25 % of their LR budget (rms, median).'
    """
    if runs.calibrating:
        return gather(check, runs, arguments, options, thresholds)
    test, seen, ended = SeedTest(), [look(check, runs, 0, arguments, options)], ""
    if seen[0].status == "skipped":
        return seen[0].verdict  # a matter of what was measured, not of luck
    for i in range(1, len(runs)):
        if not runs.affords(i):
            ended = f"max_seconds={runs.recipe.max_seconds:g} left no time for another seed"
            break
        seen.append(look(check, runs, i, arguments, options))
        if runs.identical:
            return _once(seen[0], runs)
        if runs.seeds != "auto":
            continue
        if test.decide(_outcomes(seen)):
            break
        if sum(s.status == "inconclusive" for s in seen) >= PATIENCE:
            ended = f"{PATIENCE} seeds cannot tell, so more will not"
            break
    return _conclude(runs, seen, _measured(check, seen, arguments, options, thresholds), test, ended)


def look(check: Check, runs: Runs, i: int, arguments: Sequence[Any], options: Mapping[str, Any]) -> Seen:
    """One seed's verdict, from a longer run where the first cannot tell."""
    trace = runs[i]
    verdict = check(trace, *arguments, **options)
    if verdict.status == "inconclusive" and (more := runs.longer(i)) is not None:
        return Seen(runs.seed(i), check(more, *arguments, **options), more, longer=True)
    return Seen(runs.seed(i), verdict, trace)


def _outcomes(seen: Sequence[Seen]) -> list[bool]:
    return [s.status in _PASSES for s in seen if s.status in _COUNTS]


def _measured(
    check: Check,
    seen: Sequence[Seen],
    arguments: Sequence[Any],
    options: Mapping[str, Any],
    thresholds: Sequence[Threshold],
) -> tuple[Statistic, ...]:
    return tuple(
        Statistic(
            limit,
            value_of(limit, check, options),
            tuple(
                None if s.status == "skipped" else breaking_point(limit, check, s.trace, arguments, options)
                for s in seen
            ),
        )
        for limit in thresholds
    )


def _once(first: Seen, runs: Runs) -> Verdict:
    note = (
        f"judged from seed {first.seed} alone: seed {runs.seed(1)} gave the very same measurements, bit for bit, so the seed changes "
        "nothing here and more of them say nothing more (no dropout, no shuffling, a module in place of a function that makes one)"
    )
    return dataclasses.replace(first.verdict, notes=(*first.verdict.notes, note, *_longer([first], runs)))


def _conclude(runs: Runs, seen: Sequence[Seen], found: Sequence[Statistic], test: SeedTest, ended: str) -> Verdict:
    outcomes, sequential = _outcomes(seen), runs.seeds == "auto"
    passes, failures = outcomes.count(True), outcomes.count(False)
    decision = test.decide(outcomes) if sequential else test.after(passes, failures)
    shown, nearest = _shown(seen, found)
    status: Status = decision or "inconclusive"
    if decision == "pass" and 2 * sum(s.status == "advice" for s in seen) > len(outcomes):
        status = "advice"
    mixed = decision is None and passes and failures
    causes = shown.verdict.causes
    if mixed:
        causes = (
            "whether this passes hangs on the seed: luck of the data order, of dropout or of the initial weights",
            *causes,
        )
    return dataclasses.replace(
        shown.verdict,
        status=status,
        headline=(
            f"{_tally(seen)}{'' if decision else ', which decides nothing'}{f' ({ended})' if ended and not decision else ''}; "
            f"{'nearest to its limit, ' if nearest else ''}seed {shown.seed}: {shown.verdict.headline}"
        ),
        causes=causes,
        remedy=shown.verdict.remedy if decision else _next(runs, seen, ended, shown),
        limit="; ".join(t for t in (_rule(test, runs, len(outcomes)), shown.verdict.limit) if t),
        fault=shown.verdict.fault if decision == "fail" else "",
        notes=(
            *shown.verdict.notes,
            *(told for s in found if (told := _spread(s, len(seen)))),
            *_claim(test, outcomes, decision, sequential=sequential),
            *_longer(seen, runs),
            *([f"from seed to seed differ: {', '.join(runs.varies)}"] if runs.varies else []),
        ),
    )


# ------------------------------------------------------------------ which seed is shown
def _shown(seen: Sequence[Seen], found: Sequence[Statistic]) -> tuple[Seen, bool]:
    """The seed whose verdict is told, the worst; and whether it is the one nearest to a limit."""
    failed = [s for s in seen if s.status == "fail"]
    if failed:  # of the fault that most of them have, the first
        common = Counter(s.verdict.fault for s in failed).most_common(1)[0][0]
        return next(s for s in failed if s.verdict.fault == common), False
    for status in ("inconclusive", *_PASSES, "skipped"):
        group = [i for i, s in enumerate(seen) if s.status == status]
        if group and status in _PASSES:
            group = [i for i, s in enumerate(seen) if s.status in _PASSES]
            distance = {i: d for i in group if (d := _distance(seen[i], i, found)) is not None}
            if distance:
                return seen[min(distance, key=lambda i: distance[i])], True
        if group:
            return seen[group[0]], False
    return seen[0], False


def _distance(seen: Seen, i: int, found: Sequence[Statistic]) -> float | None:
    """How far a passing seed is from its nearest limit; in no unit."""
    if seen.verdict.margin is not None:
        return seen.verdict.margin
    return min((reserve(s.limit, v, s.bound) for s in found if (v := s.values[i]) is not None), default=None)


# ------------------------------------------------------------------ texts
def _tally(seen: Sequence[Seen]) -> str:
    """``3 of 3 seeds pass``, ``2 of 3 seeds pass, 1 cannot tell``."""
    counts = Counter("pass" if s.status in _PASSES else s.status for s in seen)
    words = {
        "fail": ("fails", "fail"),
        "inconclusive": ("cannot tell",) * 2,
        "skipped": ("has nothing to judge", "have nothing to judge"),
    }
    main = "pass" if counts["pass"] or not counts["fail"] else "fail"
    one = {"pass": "passes", "fail": "fails"}[main]
    total = plural(len(seen), "seed")
    texts = [f"{counts[main]} of {total} {one if len(seen) == 1 else main}"]
    texts += [f"{counts[k]} {w[counts[k] > 1]}" for k, w in words.items() if counts[k] and k != main]
    return ", ".join(texts)


def _spread(found: Statistic, seeds: int) -> str:
    """Where the statistic lies over the seeds, beside its limit."""
    values = sorted(v for v in found.values if v is not None)
    if len(values) < 2:
        return ""
    told = f"{found.limit.text} over {plural(len(values), 'seed')}"
    if len(values) < seeds:
        told += f" of {seeds}"
    sign = ">=" if found.limit.sense == "at least" else "<="
    return (
        f"{told}: {number(values[0])} to {number(values[-1])}, median {number(statistics.median(values))} "
        f"({found.limit.argument} {sign} {number(found.bound)})"
    )


def _claim(test: SeedTest, outcomes: list[bool], decision: Decision | None, *, sequential: bool) -> list[str]:
    """What so many seeds can claim, and what they cannot."""
    if not outcomes:
        return []
    n, sure = plural(len(outcomes), "seed"), f"with {percent(CONFIDENCE)} confidence"
    tail = 1 - CONFIDENCE if decision else (1 - CONFIDENCE) / 2
    low, high = test.interval(outcomes, sequential=sequential, tail=tail)
    if decision == "pass":
        more = (
            f"; to say {percent(_WANTED)} takes {seeds_to_claim(_WANTED)} seeds without a failure"
            if low < _WANTED
            else ""
        )
        return [f"what {n} can claim, {sure}: this passes on {percent(low)} of all seeds or more{more}"]
    if decision == "fail":
        return [f"what {n} can claim, {sure}: this passes on {percent(high)} of all seeds at most"]
    return [f"what {n} can claim, {sure}: this passes on between {percent(low)} and {percent(high)} of all seeds"]


def _rule(test: SeedTest, runs: Runs, counted: int) -> str:
    """The test, and its error rates as they are."""
    if runs.seeds == "auto":
        name = "Wald's sequential test over seeds"
        wrong, missed = test.rates(test.healthy).failed, test.rates(test.faulty).passed
    else:
        name = f"Wald's bounds, looked at once, after {plural(counted, 'seed')}"
        wrong, missed = test.fixed(test.healthy, counted).failed, test.fixed(test.faulty, counted).passed
    return (
        f"{name}: a set-up that passes on {percent(test.healthy)} of them is failed {percent(wrong)} of the time, one that passes on "
        f"{percent(test.faulty)} is passed {percent(missed)} of the time"
    )


def _longer(seen: Sequence[Seen], runs: Runs) -> list[str]:
    """Which seeds were run longer, or why none could be."""
    again = [str(s.seed) for s in seen if s.longer]
    if again:
        seeds = f"seed{'s' * (len(again) > 1)} {', '.join(again)}"
        return [
            f"{seeds} could not tell after {runs.recipe.steps:,} steps and ran {LONGER * runs.recipe.steps:,} instead"
        ]
    if any(s.status == "inconclusive" for s in seen):
        why = runs.no_longer or "max_seconds left no time, or the run had ended early"
        return [f"no seed was run longer: {why}"]
    return []


def _next(runs: Runs, seen: Sequence[Seen], ended: str, shown: Seen) -> str:
    """What would settle it."""
    if "max_seconds" in ended:
        return f"give it more time: max_seconds above {runs.recipe.max_seconds:g}; {plural(len(seen), 'seed')} took {number(runs.spent)} s"
    if sum(s.status == "inconclusive" for s in seen) * 2 >= len(seen):
        return shown.verdict.remedy
    if runs.seeds != "auto":
        return f"seeds='auto' goes on until it is decided; {plural(len(runs), 'seed')} were asked for"
    return shown.verdict.remedy or f"look at seed {shown.seed}: what it lacks, others had by luck"
