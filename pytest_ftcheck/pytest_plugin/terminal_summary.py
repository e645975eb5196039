"""The section that pytest prints at its end: what was amiss; with ``-v`` every fine-tune in a table, and every verdict; with ``-q``
one line.

It is as wide as the terminal (``COLUMNS``), coloured where pytest colours (``--color``, ``NO_COLOR``, ``PY_COLORS``, ``FORCE_COLOR``), and
written in ASCII where the stream can print nothing else.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core import fail_level
from ..core.formatting import columns, fit, padded, plural, printable

#: How a status is coloured on a terminal.
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "skipped": "yellow", "advice": "cyan"}
#: From the worst to the plainest.
WORST_FIRST = ("fail", "inconclusive", "advice", "pass", "skipped")
#: The check that asks the founding question: whoever asks it is told the whole answer.
MOTION = "weights_move"
#: Narrower terminals get the short curve; columns that a name is left at least; columns of running text.
ROOMY, NAME, PROSE = 76, 12, 100
#: Answers to it with a single ``-v``: of a suite of models, more is noise.
ANSWERS = 3

#: A report, and what its phase concluded (`Phase.plain`).
Carried = tuple[Any, Mapping[str, Any]]


def show(
    terminal: Any, seen: Sequence[tuple[Any, Mapping[str, Any] | None]], *, verbosity: int, messages: bool
) -> None:
    """Print the section, if there is anything to say.

    :param terminal: pytest's terminal reporter.
    :param seen: reports, each with what its phase concluded; None: nothing.
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
    if verbosity < 0:
        _quietly(terminal, carried)
        return
    terminal.write_sep("=", "ftcheck")
    if verbosity > 0:
        _runs(terminal, carried)
        for report, phase in carried:
            for verdict in phase["verdicts"]:
                _verdict(terminal, report, verdict, verbosity, messages)
        _explained(terminal, carried, everything=verbosity > 1)
    else:
        for report, verdict in alarms:
            _verdict(terminal, report, verdict, verbosity, messages)
        bad = sum(_times(verdict, bad=True) for _, verdict in alarms)
        if judged > bad:
            _write(terminal, f"{bad:,} of {judged:,} verdicts; -v shows all of them")


def _quietly(terminal: Any, carried: Sequence[Carried]) -> None:
    count = dict.fromkeys(WORST_FIRST, 0)
    for _, phase in carried:
        for verdict in phase["verdicts"]:
            for status, times in verdict["counts"].items():
                count[status] += times
    told = ", ".join(f"{times:,} {status}" for status, times in count.items() if times)
    worst = next(status for status, times in count.items() if times)
    _write(terminal, f"ftcheck: {told}", **{COLOURS[worst]: True})


# ------------------------------------------------------------------ fine-tunes
def _runs(terminal: Any, carried: Sequence[Carried]) -> None:
    """A row a fine-tune: the worst that was said of the test, its name, loss and curve, how far the head came."""
    width = _width(terminal)
    curve = 0 if width >= ROOMY else 1
    runs = _fine_tunes(carried)
    names = [run.name for run in runs]
    names = [name if (k := names[:i].count(name) + 1) == 1 else f"{name} ({k})" for i, name in enumerate(names)]
    rows: list[tuple[str, ...]] = [
        (run.status, name, f"{run.seen['steps']:,}", run.seen["loss"], run.seen["curves"][curve], run.seen["head"])
        for name, run in zip(names, runs, strict=True)
    ]
    rows += [("", line, "", "", "", "") for _, phase in carried for line in phase["traces"] if line.startswith("...")]
    if not rows:
        return
    titles = ("", "fine-tune", "steps", "loss", "", "head")
    right = (False, False, True, False, False, True)
    widths = [max(map(columns, column)) for column in zip(titles, *rows, strict=True)]
    # what a narrow terminal has no room for: the steps, then the curve, then the loss
    shown = list(range(len(titles)))
    for spare in (2, 4, 3, None):
        room = width - sum(widths[i] + 2 for i in shown if i != 1)
        if room >= min(NAME, widths[1]) or spare is None:
            break
        shown.remove(spare)
    widths[1] = min(widths[1], max(room, 3))

    for k, row in enumerate((titles, *rows)):
        for i in shown:
            text = padded(fit(row[i], widths[i], keep="end"), widths[i], right=right[i])
            colour = COLOURS.get(row[0]) if i == 0 and k else None
            last = i == shown[-1]
            _part(terminal, text.rstrip() if last else f"{text}  ", **({colour: True} if colour else {}))
        terminal.write_line("")
    _write(terminal, fit("head: median share of the LR budget that the head's tensors used", width))
    terminal.write_line("")


class _FineTune:
    """One run, and who judged it: several tests, where a fixture is theirs together."""

    def __init__(self, seen: Mapping[str, Any]) -> None:
        self.seen = seen
        self.tests: dict[str, None] = {}
        self.statuses: set[str] = set()
        self.asked = False

    @property
    def name(self) -> str:
        first, *others = self.tests
        file = first.partition("::")[0]
        if not others:
            return first
        together = all(test.partition("::")[0] == file for test in others)
        return f"{file}: {len(self.tests):,} tests" if together else f"{first} and {len(others):,} more"

    @property
    def status(self) -> str:
        return min(self.statuses, key=WORST_FIRST.index, default="-")


