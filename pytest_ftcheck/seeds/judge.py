"""One check over several seeds: Wald's sequential test over the verdicts of the seeds."""

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
#: This many seeds that are inconclusive, even when run longer, end the test: more seeds will not help.
MOST_INCONCLUSIVE = 3
_PASSING, _COUNTED = ("pass", "advice"), ("pass", "advice", "fail")
#: Share of seeds that a claim is usually wanted for.
_USUAL_CLAIM = 0.95


@dataclass(frozen=True)
class SeedVerdict:
    """The verdict of one seed."""

    seed: int
    verdict: Verdict
    #: The judged run: the first one, or the longer one.
    trace: Trace
    longer: bool = False

    @property
    def status(self) -> str:
        """Status of the seed's own verdict."""
        return self.verdict.status


@dataclass(frozen=True)
class Statistic:
    """A threshold of the check, and where it would have to be for each seed to just pass."""

    threshold: Threshold
    #: The value in force.
    in_force: float
    #: One a seed; None: the threshold does not decide this seed.
    values: tuple[float | None, ...]


def judge(
    check: Check, runs: Runs, arguments: Sequence[Any], options: Mapping[str, Any], thresholds: Sequence[Threshold] = ()
) -> Verdict:
    """The verdict of a check over seeds; invalid arguments raise as they do for one trace.

    With ``seeds="auto"`` seeds are trained one after the other until the test has decided, else all of them are. An inconclusive seed is
    run once more with twice the steps, if ``max_seconds`` allows it. If it is still inconclusive, it counts for neither side. A test that
    has not decided in the end is no pass.

    >>> from pytest_ftcheck import check_weights_move, example_trace
    >>> runs = Runs(lambda seed, steps: example_trace(seconds=seed, notes=(str(seed),)), example_trace().recipe, "auto")
    >>> judge(check_weights_move, runs, (), {}).headline
    '3 of 3 seeds pass; seed 0: 4 of 4 tensors moved, by 25 % of their LR budget (rms, median).'
    """
    if runs.calibrating:
        return gather(check, runs, arguments, options, thresholds)
    test, judged, ended = SeedTest(), [judge_seed(check, runs, 0, arguments, options)], ""
    if judged[0].status == "skipped":
        return judged[0].verdict  # other seeds measure the same
    for i in range(1, len(runs)):
        if not runs.affords(i):
            ended = f"max_seconds={runs.recipe.max_seconds:g} left no time for another seed"
            break
        judged.append(judge_seed(check, runs, i, arguments, options))
        if runs.identical:
            runs.cancel()
            return _from_one_seed(judged[0], runs)
        if runs.seeds != "auto":
            continue
        if test.decide(_outcomes(judged)):
            break
        if sum(s.status == "inconclusive" for s in judged) >= MOST_INCONCLUSIVE:
            ended = f"{MOST_INCONCLUSIVE} seeds are inconclusive, and more will not help"
            break
    runs.cancel()
    return _conclude(runs, judged, _statistics(check, judged, arguments, options, thresholds), test, ended)


def judge_seed(check: Check, runs: Runs, i: int, arguments: Sequence[Any], options: Mapping[str, Any]) -> SeedVerdict:
    """One seed's verdict, from a longer run where the first is inconclusive."""
    trace = runs[i]
    verdict = check(trace, *arguments, **options)
    # more steps measure no more
    undecided = verdict.status == "inconclusive" and not verdict.unmeasured
    if undecided and (longer := runs.longer(i)) is not None:
        return SeedVerdict(runs.seed(i), check(longer, *arguments, **options), longer, longer=True)
    return SeedVerdict(runs.seed(i), verdict, trace)


def _outcomes(judged: Sequence[SeedVerdict]) -> list[bool]:
    return [s.status in _PASSING for s in judged if s.status in _COUNTED]


def _statistics(
    check: Check,
    judged: Sequence[SeedVerdict],
    arguments: Sequence[Any],
    options: Mapping[str, Any],
    thresholds: Sequence[Threshold],
) -> tuple[Statistic, ...]:
    return tuple(
        Statistic(
            threshold,
            value_of(threshold, check, options),
            tuple(
                None if s.status == "skipped" else breaking_point(threshold, check, s.trace, arguments, options)
                for s in judged
            ),
        )
        for threshold in thresholds
    )


