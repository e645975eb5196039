"""The pytest plugin: hooks only. Verdicts go from the core to a listener, to a report, to the terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from . import options
from .fixtures import NAMES, finetune, tiny_distilbert, toy_batches, toy_features
from .folding import Record
from .listener import listening

if TYPE_CHECKING:
    from collections.abc import Generator

    from .progress import ProgressLine
    from .trace import Trace
    from .verdict import Verdict

__all__ = ["RECORD", "Record", "finetune", "tiny_distilbert", "toy_batches", "toy_features"]

#: Attribute of a test report: what the phase concluded; builtins only, for nothing else crosses processes.
REPORTED = "ftcheck"

#: Styles of --tb in which pytest's own failure report leaves the message out, or all but its first line.
_WITHOUT_MESSAGE = ("no",) if pytest.version_tuple >= (9,) else ("no", "line")

#: How a status is coloured on a terminal.
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "skipped": "yellow", "advice": "cyan"}


#: ``item.stash[RECORD]``: there once a test has been set up.
RECORD: pytest.StashKey[Record] = pytest.StashKey()
_EARS: pytest.StashKey[_Ears] = pytest.StashKey()
_PROGRESS: pytest.StashKey[bool] = pytest.StashKey()


class _Ears:
    """The session's listener: one for all tests, because event loops and threads may keep an old context."""

    def __init__(self) -> None:
        self.record = Record()
        self.line: ProgressLine | None = None

    def progress(self, done: int, total: int, loss: float | None) -> None:
        """Show it, if there is somebody to see it."""
        if self.line is not None:
            self.line.update(done, total, loss)

    def traced(self, trace: Trace) -> None:
        """Keep it with the test."""
        self.still()
        self.record.now.measured(trace)

    def judged(self, verdict: Verdict, trace: Trace | None) -> None:  # noqa: ARG002
        """Keep it with the test."""
        self.record.now.judged(verdict)

    def still(self) -> None:
        """Nothing runs any more, whether it ended well or not."""
        if self.line is not None:
            self.line.erase()


# ---------------------------------------------------------------------- settings
def pytest_addoption(parser: pytest.Parser) -> None:
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "ftcheck: the test fine-tunes a model; set on every test that uses a fixture of pytest-ftcheck",
    )
    config.stash[options.FIELDS] = options.read(config)
    config.stash[_PROGRESS] = options.progress_wanted(config)
    config.stash[_EARS] = _Ears()
    config.pluginmanager.register(_Summary(config), "ftcheck-summary")


def pytest_report_header(config: pytest.Config) -> str | None:
    fields = config.stash[options.FIELDS]
    return "ftcheck: " + ", ".join(f"{name}={value}" for name, value in fields.items()) if fields else None


# ---------------------------------------------------------------------- tests
def pytest_itemcollected(item: pytest.Item) -> None:
    # every fixture the test needs, also through fixtures of its own
    if not NAMES.isdisjoint(getattr(item, "fixturenames", ())):
        item.add_marker("ftcheck")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    item.stash[RECORD] = Record()
    return (yield from _heard(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _heard(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _heard(item))


def _heard(item: pytest.Item) -> Generator[None, Any, Any]:
    ears = item.config.stash[_EARS]
    ears.record = item.stash.setdefault(RECORD, Record())
    with listening(ears):
        try:
            return (yield)
        finally:
            ears.still()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    record = item.stash.get(RECORD, None)
    if record is not None and (phase := record.close()):
        setattr(report, REPORTED, phase.plain(failed=report.failed))
    return report


# ---------------------------------------------------------------------- terminal
def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    quiet = config.get_verbosity() < 0 or not config.stash[_PROGRESS]
    if terminal is None or quiet or hasattr(config, "workerinput") or not terminal.isatty():
        return
    try:
        # nothing is captured yet: this copy of the descriptor stays the terminal while tests are captured
        stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return
    from .progress import ProgressLine  # only where somebody looks: every start of pytest pays for imports

    config.add_cleanup(stream.close)
    writer = config.get_terminal_writer()
    config.stash[_EARS].line = ProgressLine(stream, lambda: writer.fullwidth - writer.width_of_current_line)


class _Summary:
    """Gathers what reports carry, from this process or from xdist's workers, and prints it at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._seen: list[tuple[pytest.TestReport, dict[str, Any]]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        carried = getattr(report, REPORTED, None)
        if carried is not None:
            self._seen.append((report, carried))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        verbosity = self._config.get_verbosity()
        if verbosity < 0 or self._config.getoption("no_summary"):  # pytest 9.2 calls this hook all the same
            return
        # a verdict that a passing test caught (``pytest.raises``), or an xfail expects, is no news
        alarms = [
            (report, verdict)
            for report, carried in self._seen
            for verdict in carried["verdicts"]
            if report.failed and not verdict["ok"]
        ]
        judged = sum(_times(verdict) for _, carried in self._seen for verdict in carried["verdicts"])
        if not judged or not (alarms or verbosity > 0):
            return
        terminalreporter.write_sep("=", "ftcheck")
        if verbosity > 0:
            for report, carried in self._seen:
                for line in carried["traces"]:
                    self._line(terminalreporter, "trace", f"{report.nodeid} - {line}")
                for verdict in carried["verdicts"]:
                    self._verdict(terminalreporter, report, verdict)
        else:
            for report, verdict in alarms:
                self._verdict(terminalreporter, report, verdict)
            bad = sum(_times(verdict, ok=False) for _, verdict in alarms)
            if judged > bad:
                terminalreporter.write_line(f"{bad:,} of {judged:,} verdicts; -v shows all of them")

    def _verdict(self, terminal: pytest.TerminalReporter, report: pytest.TestReport, verdict: dict[str, Any]) -> None:
        news = report.failed and not verdict["ok"]
        if news and self._config.getoption("tbstyle") in _WITHOUT_MESSAGE:
            self._line(terminal, verdict["status"], report.nodeid, fit=False)
            for line in verdict["message"].splitlines():
                terminal.write_line(f"  {line}")
        else:
            caught = "" if news or verdict["ok"] else "(expected) "
            text = f"{report.nodeid} - {caught}{verdict['check']}: {verdict['told']}"
            self._line(terminal, verdict["status"], text)

    def _line(self, terminal: pytest.TerminalReporter, status: str, text: str, *, fit: bool = True) -> None:
        text = text.splitlines()[0]
        # as pytest does for its own summary: a log that is read later is not cut to the width of a terminal
        width = terminal.config.get_terminal_writer().fullwidth - 1 - len(status) - 1
        if fit and len(text) > width and self._config.get_verbosity() < 2 and not os.environ.get("CI"):
            text = text[: max(0, width - 3)] + "..."
        colour = COLOURS.get(status)
        terminal.write(status, **({colour: True} if colour else {}))
        terminal.write_line(f" {text}")


def _times(verdict: dict[str, Any], *, ok: bool | None = None) -> int:
    """How many verdicts one line stands for; ``ok=False``: how many of those were not let through."""
    counts: dict[str, int] = verdict["counts"]
    return sum(n for status, n in counts.items() if ok is None or (status not in ("fail", "inconclusive")) is ok)