def _fine_tunes(carried: Sequence[Carried]) -> list[_FineTune]:
    """Each run once, in the order in which they came, with what all its tests came to."""
    found: dict[str, _FineTune] = {}
    for report, phase in carried:
        for run in phase["runs"]:
            if "glance" in run:  # NaN equals itself in a repr only
                found.setdefault(repr((run["summary"], run["figures"])), _FineTune(run["glance"])).tests[
                    report.nodeid
                ] = None
    for report, phase in carried:
        for run in found.values():
            if report.nodeid in run.tests:
                run.statuses |= {verdict["status"] for verdict in phase["verdicts"]}
                run.asked = run.asked or any(verdict["check"] == MOTION for verdict in phase["verdicts"])
    return list(found.values())


def _explained(terminal: Any, carried: Sequence[Carried], *, everything: bool) -> None:
    """The founding question's answer, for runs of which it was asked; ``everything``: for every run."""
    width = min(_width(terminal), PROSE)
    runs = [run for run in _fine_tunes(carried) if run.seen["explanation"] and (everything or run.asked)]
    shown = runs if everything else runs[:ANSWERS]
    for run in shown:
        terminal.write_line("")
        _write(terminal, fit(f"Should the weights move more? {run.name}", width))
        for line in run.seen["explanation"]:
            for piece in textwrap.wrap(line, width, initial_indent="  ", subsequent_indent=" " * 13):
                _write(terminal, piece)
    if left := len(runs) - len(shown):
        _write(terminal, f"\n... and of {left:,} more; -vv shows them")


# ------------------------------------------------------------------ verdicts
def _verdict(terminal: Any, report: Any, verdict: Mapping[str, Any], verbosity: int, messages: bool) -> None:
    news = report.failed and verdict["gated"]
    if news and messages:
        _line(terminal, verdict["status"], report.nodeid, verbosity, cut=False)
        width = 10**6 if os.environ.get("CI") else _width(terminal)
        for line in verdict["message"].splitlines():
            short = columns(line) + 2 <= width  # a table's row, above all
            for piece in [f"  {line}"] if short else textwrap.wrap(f"  {line}", width, subsequent_indent=" " * 6):
                _write(terminal, piece)
        return
    again = "(run again) " if report.outcome == "rerun" else "(expected) "
    how = "(let through) " if _let_through(verdict) else "" if news or not verdict["gated"] else again
    text = f"{report.nodeid} - {how}{verdict['check']}: {verdict['told']}"
    _line(terminal, verdict["status"], text, verbosity)


def _line(terminal: Any, status: str, text: str, verbosity: int, *, cut: bool = True) -> None:
    text = text.splitlines()[0]
    # as pytest does for its own summary: a log that is read later is not cut to the width of a terminal
    if cut and verbosity < 2 and not os.environ.get("CI"):
        text = fit(text, _width(terminal) - len(status) - 1)
    colour = COLOURS.get(status)
    _part(terminal, status, **({colour: True} if colour else {}))
    _write(terminal, f" {text}")


def _width(terminal: Any) -> int:
    """Columns to write in: some terminals wrap when the last one is written."""
    return int(terminal.config.get_terminal_writer().fullwidth) - 1


def _part(terminal: Any, text: str, **markup: bool) -> None:
    terminal.write(_printable(terminal, text), **markup)


def _write(terminal: Any, text: str, **markup: bool) -> None:
    terminal.write_line(_printable(terminal, text), **markup)


def _printable(terminal: Any, text: str) -> str:
    # the writer's stream, which is another one than `sys.stdout` while pytest captures
    stream = getattr(terminal.config.get_terminal_writer(), "_file", sys.stdout)
    return printable(text, getattr(stream, "encoding", None))


def _let_through(verdict: Mapping[str, Any]) -> bool:
    """It could not be decided, and the session lets that through."""
    return not verdict["ok"] and not verdict["gated"]


def _times(verdict: Mapping[str, Any], *, bad: bool = False) -> int:
    """How many verdicts one line stands for; ``bad``: how many of those are no pass, or made a test fail."""
    counts: dict[str, int] = verdict["counts"]
    statuses = {"fail", "inconclusive", *fail_level.LEVELS[fail_level.level()]}
    return sum(n for status, n in counts.items() if not bad or status in statuses)


# ---- folded from reruns
#: Begins the note of a verdict that the same seed gives again (`runs.repeatable`).
_REPEATABLE = "note: deterministic: "
#: What keeps pytest-rerunfailures from it.
_CURE = "--rerun-except=CheckFailed"


def reruns(seen: Iterable[tuple[Any, Mapping[str, Any] | None]]) -> list[str]:
    """A line for each test that was run again after a verdict.

    :param seen: reports, each with what its phase concluded (`Phase.plain`); None: nothing.

    >>> reruns([])
    []
    """
    attempts: dict[tuple[str, str], dict[int, list[Mapping[str, Any]]]] = {}
    for report, carried in seen:
        number = getattr(report, "rerun", None)
        if number is not None and carried is not None and carried["verdicts"]:
            key = report.nodeid, getattr(report, "worker_id", "")
            attempts.setdefault(key, {}).setdefault(number, []).extend(carried["verdicts"])
    return [_rerun_line(nodeid, list(runs.values())) for (nodeid, _), runs in sorted(attempts.items()) if len(runs) > 1]


def _rerun_line(nodeid: str, runs: list[list[Mapping[str, Any]]]) -> str:
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