def _from_one_seed(first: SeedVerdict, runs: Runs) -> Verdict:
    note = (
        f"judged from seed {first.seed} alone: seed {runs.seed(1)} gave identical measurements, bit for bit, so the seed has no influence "
        "(no dropout, no shuffling, a module in place of a function that makes one)"
    )
    return dataclasses.replace(first.verdict, notes=(*first.verdict.notes, note, *_longer([first], runs)))


def _conclude(
    runs: Runs, judged: Sequence[SeedVerdict], statistics_: Sequence[Statistic], test: SeedTest, ended: str
) -> Verdict:
    outcomes, sequential = _outcomes(judged), runs.seeds == "auto"
    passes, failures = outcomes.count(True), outcomes.count(False)
    decision = test.decide(outcomes) if sequential else test.after(passes, failures)
    shown, is_nearest = _shown(judged, statistics_)
    status: Status = decision or "inconclusive"
    if decision == "pass" and 2 * sum(s.status == "advice" for s in judged) > len(outcomes):
        status = "advice"
    causes = shown.verdict.causes
    if decision is None and passes and failures:
        causes = ("the result depends on the seed: data order, dropout or initial weights", *causes)
    undecided = "" if decision else f", which is inconclusive{f' ({ended})' if ended else ''}"
    nearest = "nearest to its limit, " if is_nearest else ""
    return dataclasses.replace(
        shown.verdict,
        status=status,
        headline=f"{_tally(judged)}{undecided}; {nearest}seed {shown.seed}: {shown.verdict.headline}",
        causes=causes,
        remedy=shown.verdict.remedy if decision else _remedy(runs, judged, ended, shown),
        limit="; ".join(t for t in (_rule(test, runs, len(outcomes)), shown.verdict.limit) if t),
        fault=shown.verdict.fault if decision == "fail" else "",
        notes=(
            *shown.verdict.notes,
            *(text for s in statistics_ if (text := _spread(s, len(judged)))),
            *_claim(test, outcomes, decision, sequential=sequential),
            *_longer(judged, runs),
            *([f"different from seed to seed: {', '.join(runs.varies)}"] if runs.varies else []),
        ),
    )


# ------------------------------------------------------------------ which seed is shown
def _shown(judged: Sequence[SeedVerdict], statistics_: Sequence[Statistic]) -> tuple[SeedVerdict, bool]:
    """The seed whose verdict is shown: the worst one; and whether it is the one nearest to a limit."""
    failed = [s for s in judged if s.status == "fail"]
    if failed:  # the first seed with the most common fault
        common = Counter(s.verdict.fault for s in failed).most_common(1)[0][0]
        return next(s for s in failed if s.verdict.fault == common), False
    for status in ("inconclusive", *_PASSING, "skipped"):
        group = [i for i, s in enumerate(judged) if s.status == status]
        if group and status in _PASSING:
            group = [i for i, s in enumerate(judged) if s.status in _PASSING]
            distances = {i: d for i in group if (d := _distance(judged[i], i, statistics_)) is not None}
            if distances:
                return judged[min(distances, key=lambda i: distances[i])], True
        if group:
            return judged[group[0]], False
    return judged[0], False


def _distance(judged: SeedVerdict, i: int, statistics_: Sequence[Statistic]) -> float | None:
    """How far a passing seed is from its nearest limit, without unit."""
    if judged.verdict.margin is not None:
        return judged.verdict.margin
    return min(
        (reserve(s.threshold, value, s.in_force) for s in statistics_ if (value := s.values[i]) is not None),
        default=None,
    )


# ------------------------------------------------------------------ texts
def _tally(judged: Sequence[SeedVerdict]) -> str:
    """``3 of 3 seeds pass``, ``2 of 3 seeds pass, 1 is inconclusive``."""
    counts = Counter("pass" if s.status in _PASSING else s.status for s in judged)
    verbs = {
        "fail": ("fails", "fail"),
        "inconclusive": ("is inconclusive", "are inconclusive"),
        "skipped": ("is skipped", "are skipped"),
    }
    main = "pass" if counts["pass"] or not counts["fail"] else "fail"
    singular = {"pass": "passes", "fail": "fails"}[main]
    total = plural(len(judged), "seed")
    texts = [f"{counts[main]} of {total} {singular if len(judged) == 1 else main}"]
    texts += [f"{counts[s]} {verb[counts[s] > 1]}" for s, verb in verbs.items() if counts[s] and s != main]
    return ", ".join(texts)


