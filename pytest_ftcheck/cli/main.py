"""The command ``ftcheck`` (``python -m pytest_ftcheck``): compare, show, html, list, explain, map.

Exit status: 0 success; 1 a verdict got worse (``compare``), the run is unhealthy or a test failed (``show``); 2 wrong arguments or
files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files import read_text
from ..core.formatting import clean, one_line, plural
from ..core.version import __version__
from ..reports.session_result import KIND, SessionResult

if TYPE_CHECKING:
    from ..core.trace import Trace

#: Longest comfortable line.
WIDEST = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

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
        sys.stdout.write(_encodable(clean(text)))
        sys.stdout.flush()
    except BrokenPipeError:  # as in ``ftcheck list | head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ftcheck",
        description="Show and compare saved results of pytest-ftcheck, and explain its checks.",
        epilog="Exit status: 0 success; 1 a verdict got worse (compare), the run is unhealthy or a test failed (show); "
        "2 wrong arguments or files.",
    )
    parser.add_argument("--version", action="version", version=f"pytest-ftcheck {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    command = add("compare", _compare, "Compare two results: verdicts that changed, and metrics side by side.")
    command.add_argument("a", metavar="A.json", help="a saved trace, or a file written by --ftcheck-json")
    command.add_argument("b", metavar="B.json", help="a later file of the same kind")
    command = add("show", _show, "Print a saved trace with its diagnosis, or the results of a session.")
    command.add_argument("file", metavar="FILE.json", help="a saved trace, or a file written by --ftcheck-json")
    command = add("html", _html, "Write saved traces to one HTML page with verdicts, causes and charts.")
    command.add_argument(
        "files", metavar="FILE.json", nargs="+", help="a saved trace; one file may be written by --ftcheck-json"
    )
    command.add_argument("-o", "--output", metavar="FILE.html", default="ftcheck.html", help="default: ftcheck.html")
    command = add("list", _list, "List all checks, a line each.")
    command.add_argument(
        "-v", "--verbose", action="store_true", help="with whole summaries and measured false-alarm rates"
    )
    command.add_argument("--json", action="store_true", help="as JSON, with false-alarm rate, criterion and source")
    command = add("explain", _explain, "Explain a check (its reference page) or a fault (cause and remedy).")
    command.add_argument("name", metavar="NAME", help="a check (weights_move) or a fault (not_in_optimizer)")
    commands.add_parser("map", help="Draw which initial standard deviation of a head learns at which learning rate.")
    return parser


def _encodable(text: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _width() -> int:
    return max(40, min(WIDEST, shutil.get_terminal_size((80, 24)).columns))


# ------------------------------------------------------------------ files
def read(path: str) -> Trace | SessionResult:
    """The trace or the session's results in a file.

    :raises ValueError: there is no such file, or it is another kind of file, or a newer version wrote it.
    """
    from ..core.trace import Trace

    try:
        text = read_text(path)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected JSON, found no text") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, found none ({error})") from None
    session = isinstance(raw, dict) and raw.get("kind") == KIND
    if not session and not (isinstance(raw, dict) and "schema" in raw and "tensors" in raw):
        raise ValueError(f"{path}: expected a saved trace (Trace.save) or a file written by --ftcheck-json")
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
    from ..core.files import write_atomically
    from ..reports.html.page import page
    from ..reports.html.views import FineTune

    given = [(path, read(path)) for path in options.files]
    sessions = [found for _, found in given if isinstance(found, SessionResult)]
    if len(sessions) > 1:
        raise ValueError(f"{', '.join(options.files)}: expected one session's results at most, found {len(sessions)}")
    runs = [FineTune(found, name=Path(path).stem) for path, found in given if not isinstance(found, SessionResult)]
    try:
        write_atomically(options.output, page(runs, sessions[0] if sessions else None))
    except ImportError as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        raise ValueError(f"--output={options.output}: {error.strerror or error}") from None
    return f"{plural(len(runs), 'fine-tune')} in {options.output}\n", 0


def _session(session: SessionResult) -> str:
    counts = ", ".join(f"{count:,} {status}" for status, count in session.counts.items()) or "none"
    versions = ", ".join(f"{name} {version}" for name, version in session.environment.items())
    lines = [f"{plural(len(session.tests), 'test')}; verdicts: {counts}", f"fail on: {session.fail_on}; {versions}", ""]
    for case in session.tests:
        lines.append(f"{case.outcome} {one_line(case.nodeid, 200)}")
        lines += [f"  {one_line(run.summary, 200)}" for run in case.runs]
        lines += [f"  {v.status} {v.check}: {one_line(v.summary, 400)}" for v in case.verdicts]
        if case.reason and not any(v.blocking for v in case.verdicts):
            lines.append(f"  {case.reason}")
    return "\n".join(lines) + "\n"


def _list(options: argparse.Namespace) -> tuple[str, int]:
    from .explain import catalogue, list_checks

    return (
        json.dumps(catalogue(), indent=1) if options.json else list_checks(_width(), verbose=options.verbose)
    ) + "\n", 0


def _explain(options: argparse.Namespace) -> tuple[str, int]:
    from .explain import explain

    return explain(options.name, _width()) + "\n", 0
