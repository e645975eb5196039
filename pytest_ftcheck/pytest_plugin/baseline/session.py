"""``--ftcheck-baseline`` in pytest's session: a plugin of pytest, registered where the option is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ...core.formatting import clean, one_line
from ..phase_report import PhaseReport
from ..ranks.marker import is_rank
from .file import Baseline
from .recorder import SEEDS, BaselineRecorder, Mode
from .summary import BaselineSummary

#: Key under which a worker of pytest-xdist reports how many tests it deselected.
_DESELECTED = "ftcheck_deselected"


class BaselineSession:
    """Reads the file once, has the runs of this process recorded, and, unless it is a worker of pytest-xdist, reports and writes.

    :raises ValueError: the file is not a baseline, or cannot be read.
    """

    def __init__(self, config: Any, path: Path, mode: Mode, seeds: Any, *, strict: bool) -> None:
        self._config, self._strict = config, strict
        baseline = Baseline.load(path)
        root: Path = config.rootpath
        absolute, top = path.resolve(), root.resolve()
        shown = absolute.relative_to(top).as_posix() if absolute.is_relative_to(top) else str(path)
        shown = one_line(shown, 300)
        count = max(seeds, SEEDS) if isinstance(seeds, int) else SEEDS
        self.recorder = BaselineRecorder(baseline, shown, mode, seeds=count, strict=strict)
        self._is_worker = hasattr(config, "workerinput")
        self._summary = (
            None if self._is_worker or is_rank(config) else BaselineSummary(path, shown, baseline, mode, root)
        )
        self._deselected = 0
        self._mode = mode

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """A file that is not there ends a session that compares, before any test: its name may be mistyped."""
        if self.recorder.baseline is None and self._mode == "compare" and not self._config.option.collectonly:
            raise pytest.UsageError(
                f"--ftcheck-baseline: there is no file {self.recorder.file}; --ftcheck-baseline-update writes it"
            )

    def pytest_report_header(self) -> str | None:
        """Announced first: a session that writes compares nothing."""
        if self._mode == "compare":
            return None
        what = "runs" if self._mode == "update" else "missing runs"
        return f"ftcheck: writing {what} to {self.recorder.file}, each under {self.recorder.seeds} seeds"

    def pytest_deselected(self, items: Sequence[Any]) -> None:
        """Count tests that are not run."""
        self._deselected += len(items)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One phase of one test, of this process or of a worker."""
        if self._summary is not None:
            self._summary.add(report.nodeid, report.when, report.outcome, PhaseReport.of(report))

    def deselected_by_worker(self, count: int) -> None:
        """A worker deselected this many tests."""
        self._deselected += count

    def pytest_sessionfinish(self, session: Any) -> None:
        """Write the file, and compare what needs all tests."""
        if self._is_worker:
            self._config.workeroutput[_DESELECTED] = self._deselected
        if self._summary is None or self._config.option.collectonly:
            return
        chosen = any("::" in str(argument) for argument in self._config.args)
        ended = session.shouldstop or session.shouldfail or int(getattr(session, "exitstatus", 0)) not in (0, 1)
        if self._deselected or chosen or ended:
            self._summary.partial = True
        source = getattr(self._config, "args_source", None)
        self._summary.close(all_tests=getattr(source, "name", "ARGS") != "ARGS")
        # a run of which no test reports the verdict, because all are skipped or expected to fail
        if self._strict and self._summary.not_compared and int(getattr(session, "exitstatus", 0)) == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The lines at the end."""
        if self._summary is None:
            return
        # a green session that compared nothing must say so, even with -q
        quiet = self._config.get_verbosity() < 0
        for line in self._summary.gaps if quiet else self._summary.lines:
            terminalreporter.write_line(clean(f"ftcheck baseline: {line}"), yellow=line in self._summary.gaps)
        for line in self._summary.warnings:
            terminalreporter.write_line(clean(f"ftcheck: warning: baseline: {line}"), yellow=True)


class Workers:
    """Hooks of pytest-xdist: registered only where it is."""

    def __init__(self, session: BaselineSession) -> None:
        self._session = session

    def pytest_testnodedown(self, node: Any, error: Any) -> None:  # noqa: ARG002 - the hook's arguments
        """A worker has finished."""
        self._session.deselected_by_worker(int((getattr(node, "workeroutput", None) or {}).get(_DESELECTED, 0)))


def install(config: Any, path: Path, mode: Mode, seeds: Any, *, strict: bool) -> BaselineRecorder:
    """Register the plugin; returns the recorder.  ``ValueError``: the file is not a baseline, or cannot be read."""
    session = BaselineSession(config, path, mode, seeds, strict=strict)
    config.pluginmanager.register(session, "ftcheck-baseline")
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(Workers(session), "ftcheck-baseline-workers")
    return session.recorder