def _spread(statistic: Statistic, seeds: int) -> str:
    """The range of the statistic over the seeds, beside its threshold."""
    values = sorted(v for v in statistic.values if v is not None)
    if len(values) < 2:
        return ""
    over = f"{plural(len(values), 'seed')}{f' of {seeds}' if len(values) < seeds else ''}"
    sign = ">=" if statistic.threshold.sense == "at least" else "<="
    return (
        f"{statistic.threshold.text} over {over}: {number(values[0])} to {number(values[-1])}, "
        f"median {number(statistics.median(values))} ({statistic.threshold.argument} {sign} {number(statistic.in_force)})"
    )


def _claim(test: SeedTest, outcomes: list[bool], decision: Decision | None, *, sequential: bool) -> list[str]:
    """The share of seeds on which this passes, with confidence bounds."""
    if not outcomes:
        return []
    start = f"with {percent(CONFIDENCE)} confidence from {plural(len(outcomes), 'seed')}"
    tail = 1 - CONFIDENCE if decision else (1 - CONFIDENCE) / 2
    low, high = test.interval(outcomes, sequential=sequential, tail=tail)
    if decision == "pass":
        needed = f"{seeds_to_claim(_USUAL_CLAIM)} seeds without a failure"
        more = f"; a claim of {percent(_USUAL_CLAIM)} needs {needed}" if low < _USUAL_CLAIM else ""
        return [f"{start}: this passes on at least {percent(low)} of all seeds{more}"]
    if decision == "fail":
        return [f"{start}: this passes on at most {percent(high)} of all seeds"]
    return [f"{start}: this passes on {percent(low)} to {percent(high)} of all seeds"]


def _rule(test: SeedTest, runs: Runs, counted: int) -> str:
    """The test, and its exact error rates."""
    if runs.seeds == "auto":
        name = "Wald's sequential test over seeds"
        wrong, missed = test.rates(test.healthy).failed, test.rates(test.faulty).passed
    else:
        name = f"Wald's bounds, evaluated once after {plural(counted, 'seed')}"
        wrong, missed = test.fixed(test.healthy, counted).failed, test.fixed(test.faulty, counted).passed
    return (
        f"{name}: a setup that passes on {percent(test.healthy)} of seeds fails {percent(wrong)} of the time, one that passes on "
        f"{percent(test.faulty)} of seeds passes {percent(missed)} of the time"
    )


def _longer(judged: Sequence[SeedVerdict], runs: Runs) -> list[str]:
    """Which seeds were run longer, or why none could be."""
    longer = [str(s.seed) for s in judged if s.longer]
    if longer:
        seeds, were = ("seeds", "were") if len(longer) > 1 else ("seed", "was")
        steps = runs.recipe.steps
        return [
            f"{seeds} {', '.join(longer)} {were} inconclusive after {steps:,} steps and ran {LONGER * steps:,} instead"
        ]
    if any(s.status == "inconclusive" and not s.verdict.unmeasured for s in judged):
        return [f"no seed was run longer: {runs.no_longer or 'max_seconds left no time, or the run had ended early'}"]
    return []


def _remedy(runs: Runs, judged: Sequence[SeedVerdict], ended: str, shown: SeedVerdict) -> str:
    """What would lead to a decision."""
    if "max_seconds" in ended:
        seeds = plural(len(judged), "seed")
        return f"raise max_seconds above {runs.recipe.max_seconds:g}; {seeds} took {number(runs.spent)} s"
    if sum(s.status == "inconclusive" for s in judged) * 2 >= len(judged):
        return shown.verdict.remedy
    if runs.seeds != "auto":
        return f"use seeds='auto', which goes on until the test decides, in place of {plural(len(runs), 'seed')}"
    return shown.verdict.remedy or f"compare seed {shown.seed} with the seeds that passed"
