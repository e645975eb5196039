"""``--ftcheck-baseline`` in pytest's session: a plugin of pytest's, registered where the option is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .file import Baseline
from .recorder import SEEDS, Keeper, Mode
from .summary import Ledger

#: Under this name a worker of xdist tells how many tests it left out.
_LEFT_OUT = "ftcheck_left_out"


class BaselineSession:
    """Reads the file once, keeps what this process runs, and, unless it is a worker of xdist, reports and writes.

    :param attribute: of a test report, where phases carry what they concluded.
    :raises ValueError: the file is none of ours, or cannot be read.
    """

    def __init__(self, config: Any, path: Path, mode: Mode, seeds: Any, attribute: str) -> None:
        self._config, self._attribute = config, attribute
        baseline = Baseline.load(path)
        root: Path = config.rootpath
        whole, top = path.resolve(), root.resolve()
        shown = whole.relative_to(top).as_posix() if whole.is_relative_to(top) else str(path)
        self.keeper = Keeper(baseline, shown, mode, seeds=max(seeds, SEEDS) if isinstance(seeds, int) else SEEDS)
        self._worker = hasattr(config, "workerinput")
        self._ledger = None if self._worker else Ledger(path, shown, baseline, mode, root)
        self._left_out = 0
        self._mode = mode

    def pytest_report_header(self) -> str | None:
        """Said first: a session that writes compares nothing."""
        if self._mode == "compare":
            return None
        what = "runs" if self._mode == "update" else "runs that are missing"
        return f"ftcheck: writing {what} to {self.keeper.file}, each under {self.keeper.seeds} seeds"

    def pytest_deselected(self, items: Sequence[Any]) -> None:
        """Some tests of the files were left out."""
        self._left_out += len(items)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One phase of one test, of this process or of a worker."""
        if self._ledger is not None:
            carried = getattr(report, self._attribute, None) or {}
            self._ledger.add(report.nodeid, report.when, report.outcome, carried.get("baseline", ()))

    def left_out(self, count: int) -> None:
        """A worker left out so many tests."""
        self._left_out += count

    def pytest_sessionfinish(self, session: Any) -> None:
        """Write, or compare what is to be compared over all tests."""
        if self._worker:
            self._config.workeroutput[_LEFT_OUT] = self._left_out
        if self._ledger is None or self._config.option.collectonly:
            return
        chosen = any("::" in str(argument) for argument in self._config.args)
        ended = session.shouldstop or session.shouldfail or int(getattr(session, "exitstatus", 0)) not in (0, 1)
        if self._left_out or chosen or ended:
            self._ledger.partial = "not all tests were run"
        source = getattr(self._config, "args_source", None)
        self._ledger.close(everything=getattr(source, "name", "ARGS") != "ARGS")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What came of it."""
        if self._ledger is None:
            return
        # a gate that compares nothing is not to be green without a word
        quiet = self._config.get_verbosity() < 0
        for line in self._ledger.gaps if quiet else self._ledger.lines:
            terminalreporter.write_line(f"ftcheck baseline: {line}")
        for line in self._ledger.warnings:
            terminalreporter.write_line(f"ftcheck: warning: baseline: {line}", yellow=True)


class Workers:
    """Hooks of xdist's: registered only where it is."""

    def __init__(self, session: BaselineSession) -> None:
        self._session = session

    def pytest_testnodedown(self, node: Any, error: Any) -> None:  # noqa: ARG002 - the hook's arguments
        """A worker is done."""
        self._session.left_out(int((getattr(node, "workeroutput", None) or {}).get(_LEFT_OUT, 0)))


def install(config: Any, path: Path, mode: Mode, seeds: Any, attribute: str) -> Keeper:
    """Register the plugin; gives what is to be told of runs.  ``ValueError``: the file is none of ours, or cannot be read."""
    session = BaselineSession(config, path, mode, seeds, attribute)
    config.pluginmanager.register(session, "ftcheck-baseline")
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(Workers(session), "ftcheck-baseline-workers")
    return session.keeper
