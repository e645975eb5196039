"""The command ``ftcheck`` (``python -m pytest_ftcheck``): compare, show, html, list, explain, map.

Exit status: 0 all well, 1 something got worse (``compare``) or is unhealthy (``show``), 2 bad arguments or files.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.formatting import one_line, plural
from ..reports import check_docs
from ..reports.session_result import KIND, SessionResult

if TYPE_CHECKING:
    from ..core.trace import Trace

#: Widest text that is comfortable to read.
WIDEST = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit status.

    :param arguments: as on the command line; None: those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["map"]:
        from ..initialization.__main__ import main as draw

        return draw(given[1:])
    parser = _parser()
    options = parser.parse_args(given)
    try:
        text, status = options.run(options)
    except ValueError as error:
        sys.stderr.write(f"ftcheck {options.command}: {one_line(str(error), 2_000)}\n")
        return 2
    try:
        sys.stdout.write(_encodable(text))
        sys.stdout.flush()
    except BrokenPipeError:  # as in ``ftcheck list | head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ftcheck", description="Read what pytest-ftcheck measured, and what its checks mean."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    command = add("compare", _compare, "Which verdicts changed from A to B? Exit status 1 if one got worse.")
    command.add_argument("a", metavar="A.json", help="what --ftcheck-json wrote, or a saved trace")
    command.add_argument("b", metavar="B.json", help="the same kind of file, later")
    command = add(
        "show", _show, "A saved trace with its diagnosis, or a session's results. Exit status 1 if it is unhealthy."
    )
    command.add_argument("file", metavar="FILE.json", help="a saved trace, or what --ftcheck-json wrote")
    command = add("html", _html, "Saved traces as one page with causes and charts, to be opened in a browser.")
    command.add_argument(
        "files", metavar="FILE.json", nargs="+", help="a saved trace; one file may be what --ftcheck-json wrote"
    )
    command.add_argument("-o", "--output", metavar="FILE.html", default="ftcheck.html", help="default: ftcheck.html")
    command = add("list", _list, "All checks: criterion, measured false-alarm rate, source.")
    command.add_argument("--json", action="store_true", help="for machines")
    command = add("explain", _explain, "The reference page of a check, or what a fault is.")
    command.add_argument("name", metavar="CHECK", help="such as weights_move; check_weights_move will do as well")
    commands.add_parser("map", help="Which initial weights learn at which learning rate; ftcheck map --help")
    return parser


def _encodable(text: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _width() -> int:
    return max(40, min(WIDEST, shutil.get_terminal_size((80, 24)).columns))


# ------------------------------------------------------------------ files
def read(path: str) -> Trace | SessionResult:
    """The trace or the session's results in a file.

    :raises ValueError: there is no such file, or it is none of ours, or of a newer version.
    """
    from ..core.trace import Trace

    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected JSON, found something else than text") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    try:
        raw = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, found none ({error})") from None
    session = isinstance(raw, dict) and raw.get("kind") == KIND
    if not session and not (isinstance(raw, dict) and "schema" in raw and "tensors" in raw):
        raise ValueError(f"{path}: expected a saved trace (Trace.save) or what --ftcheck-json wrote")
    try:
        return SessionResult.from_json(text) if session else Trace.from_json(text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


# ------------------------------------------------------------------ commands
def _compare(options: argparse.Namespace) -> tuple[str, int]:
    from .compare import compare_sessions, compare_traces

    a, b = read(options.a), read(options.b)
    if isinstance(a, SessionResult) and isinstance(b, SessionResult):
        found = compare_sessions(a, b)
    elif isinstance(a, SessionResult) or isinstance(b, SessionResult):
        raise ValueError(f"{options.a} and {options.b}: expected two traces or two sessions, found one of each")
    else:
        found = compare_traces(a, b)
    return f"A: {options.a}\nB: {options.b}\n\n{found}\n", 1 if found.worse else 0


def _show(options: argparse.Namespace) -> tuple[str, int]:
    shown = read(options.file)
    if isinstance(shown, SessionResult):
        return _session(shown), 1 if any(case.red for case in shown.tests) else 0
    from ..checks.diagnosis import diagnose

    diagnosis = diagnose(shown)
    return f"{shown}\n\n{diagnosis}\n", 1 if diagnosis.status == "unhealthy" else 0


def _html(options: argparse.Namespace) -> tuple[str, int]:
    from ..core.files import write_whole
    from ..reports.html.page import page
    from ..reports.html.views import FineTune

    given = [(path, read(path)) for path in options.files]
    sessions = [found for _, found in given if isinstance(found, SessionResult)]
    if len(sessions) > 1:
        raise ValueError(f"{', '.join(options.files)}: expected one session's results at most, found {len(sessions)}")
    runs = [FineTune(found, name=Path(path).stem) for path, found in given if not isinstance(found, SessionResult)]
    try:
        write_whole(options.output, page(runs, sessions[0] if sessions else None))
    except ImportError as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        raise ValueError(f"--output={options.output}: {error.strerror or error}") from None
    return f"{plural(len(runs), 'fine-tune')} in {options.output}\n", 0


def _session(session: SessionResult) -> str:
    told = ", ".join(f"{count:,} {status}" for status, count in session.counts.items()) or "none"
    versions = ", ".join(f"{name} {version}" for name, version in session.environment.items())
    lines = [f"{plural(len(session.tests), 'test')}; verdicts: {told}", f"fail on: {session.fail_on}; {versions}", ""]
    for case in session.tests:
        lines.append(f"{case.outcome} {one_line(case.nodeid, 200)}")
        lines += [f"  {one_line(run.summary, 200)}" for run in case.runs]
        lines += [f"  {v.status} {v.check}: {one_line(v.summary, 400)}" for v in case.verdicts]
        if case.reason and not any(v.blocking for v in case.verdicts):
            lines.append(f"  {case.reason}")
    return "\n".join(lines) + "\n"


def _list(options: argparse.Namespace) -> tuple[str, int]:
    rows = catalogue()
    if options.json:
        return json.dumps(rows, indent=1) + "\n", 0
    lines = []
    for row in rows:
        lines.append(row["check"])
        for name in ("asks", "criterion", "false alarms", "source"):
            text = f"  {name:<12}  {row[name] or '-'}"
            lines += textwrap.wrap(text, _width(), subsequent_indent=" " * 16, break_on_hyphens=False)
        lines.append("")
    lines.append(
        f"{plural(len(rows), 'check')}. False alarms: failed, of the healthy runs that were judged (95 % interval)."
    )
    return "\n".join(lines) + "\n", 0


def catalogue() -> list[dict[str, str]]:
    """All checks, in the order in which a run goes: what each asks, its criterion, false-alarm rate and source, as documented.

    >>> catalogue()[0]["check"]
    'optimizer_covers_model'
    """
    from ..checks.catalogue import CHECKS

    rates = check_docs.false_alarms()
    return [
        {
            "check": name,
            "asks": check_docs.plain((check.__doc__ or "").strip().splitlines()[0]),
            "criterion": check_docs.criterion(name),
            "false alarms": rates.get(name) or check_docs.said(name, "Error rates") or "not measured yet",
            "source": check_docs.said(name, "Source"),
        }
        for name, check in CHECKS.items()
    ]


def _explain(options: argparse.Namespace) -> tuple[str, int]:
    from ..checks.catalogue import CHECKS, FAULTS

    name = options.name.removeprefix("check_").removeprefix("assert_")
    if name in CHECKS:
        found = check_docs.page(name)
        if found is None:
            raise ValueError(f"the page of {name} is not where it should be: install pytest-ftcheck again")
        return check_docs.as_text(found, _width()) + "\n", 0
    if fault := FAULTS.get(name):
        on = [check for check in CHECKS if f"`{name}`" in (check_docs.page(check) or "")]
        text = f"{name}: {fault.title} ({fault.confidence})."
        if on:
            text += f" Named by: {', '.join(on)}. For more: ftcheck explain {on[0]}"
        return textwrap.fill(text, _width(), break_on_hyphens=False) + "\n", 0
    if told := check_docs.docstring(f"assert_{name}"):
        return f"assert_{name}\n\n{told}\n", 0
    near = difflib.get_close_matches(name, [*CHECKS, *FAULTS], 3)
    told = f"near: {', '.join(near)}" if near else f"the checks are: {', '.join(CHECKS)}"
    raise ValueError(f"{options.name!r} is no check and no fault; {told}")
