"""The section ``ftcheck`` at the end of pytest's output: what failed; with ``-v`` a table of all fine-tunes and every verdict; with ``-q``
one line.

It is as wide as the terminal (``COLUMNS``), coloured where pytest colours (``--color``, ``NO_COLOR``, ``PY_COLORS``, ``FORCE_COLOR``), and
in ASCII where the stream cannot print anything else.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from ..core import fail_level
from ..core.formatting import clean, columns, fit, padded, plural, printable
from ..core.verdict import BRIEF, WORST_FIRST
from ..reports.run_metrics import SummaryRow
from ..reports.session_result import ReportedVerdict
from .phase_report import PhaseReport

#: Colour of each status.
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "skipped": "yellow", "advice": "cyan"}
#: Starts of the lines of a message that are always shown, and of those that are shown with ``-v`` only.
_FIELDS = ("  cause: ", "  do: ", "  what would settle it: ")
_DETAILS = ("  limit: ", "  measured: ", "  note: ")
#: The check whose full explanation is printed with ``-v``.
EXPLAINED = "weights_move"
#: Explanations with a single ``-v``.
MOST_EXPLANATIONS = 3
#: Names of checks that a line lists; of more it has the number.
NAMES = 4
#: Columns of a terminal that is wide enough for the long curve; least columns of a name; most columns of running text.
WIDE, NAME, PROSE = 76, 12, 100

#: A pytest report, and what its phase concluded.
Phases = Sequence[tuple[Any, PhaseReport]]


def show(terminal: Any, phases: Sequence[tuple[Any, PhaseReport | None]], *, verbosity: int, messages: bool) -> None:
    """Print the section, if there is anything to report.

    :param terminal: pytest's terminal reporter.
    :param phases: pytest's reports, each with what its phase concluded; None: nothing.
    :param messages: print whole messages, because pytest's own failure report leaves them out.
    """
    ours = [(report, phase) for report, phase in phases if phase is not None]
    # a verdict that a passing test caught (``pytest.raises``), or an xfail expects, is not shown; a tolerated one is
    alarms = [
        (report, verdict)
        for report, phase in ours
        for verdict in phase.verdicts
        if (report.failed and verdict.blocking) or verdict.tolerated
    ]
    judged = sum(sum(verdict.counts.values()) for _, phase in ours for verdict in phase.verdicts)
    if not judged or not (alarms or verbosity > 0):
        return
    if verbosity < 0:
        _one_line(terminal, ours)
        return
    terminal.write_sep("=", "ftcheck")
    if verbosity > 0:
        _table_of_runs(terminal, ours)
        for report, phase in ours:
            for verdict in phase.verdicts:
                _verdict(terminal, report, verdict, verbosity, messages)
        _explanations(terminal, ours, all_runs=verbosity > 1)
    else:
        for report, verdict in alarms:
            _verdict(terminal, report, verdict, verbosity, messages)
        shown = sum(_alarming(verdict) for _, verdict in alarms)
        notes = [note for _, verdict in alarms for note in _deterministic(verdict)][:1]
        if left_out := _not_measured(ours):
            notes.append(f"not measured, in one fine-tune or more: {left_out}")
        counted = f"{shown:,} of {judged:,} verdicts; " if judged > shown else ""
        reasons = ", and why it was not measured" if left_out else ""
        notes.append(f"{counted}-v shows all of them, with limits and notes{reasons}")
        for piece in (piece for note in notes for piece in _pieces(note, _room(terminal), indent=2)):
            _write(terminal, piece)


def _one_line(terminal: Any, phases: Phases) -> None:
    counts = dict.fromkeys(WORST_FIRST, 0)
    for _, phase in phases:
        for verdict in phase.verdicts:
            for status, count in verdict.counts.items():
                counts[status] += count
    text = ", ".join(f"{count:,} {status}" for status, count in counts.items() if count)
    worst = next(status for status, count in counts.items() if count)
    _write(terminal, f"ftcheck: {text}", **{COLOURS[worst]: True})


def _deterministic(verdict: ReportedVerdict) -> list[str]:
    """The note that a rerun gives the same verdict; empty: it has none."""
    notes = (line.removeprefix("  note: ") for line in verdict.message.splitlines())
    return [note for note in notes if note.startswith("deterministic:")]


def _not_measured(phases: Phases) -> str:
    """Names of the checks that some fine-tune has no measurement for and no test asked for; of more than a few their number."""
    asked = {verdict.check for _, phase in phases for verdict in phase.verdicts}
    names = [n for n in dict.fromkeys(n for _, phase in phases for n in phase.not_measured) if n not in asked]
    return ", ".join(names) if len(names) <= NAMES else plural(len(names), "check")


def _alarming(verdict: ReportedVerdict) -> int:
    """How many of a check's verdicts were neither passes nor harmless."""
    statuses = {"fail", "inconclusive", *fail_level.LEVELS[fail_level.level()]}
    return sum(count for status, count in verdict.counts.items() if status in statuses)


