"""The section that pytest prints at its end: what was amiss, or everything with ``-v``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from . import gate

#: How a status is coloured on a terminal.
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "skipped": "yellow", "advice": "cyan"}


def show(
    terminal: Any, seen: Sequence[tuple[Any, Mapping[str, Any] | None]], *, verbosity: int, messages: bool
) -> None:
    """Print the section, if there is anything to say.

    :param terminal: pytest's terminal reporter.
    :param seen: reports, each with what its phase concluded (`Phase.plain`); None: nothing.
    :param messages: whole messages, because pytest's own report of the failure leaves them out.
    """
    carried = [(report, phase) for report, phase in seen if phase is not None]
    # a verdict that a passing test caught (``pytest.raises``), or an xfail expects, is no news; one let through is
    alarms = [
        (report, verdict)
        for report, phase in carried
        for verdict in phase["verdicts"]
        if (report.failed and verdict["gated"]) or _let_through(verdict)
    ]
    judged = sum(_times(verdict) for _, phase in carried for verdict in phase["verdicts"])
    if not judged or not (alarms or verbosity > 0):
        return
    terminal.write_sep("=", "ftcheck")
    if verbosity > 0:
        for report, phase in carried:
            for line in phase["traces"]:
                _line(terminal, "trace", f"{report.nodeid} - {line}", verbosity)
            for verdict in phase["verdicts"]:
                _verdict(terminal, report, verdict, verbosity, messages)
    else:
        for report, verdict in alarms:
            _verdict(terminal, report, verdict, verbosity, messages)
        bad = sum(_times(verdict, bad=True) for _, verdict in alarms)
        if judged > bad:
            terminal.write_line(f"{bad:,} of {judged:,} verdicts; -v shows all of them")


def _verdict(terminal: Any, report: Any, verdict: Mapping[str, Any], verbosity: int, messages: bool) -> None:
    news = report.failed and verdict["gated"]
    if news and messages:
        _line(terminal, verdict["status"], report.nodeid, verbosity, fit=False)
        for line in verdict["message"].splitlines():
            terminal.write_line(f"  {line}")
        return
    again = "(run again) " if report.outcome == "rerun" else "(expected) "
    how = "(let through) " if _let_through(verdict) else "" if news or not verdict["gated"] else again
    text = f"{report.nodeid} - {how}{verdict['check']}: {verdict['told']}"
    _line(terminal, verdict["status"], text, verbosity)


def _line(terminal: Any, status: str, text: str, verbosity: int, *, fit: bool = True) -> None:
    text = text.splitlines()[0]
    # as pytest does for its own summary: a log that is read later is not cut to the width of a terminal
    width = terminal.config.get_terminal_writer().fullwidth - 1 - len(status) - 1
    if fit and len(text) > width and verbosity < 2 and not os.environ.get("CI"):
        text = text[: max(0, width - 3)] + "..."
    colour = COLOURS.get(status)
    terminal.write(status, **({colour: True} if colour else {}))
    terminal.write_line(f" {text}")


def _let_through(verdict: Mapping[str, Any]) -> bool:
    """It could not be decided, and the session lets that through."""
    return not verdict["ok"] and not verdict["gated"]


def _times(verdict: Mapping[str, Any], *, bad: bool = False) -> int:
    """How many verdicts one line stands for; ``bad``: how many of those are no pass, or made a test fail."""
    counts: dict[str, int] = verdict["counts"]
    statuses = {"fail", "inconclusive", *gate.LEVELS[gate.level()]}
    return sum(n for status, n in counts.items() if not bad or status in statuses)
