"""``--ftcheck-calibrate=N``: what healthy fine-tunes score over many seeds, beside the limits. Nothing is judged meanwhile."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..core import events
from ..core.formatting import number, percent, plural, table
from ..core.verdict import Verdict
from .runs import Runs, digest
from .sprt import CONFIDENCE
from .thresholds import Threshold, breaking_point, value_of

#: Percentiles that are told, beside the worst.
PERCENTILES = (0.05, 0.50, 0.95)
#: Statuses in the order in which they are told.
_TOLD = {"fail": "fail", "inconclusive": "cannot tell", "advice": "advise"}


def gather(
    check: Callable[..., Verdict],
    runs: Runs,
    arguments: Sequence[Any] = (),
    options: Mapping[str, Any] | None = None,
    thresholds: Sequence[Threshold] = (),
) -> Verdict:
    """Ask every seed, tell the listener what they said, and give a verdict that judges nothing.

    >>> from pytest_ftcheck import check_weights_move, example_trace
    >>> runs = Runs(lambda seed, steps: example_trace(notes=(str(seed),)), example_trace().recipe, 5, calibrating=True)
    >>> gather(check_weights_move, runs).headline
    'calibrating, so nothing is judged: of 5 seeds 5 pass.'
    """
    options = dict(options or {})
    verdicts, seeds = [], range(len(runs))
    for i in seeds:
        verdicts.append(check(runs[i], *arguments, **options))
        if runs.identical:  # one run by many names
            verdicts, seeds = verdicts[:1], range(1)
            break
    name = verdicts[0].check
    limits = [
        {
            "argument": limit.argument,
            "limit": value_of(limit, check, options),
            "sense": limit.sense,
            "text": limit.text,
            "values": [
                None if verdicts[i].status == "skipped" else breaking_point(limit, check, runs[i], arguments, options)
                for i in seeds
            ],
        }
        for limit in thresholds
    ]
    given = [*(repr(a) for a in arguments), *(f"{k}={v!r}" for k, v in options.items())]
    record = {
        "check": f"{name}({', '.join(given)})" if given else name,
        "run": digest(runs[0]),
        "statuses": [str(v.status) for v in verdicts],
        "limits": limits,
    }
    if told := events.current():
        told.calibrated(record)
    counts = Counter(str(v.status) for v in verdicts)
    said = ", ".join(f"{n} {_TOLD.get(s, s)}" for s, n in counts.most_common())
    return Verdict(name, "skipped", f"calibrating, so nothing is judged: of {plural(len(verdicts), 'seed')} {said}.")


def begin(runs: Runs, checks: Iterable[Callable[[Runs], Verdict]]) -> None:
    """From now on these runs are calibrated with, not judged; each of the checks is asked at once, as it stands without arguments."""
    runs.calibrating = True
    for check in checks:
        check(runs)


class Calibration:
    """A plugin of pytest's: gathers what the tests' reports carry, from this process or from xdist's workers, and prints it."""

    def __init__(self, attribute: str) -> None:
        self._attribute = attribute
        self._records: list[dict[str, Any]] = []

    def pytest_report_header(self) -> str:
        """Said first: a green session has judged nothing."""
        return "ftcheck: calibrating, so assertions on fine-tunes raise nothing"

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One phase of one test."""
        self._records += (getattr(report, self._attribute, None) or {}).get("calibrations", ())

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """All of it, even with -q: it is what was asked for."""
        terminalreporter.write_sep("=", "ftcheck calibration")
        for line in report(self._records):
            terminalreporter.write_line(line)


def report(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """All records as two tables: how often healthy runs failed, and where their statistics lie beside the limits."""
    single = {(r["run"], r["check"]): r for r in records}  # the workers of xdist may each have made the same run
    if not single:
        return ["calibration: no fine-tune of the fixture finetune was made"]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in single.values():
        groups.setdefault(record["check"], []).append(record)
    runs = {run: max(len(r["statuses"]) for r in single.values() if r["run"] == run) for run, _ in single}
    lines = [
        f"calibration: {plural(sum(runs.values()), 'run')} of {plural(len(runs), 'fine-tune')}, taken to be healthy. "
        "No assertion on them raised: this session judges nothing."
    ]
    if alone := sum(n == 1 for n in runs.values()):
        lines.append(
            f"{plural(alone, 'fine-tune')} counted once: the seed changes nothing there, measurements are the same bit for bit."
        )
    rows = [_rates(check, group) for check, group in groups.items()]
    rows.append(_rates("any of them", [_together(single.values(), run) for run in runs]))
    silent = [row["check"] for row in rows if not row["runs"]]
    lines += ["", f"false alarms (exact {percent(CONFIDENCE)} interval):"]
    lines += table([row for row in rows if row["runs"]])
    if silent:
        lines.append(f"  nothing to judge for {', '.join(silent)}")
    spread = [row for check, group in groups.items() for row in _spreads(check, group)]
    if spread:
        lines += ["", "statistics beside their limits (the value of the argument at which a run just passes):"]
        lines += table(spread)
        most = max(row["runs"] for row in spread)
        beyond = percent(1 - (1 - CONFIDENCE) ** (1 / most))
        lines.append(
            f"  suggested: the worst run. Of other healthy runs, {beyond} at most lie beyond the worst of {most} "
            f"({percent(CONFIDENCE)} confidence; Wilks 1941)."
        )
    return lines


def _together(records: Iterable[Mapping[str, Any]], run: str) -> dict[str, Any]:
    """The worst status of each seed over all checks as they stand: what the gate as a whole would have said."""
    mine = [r["statuses"] for r in records if r["run"] == run and "(" not in r["check"]]
    worst = ("fail", "inconclusive", "advice", "pass", "skipped")
    return {"statuses": [min(seed, key=worst.index) for seed in zip(*mine, strict=True)]}


def _rates(check: str, group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from scipy.stats import binomtest

    counts = Counter(status for record in group for status in record["statuses"])
    judged = sum(n for status, n in counts.items() if status != "skipped")
    row: dict[str, Any] = {"check": check, "runs": judged}
    if judged:
        low, high = binomtest(counts["fail"], judged).proportion_ci(CONFIDENCE, method="exact")
        row.update({told: counts[status] for status, told in _TOLD.items()})
        row["false alarms"] = f"{percent(counts['fail'] / judged)} ({percent(float(low))} to {percent(float(high))})"
    return row


def _spreads(check: str, group: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for i, limit in enumerate(group[0]["limits"]):
        values = sorted(v for record in group for v in record["limits"][i]["values"] if v is not None)
        if not values:
            continue
        bound = limit["limit"]
        least = limit["sense"] == "at least"
        worst = values[0] if least else values[-1]
        statuses = [status for record in group for status in record["statuses"]]
        judged = sum(status != "skipped" for status in statuses)
        stopped = any(status in ("fail", "inconclusive") for status in statuses)
        beyond = stopped and (worst < bound if least else worst > bound)
        yield {
            "check": check,
            "statistic": limit["text"],
            "runs": len(values),
            **{f"{p:.0%}": number(percentile(values, p)) for p in PERCENTILES},
            "worst": number(worst),
            "limit": f"{limit['argument']} {'>=' if least else '<='} {number(bound)}",
            "suggested": f"no value helps {judged - len(values)} of {judged}"
            if beyond and len(values) < judged
            else f"{limit['argument']}={_lenient(limit, worst)}"
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


def _lenient(limit: Mapping[str, Any], value: float) -> str:
    """Two significant digits, rounded so that the value itself passes."""
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    rounded = (math.floor if limit["sense"] == "at least" else math.ceil)(value / unit) * unit
    return f"{rounded:.2g}"