# ------------------------------------------------------------------ fine-tunes
class _FineTune:
    """One run, and the tests that judged it: several, where they share a fixture."""

    def __init__(self, row: SummaryRow) -> None:
        self.row = row
        self.tests: dict[str, None] = {}
        self.statuses: set[str] = set()
        #: A test judged it by the check `EXPLAINED`.
        self.wants_explanation = False

    @property
    def name(self) -> str:
        first, *others = self.tests
        file = first.partition("::")[0]
        if not others:
            return first
        same_file = all(test.partition("::")[0] == file for test in others)
        return f"{file}: {len(self.tests):,} tests" if same_file else f"{first} and {len(others):,} more"

    @property
    def status(self) -> str:
        """The worst status of its tests' verdicts."""
        return min(self.statuses, key=WORST_FIRST.index, default="-")


def _fine_tunes(phases: Phases) -> list[_FineTune]:
    """Each run once, in the order in which they came, with the verdicts of all its tests."""
    found: dict[str, _FineTune] = {}
    for report, phase in phases:
        for run in phase.runs:
            if run.row is not None:
                key = repr((run.metrics.summary, run.metrics.metrics))  # NaN equals itself in a repr only
                found.setdefault(key, _FineTune(run.row)).tests[report.nodeid] = None
    for report, phase in phases:
        for fine_tune in found.values():
            if report.nodeid in fine_tune.tests:
                fine_tune.statuses |= {verdict.status for verdict in phase.verdicts}
                fine_tune.wants_explanation |= any(verdict.check == EXPLAINED for verdict in phase.verdicts)
    return list(found.values())


def _table_of_runs(terminal: Any, phases: Phases) -> None:
    """A row a fine-tune: the worst status of its tests, its name, loss and curve, how far the head moved."""
    width = _width(terminal)
    curve = 0 if width >= WIDE else 1
    runs = _fine_tunes(phases)
    names = [run.name for run in runs]
    names = [name if (k := names[:i].count(name) + 1) == 1 else f"{name} ({k})" for i, name in enumerate(names)]
    rows: list[tuple[str, ...]] = [
        (run.status, name, f"{run.row.steps:,}", run.row.loss, run.row.curves[curve], run.row.head)
        for name, run in zip(names, runs, strict=True)
    ]
    left_out = [phase.runs_left_out for _, phase in phases if phase.runs_left_out]
    rows += [("", f"... and {plural(count, 'more run')}", "", "", "", "") for count in left_out]
    if not rows:
        return
    titles = ("", "fine-tune", "steps", "loss", "", "head")
    right = (False, False, True, False, False, True)
    widths = [max(map(columns, column)) for column in zip(titles, *rows, strict=True)]
    # columns that a narrow terminal has no room for: the steps, then the curve, then the loss
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


