"""GitHub Actions: annotations at the user's line, and a Markdown job summary.

Formats: docs.github.com, "Workflow commands for GitHub Actions". A step shows 10 annotations of a level and keeps a summary of 1 MiB.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..core.files import append
from ..core.formatting import clean, number, one_line, plural, shorten
from .run_metrics import CLOCK
from .session_result import LEVELS, CaseResult, Finding, RunMetrics, SessionResult

#: Annotations of one level that a step shows.
MOST = 10
#: Characters of an annotation's title and text.
TITLE, TEXT = 120, 4_000
#: Bytes of summary that one step may have.
SUMMARY = 1024 * 1024
#: Characters of a name, and of a message, in the summary.
NAME, MESSAGE = 160, 8_000
#: Rows of a table.
ROWS = 200

_CUT = "\n... and more, left out because a summary may have 1 MiB at most\n"


# ------------------------------------------------------------------ annotations
def workflow_commands(result: SessionResult, prefix: str = "") -> list[str]:
    """The workflow commands that annotate the lines of the findings, the worst first.

    :param prefix: folder of pytest's root within the repository, ``"sub/"``.

    >>> workflow_commands(SessionResult())
    []
    """
    names = {"error": "error", "warning": "warning", "note": "notice"}
    lines = []
    for level in LEVELS:
        found = [f for f in result.findings if f.level == level]
        lines += [_annotation(names[level], f, result, prefix) for f in found[:MOST]]
        if len(found) > MOST:
            lines.append(f"ftcheck: {len(found) - MOST:,} more of level {level}; GitHub shows {MOST} a step")
    return lines


def _annotation(command: str, finding: Finding, result: SessionResult, prefix: str) -> str:
    verdict = finding.verdict
    file, line = finding.place
    where = [f"file={_property(_spelled(prefix + (file or result.configuration or '.')))}", f"line={line}"]
    title = one_line(f"{verdict.check}: {verdict.status}, {finding.case.nodeid}", TITLE)
    text = verdict.message or f"{verdict.check}: {verdict.status}. {verdict.summary}"
    if finding.level == "warning":
        text = f"Tolerated (--ftcheck-fail-on={result.fail_on}): {text}"
    return f"::{command} {','.join([*where, f'title={_property(title)}'])}::{_data(shorten(_spelled(text), TEXT))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _spelled(text: str) -> str:
    """Foreign text of bounded length; lines stay lines."""
    return clean(shorten(text, 20 * TEXT))


# ------------------------------------------------------------------ job summary
def append_summary(result: SessionResult, path: Path) -> str:
    """Append the summary to the step's file, within the step's remaining size; returns a line for the terminal.

    :raises OSError: the file cannot be written.  :raises ValueError: it is no regular file.
    """
    before = path.stat().st_size if path.exists() else 0
    room = SUMMARY - before
    text = summary(result, room)
    if not text:
        raise OSError(f"the step's summary is full ({before:,} bytes)")
    append(path, text)
    return "job summary appended"


def summary(result: SessionResult, room: int = SUMMARY) -> str:
    """The session in Markdown.

    :param room: size limit in bytes; the least important is left out first. The result is empty where nothing fits.

    >>> print(summary(SessionResult()))
    ## ftcheck: no check was run
    <BLANKLINE>
    """
    text, left = "", room - len(_CUT.encode())
    for block in _blocks(result):
        size = len(block.encode("utf-8", "backslashreplace"))
        if size > left:
            return text + _CUT if text else ""
        text, left = text + block, left - size
    return text


def _blocks(result: SessionResult) -> Iterator[str]:
    """Blocks, each readable without those that follow."""
    findings = result.findings
    yield f"## ftcheck: {_headline(result)}\n"
    if findings:
        rows = [[f.verdict.status, _case(f.case), _code(f.verdict.check), _text(_finding(f, result))] for f in findings]
        yield from _table(("status", "test", "check", "finding"), rows)
    if result.broken:
        yield f"\n{plural(len(result.broken), 'test')} failed without a failed check:\n"
        rows = [[c.outcome, _case(c), _text(c.reason)] for c in result.broken]
        yield from _table(("outcome", "test", "reason"), rows)
    if runs := _runs(result):
        yield "\n### Runs\n"
        yield from _table(("test", "steps", "loss", "loss of fixed rows", "metric", "time"), runs)
    errors = [f for f in findings if f.level != "note"]
    if errors:
        yield "\n### Messages\n"
    for finding in errors:
        title = f"{_case(finding.case)}: {_code(finding.verdict.check)}"
        yield f"\n<details><summary>{title}</summary>\n\n{_fenced(finding.verdict.message)}\n</details>\n"


def _runs(result: SessionResult) -> list[list[str]]:
    """A row for each run; a run that several tests judged has one row."""
    cases_of: dict[str, tuple[RunMetrics, list[CaseResult]]] = {}
    for case in result.tests:
        for run in case.runs:
            # trained by several xdist workers it is the same run; only times differ
            same = repr(sorted((name, value) for name, value in run.metrics.items() if name not in CLOCK))
            cases_of.setdefault(same, (run, []))[1].append(case)
    rows = []
    for run, cases in cases_of.values():
        numbers = run.metrics
        metrics = [
            n[len("metric.") : -len(".final")] for n in numbers if n.startswith("metric.") and n.endswith(".final")
        ]
        more = f" and {len(cases) - 1:,} more" if len(cases) > 1 else ""
        rows.append(
            [
                _case(cases[0]) + more,
                f"{numbers.get('steps', 0):,.0f}",
                _span(numbers, "loss"),
                _span(numbers, "probe"),
                _text(", ".join(f"{m} {_span(numbers, f'metric.{m}')}" for m in metrics)),
                f"{number(numbers['seconds'])} s" if "seconds" in numbers else "",
            ]
        )
    return rows


def _headline(result: SessionResult) -> str:
    counts = result.counts
    judged = sum(counts.values())
    interrupted = ", interrupted" if result.exit_status == 2 else ""
    if not judged:
        broken = f"; {plural(len(result.broken), 'test')} failed" if result.broken else ""
        return f"no check was run{broken}{interrupted}"
    counted = ", ".join(f"{count:,} {status}" for status, count in counts.items())
    return f"{plural(judged, 'verdict')} in {plural(len(result.tests), 'test')}: {counted}{interrupted}"


def _finding(finding: Finding, result: SessionResult) -> str:
    text = finding.verdict.summary
    if finding.level == "warning":
        return f"(tolerated: --ftcheck-fail-on={result.fail_on}) {text}"
    return f"{text}{'' if text.endswith('.') else '.'} Do: {finding.verdict.remedy}" if finding.verdict.remedy else text


def _span(metrics: dict[str, float], name: str) -> str:
    first, last = metrics.get(f"{name}.initial"), metrics.get(f"{name}.final")
    return "" if first is None or last is None else f"{number(first)} → {number(last)}"


def _table(header: Iterable[str], rows: list[list[str]]) -> Iterator[str]:
    titles = list(header)
    yield "\n" + _row(titles) + _row(["---"] * len(titles))
    for row in rows[:ROWS]:
        yield _row(row)
    if len(rows) > ROWS:
        yield f"\n... and {len(rows) - ROWS:,} more\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _case(case: CaseResult) -> str:
    return _code(case.nodeid + (f" [{case.worker}]" if case.worker else ""))


def _code(text: str) -> str:
    return f"<code>{_text(text, NAME)}</code>"


#: Characters with a meaning in Markdown or HTML, anywhere in a line; an underscore within a word has none.
_OWN = re.compile(r"[&<>|`*\[\]\\~#@$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def _text(text: str, width: int = 600) -> str:
    """Foreign text for a table cell: one line, shown as it is written."""
    text = _OWN.sub(lambda m: f"&#{ord(m[0])};", one_line(text, width))
    return re.sub(r"(?i)\b(https?|ftp|www)(?=[:.])", r"\1<!-- -->", text)  # no unintended links


def _fenced(message: str) -> str:
    text = shorten(_spelled(message), MESSAGE)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}\n"
