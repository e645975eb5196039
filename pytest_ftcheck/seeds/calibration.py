"""``--ftcheck-calibrate=N``: the statistics of healthy fine-tunes over many seeds, beside the thresholds. Nothing fails meanwhile."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core import events
from ..core.formatting import number, percent, plural, table
from ..core.verdict import WORST_FIRST, Verdict
from .runs import Runs, digest
from .sprt import CONFIDENCE
from .thresholds import Threshold, breaking_point, value_of

#: Percentiles shown beside the extreme value.
PERCENTILES = (0.05, 0.50, 0.95)
#: Statuses with a column of their own, in its order.
_COLUMNS = ("fail", "inconclusive", "advice")


@dataclass(frozen=True)
class ThresholdStatistic:
    """Where one threshold would have to be for each seed to just pass."""

    argument: str
    #: The value in force.
    threshold: float
    #: ``at least`` or ``at most``.
    sense: str
    #: What the statistic is.
    text: str
    #: One a seed; None: the threshold does not decide this seed.
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class CheckCalibration:
    """One check over the seeds of one fine-tune."""

    #: The check, with the arguments that the call gave.
    check: str
    #: Digest of the fine-tune under its first seed.
    run: str
    #: One a seed.
    statuses: tuple[str, ...]
    statistics: tuple[ThresholdStatistic, ...]


def gather(
    check: Callable[..., Verdict],
    runs: Runs,
    arguments: Sequence[Any] = (),
    options: Mapping[str, Any] | None = None,
    thresholds: Sequence[Threshold] = (),
) -> Verdict:
    """Judge every seed, notify the listener of the statistics, and return a skipped verdict.

    >>> from pytest_ftcheck import check_weights_move, example_trace
    >>> runs = Runs(lambda seed, steps: example_trace(notes=(str(seed),)), example_trace().recipe, 5, calibrating=True)
    >>> gather(check_weights_move, runs).headline
    'calibrating, so nothing fails: 5 seeds: 5 pass.'
    """
    options = dict(options or {})
    verdicts, seeds = [], range(len(runs))
    for i in seeds:
        verdicts.append(check(runs[i], *arguments, **options))
        if runs.identical:  # one run under several seeds
            verdicts, seeds = verdicts[:1], range(1)
            break
    name = verdicts[0].check
    given = [*(repr(a) for a in arguments), *(f"{k}={v!r}" for k, v in options.items())]
    calibration = CheckCalibration(
        check=f"{name}({', '.join(given)})" if given else name,
        run=digest(runs[0]),
        statuses=tuple(str(v.status) for v in verdicts),
        statistics=tuple(
            ThresholdStatistic(
                threshold.argument,
                value_of(threshold, check, options),
                threshold.sense,
                threshold.text,
                tuple(
                    None
                    if verdicts[i].status == "skipped"
                    else breaking_point(threshold, check, runs[i], arguments, options)
                    for i in seeds
                ),
            )
            for threshold in thresholds
        ),
    )
    if listener := events.current():
        listener.calibrated(calibration)
    counts = Counter(calibration.statuses)
    outcomes = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    return Verdict(name, "skipped", f"calibrating, so nothing fails: {plural(len(verdicts), 'seed')}: {outcomes}.")


def begin(runs: Runs, checks: Iterable[Callable[[Runs], Verdict]]) -> None:
    """From now on these runs are used for calibration only. Each of the checks is called at once, with its default arguments."""
    runs.calibrating = True
    for check in checks:
        check(runs)


# ------------------------------------------------------------------ tables
def report(calibrations: Iterable[CheckCalibration]) -> list[str]:
    """Two tables: how often healthy runs failed, and their statistics beside the thresholds."""
    single = {(c.run, c.check): c for c in calibrations}  # several workers of pytest-xdist may have made the same run
    if not single:
        return ["calibration: the fixture finetune made no fine-tune"]
    groups: dict[str, list[CheckCalibration]] = {}
    for calibration in single.values():
        groups.setdefault(calibration.check, []).append(calibration)
    seeds = {run: max(len(c.statuses) for c in single.values() if c.run == run) for run, _ in single}
    lines = [
        f"calibration: {plural(sum(seeds.values()), 'run')} of {plural(len(seeds), 'fine-tune')}, assumed to be healthy. "
        "No assertion on them raised."
    ]
    if once := sum(n == 1 for n in seeds.values()):
        lines.append(f"{plural(once, 'fine-tune')} counted once: all seeds gave the same measurements, bit for bit.")
    rows = [_failure_rates(check, [c.statuses for c in group]) for check, group in groups.items()]
    rows.append(_failure_rates("any of them", [_worst_of_each_seed(single.values(), run) for run in seeds]))
    skipped = [row["check"] for row in rows if not row["runs"]]
    lines += ["", f"false alarms (exact {percent(CONFIDENCE)} interval):"]
    lines += table([row for row in rows if row["runs"]])
    if skipped:
        lines.append(f"  skipped in every run: {', '.join(skipped)}")
    statistics = [row for check, group in groups.items() for row in _statistics(check, group)]
    if statistics:
        lines += ["", "statistics beside their thresholds (the value of the argument at which a run just passes):"]
        lines += table(statistics)
        most = max(row["runs"] for row in statistics)
        beyond = percent(1 - (1 - CONFIDENCE) ** (1 / most))
        lines.append(
            f"  suggested: the extreme run. At most {beyond} of other healthy runs lie beyond the extreme of {most} "
            f"({percent(CONFIDENCE)} confidence; Wilks 1941)."
        )
    return lines


def _worst_of_each_seed(calibrations: Iterable[CheckCalibration], run: str) -> tuple[str, ...]:
    """The worst status of each seed over all checks with their default arguments: the result of the suite as a whole."""
    statuses = [c.statuses for c in calibrations if c.run == run and "(" not in c.check]
    return tuple(min(seed, key=WORST_FIRST.index) for seed in zip(*statuses, strict=True))


def _failure_rates(check: str, statuses: Sequence[Sequence[str]]) -> dict[str, Any]:
    from scipy.stats import binomtest

    counts = Counter(status for of_run in statuses for status in of_run)
    judged = sum(n for status, n in counts.items() if status != "skipped")
    row: dict[str, Any] = {"check": check, "runs": judged}
    if judged:
        low, high = binomtest(counts["fail"], judged).proportion_ci(CONFIDENCE, method="exact")
        row.update({status: counts[status] for status in _COLUMNS})
        row["false alarms"] = f"{percent(counts['fail'] / judged)} ({percent(float(low))} to {percent(float(high))})"
    return row


def _statistics(check: str, group: Sequence[CheckCalibration]) -> Iterable[dict[str, Any]]:
    for i, statistic in enumerate(group[0].statistics):
        values = sorted(v for calibration in group for v in calibration.statistics[i].values if v is not None)
        if not values:
            continue
        threshold = statistic.threshold
        at_least = statistic.sense == "at least"
        extreme = values[0] if at_least else values[-1]
        statuses = [status for calibration in group for status in calibration.statuses]
        judged = sum(status != "skipped" for status in statuses)
        stopped = any(status in ("fail", "inconclusive") for status in statuses)
        beyond = stopped and (extreme < threshold if at_least else extreme > threshold)
        yield {
            "check": check,
            "statistic": statistic.text,
            "runs": len(values),
            **{f"{p:.0%}": number(percentile(values, p)) for p in PERCENTILES},
            "extreme": number(extreme),
            "threshold": f"{statistic.argument} {'>=' if at_least else '<='} {number(threshold)}",
            "suggested": f"no value helps {judged - len(values)} of {judged}"
            if beyond and len(values) < judged
            else f"{statistic.argument}={_lenient(statistic, extreme)}"
            if beyond
            else "keep",
        }


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values, between neighbours by linear interpolation.

    >>> percentile([1.0, 2.0, 3.0], 0.25)
    1.5
    """
    at = share * (len(values) - 1)
    low = math.floor(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def _lenient(statistic: ThresholdStatistic, value: float) -> str:
    """Two significant digits, rounded so that the value itself passes."""
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    rounded = (math.floor if statistic.sense == "at least" else math.ceil)(value / unit) * unit
    return f"{rounded:.2g}"