def _explanations(terminal: Any, phases: Phases, *, all_runs: bool) -> None:
    """`explain_weight_motion` of the runs that a test judged by `EXPLAINED`; ``all_runs``: of every run."""
    width = min(_width(terminal), PROSE)
    runs = [run for run in _fine_tunes(phases) if run.row.explanation and (all_runs or run.wants_explanation)]
    shown = runs if all_runs else runs[:MOST_EXPLANATIONS]
    for run in shown:
        terminal.write_line("")
        _write(terminal, fit(f"Should the weights move more? {run.name}", width))
        for line in run.row.explanation:
            for piece in textwrap.wrap(line, width, initial_indent="  ", subsequent_indent=" " * 13):
                _write(terminal, piece)
    if left := len(runs) - len(shown):
        _write(terminal, f"\n... and of {left:,} more; -vv shows them")


# ------------------------------------------------------------------ verdicts
def _verdict(terminal: Any, report: Any, verdict: ReportedVerdict, verbosity: int, messages: bool) -> None:
    failed_the_test = report.failed and verdict.blocking
    if failed_the_test and messages:
        _status_line(terminal, verdict.status, f"{verdict.check}: {verdict.headline} - {report.nodeid}")
        for line in _details(verdict, _room(terminal), whole=verbosity > 0):
            _write(terminal, line)
        return
    remark = ""
    if verdict.tolerated:
        remark = "(tolerated) "
    elif verdict.blocking and not failed_the_test:
        remark = "(run again) " if report.outcome == "rerun" else "(expected) "
    text, test = f"{remark}{verdict.check}: {' '.join(verdict.summary.split())}", f" - {report.nodeid}"
    if not (failed_the_test or verdict.tolerated or verbosity > 1):  # one line, with room for the test
        room = _room(terminal) - len(verdict.status) - 1
        text, test = fit(text, max(room - columns(test), NAME)), fit(test, room - NAME)
    _status_line(terminal, verdict.status, text + test)


def _details(verdict: ReportedVerdict, width: int, *, whole: bool) -> list[str]:
    """The message without its headline, at most `BRIEF` lines; with ``whole`` all of it."""
    lines = verdict.message.splitlines()[1:]
    if whole:
        return [piece for line in lines for piece in _pieces(line, width, indent=4)]
    fields = [piece for line in lines if line.startswith(_FIELDS) for piece in _pieces(line, width, indent=4)]
    rows = [fit(line, width) for line in lines if not line.startswith((*_FIELDS, *_DETAILS))]
    return [*rows[: max(BRIEF - 1 - len(fields), 0)], *fields[: BRIEF - 1]]


def _status_line(terminal: Any, status: str, text: str) -> None:
    """The status in its colour, then the text, wrapped."""
    colour = COLOURS.get(status)
    _part(terminal, status, **({colour: True} if colour else {}))
    first, *rest = _pieces(f"{status} {' '.join(text.split())}", _room(terminal), indent=len(status) + 1)
    _write(terminal, first.removeprefix(status))
    for piece in rest:
        _write(terminal, piece)


def _pieces(text: str, width: int, *, indent: int) -> list[str]:
    if wide := columns(text) - len(text):  # characters of two columns: wrap earlier, wherever they are
        width = max(width * len(text) // (len(text) + wide) // 2, indent + 8)
    return textwrap.wrap(text, width, subsequent_indent=" " * indent, break_on_hyphens=False) or [""]


def _room(terminal: Any) -> int:
    """Columns of a line: as in pytest's own summary, a log that is read later is not wrapped to the width of a terminal."""
    return 10**6 if os.environ.get("CI") else _width(terminal)


# ------------------------------------------------------------------ the terminal
def _width(terminal: Any) -> int:
    """Usable columns: some terminals wrap when the last one is written."""
    return int(terminal.config.get_terminal_writer().fullwidth) - 1


def _part(terminal: Any, text: str, **markup: bool) -> None:
    terminal.write(_printable(terminal, text), **markup)


def _write(terminal: Any, text: str, **markup: bool) -> None:
    terminal.write_line(_printable(terminal, text), **markup)


def _printable(terminal: Any, text: str) -> str:
    # the writer's own stream: `sys.stdout` is another one while pytest captures
    stream = getattr(terminal.config.get_terminal_writer(), "_file", sys.stdout)
    return printable(clean(text), getattr(stream, "encoding", None))
