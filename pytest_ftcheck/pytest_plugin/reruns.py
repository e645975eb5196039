"""Tests that pytest-rerunfailures ran again after a verdict: whether the verdict was the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..core.formatting import plural
from ..reports.session_result import ReportedVerdict
from .phase_report import PhaseReport

#: Start of the note of a verdict that the same seed gives again (`runs.repeatable`).
_REPEATABLE = "note: deterministic: "
#: The option of pytest-rerunfailures that excludes verdicts.
_EXCLUDE_VERDICTS = "--rerun-except=CheckFailed"


def describe_reruns(phases: Iterable[tuple[Any, PhaseReport | None]]) -> list[str]:
    """A line for each test that was run again after a verdict.

    :param phases: pytest's reports, each with what its phase concluded; None: nothing.

    >>> describe_reruns([])
    []
    """
    attempts: dict[tuple[str, str], dict[int, list[ReportedVerdict]]] = {}
    for report, phase in phases:
        number = getattr(report, "rerun", None)
        if number is not None and phase is not None and phase.verdicts:
            key = report.nodeid, getattr(report, "worker_id", "")
            attempts.setdefault(key, {}).setdefault(number, []).extend(phase.verdicts)
    return [_line(nodeid, list(runs.values())) for (nodeid, _), runs in sorted(attempts.items()) if len(runs) > 1]


def _line(nodeid: str, attempts: Sequence[Sequence[ReportedVerdict]]) -> str:
    outcomes = [[(v.check, v.status, v.headline) for v in verdicts] for verdicts in attempts]
    times = plural(len(attempts), "time")
    if all(outcome == outcomes[0] for outcome in outcomes):
        return f"{nodeid} ran {times} with the same verdict: rerunning does not help; {_EXCLUDE_VERDICTS} excludes it"
    statuses = ", then ".join("/".join(dict.fromkeys(status for _, status, _ in outcome)) for outcome in outcomes)
    seeded = any(_REPEATABLE in v.message for verdicts in attempts for v in verdicts)
    cause = (
        " though all random states were seeded: another test, a file or the clock has an influence" if seeded else ""
    )
    return f"{nodeid} ran {times} and its verdict changed ({statuses}){cause}; a pass after a failure is no pass"
