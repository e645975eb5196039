"""Tests that pytest-rerunfailures ran again: whether their verdicts changed, and what that means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .text import plural

#: Begins the note of a verdict that the same seed gives again (`runs.repeatable`).
_REPEATABLE = "note: deterministic: "
#: What keeps pytest-rerunfailures from it.
_CURE = "--rerun-except=CheckFailed"


def told(seen: Iterable[tuple[Any, Mapping[str, Any] | None]]) -> list[str]:
    """A line for each test that was run again after a verdict.

    :param seen: reports, each with what its phase concluded (`Phase.plain`); None: nothing.

    >>> told([])
    []
    """
    attempts: dict[tuple[str, str], dict[int, list[Mapping[str, Any]]]] = {}
    for report, carried in seen:
        number = getattr(report, "rerun", None)
        if number is not None and carried is not None and carried["verdicts"]:
            key = report.nodeid, getattr(report, "worker_id", "")
            attempts.setdefault(key, {}).setdefault(number, []).extend(carried["verdicts"])
    return [_line(nodeid, list(runs.values())) for (nodeid, _), runs in sorted(attempts.items()) if len(runs) > 1]


def _line(nodeid: str, runs: list[list[Mapping[str, Any]]]) -> str:
    told = [[(v["check"], v["status"], v["headline"]) for v in verdicts] for verdicts in runs]
    times = plural(len(runs), "time")
    if all(run == told[0] for run in told):
        return f"{nodeid} was run {times} and came to the same verdict each time: nothing is gained by it; {_CURE} leaves it out"
    statuses = ", then ".join("/".join(dict.fromkeys(status for _, status, _ in run)) for run in told)
    seeded = any(_REPEATABLE in v["message"] for verdicts in runs for v in verdicts)
    why = (
        "though all random states were seeded: something else differs (another test, a file, a clock)"
        if seeded
        else "between runs"
    )
    return f"{nodeid} was run {times} and its verdict changed ({statuses}) {why}; a pass after a failure is no pass"
