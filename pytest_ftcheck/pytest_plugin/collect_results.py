"""From the tests' reports, of this process or of pytest-xdist's workers, to a `SessionResult`."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..core.formatting import one_line
from ..core.verdict import Verdict
from ..core.version import __version__
from ..reports.session_diagnosis import verdicts_from_text, worst_of_each_check
from ..reports.session_result import CaseResult, ReportedVerdict, RunMetrics, SessionResult
from .phase_report import PhaseReport, ReportedRun

#: Tests that use a fixture of ours have this marker among their keywords.
MARKER = "ftcheck"
#: The reason of a test that was started, and whose call was never reported.
INTERRUPTED = "the test did not finish: the session was stopped, or its process died"
#: Characters of a reason.
LONGEST = 500


class Report(Protocol):
    """The attributes of a ``pytest.TestReport`` that are read here."""

    nodeid: str
    outcome: Any
    when: Any
    #: File, line from 0, and name.
    location: tuple[str, int | None, str]
    keywords: Mapping[str, Any]
    longrepr: Any


@dataclass(frozen=True)
class CollectedTrace:
    """A trace for the HTML page."""

    #: Reads it, as `reports.html.compressed_trace.pack` made it.
    packed: Callable[[], str]
    #: The tests that measured or judged it.
    tests: tuple[CaseResult, ...]
    #: What those tests concluded from it: the worst verdict of each check.
    verdicts: tuple[Verdict, ...]


class _Case:
    """One test, while its reports come in."""

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts
        self.verdicts: list[ReportedVerdict] = []
        self.runs: list[RunMetrics] = []
        #: Digest of a trace -> what the test concluded from it; in the order in which the traces came in.
        self.verdicts_by_trace: dict[str, list[Verdict]] = {}
        self.outcome = "passed"
        self.reason = ""
        self.location: tuple[str, int | None, str] | None = None
        self.ours = False
        #: The test itself was run; its setup alone is no result.
        self.called = False

    def add(self, report: Report, phase: PhaseReport | None) -> None:
        self.called = self.called or report.when == "call"
        if self.location is None or report.location[1] is not None:  # the report of a crash has no line
            self.location = report.location
        self.ours = self.ours or phase is not None or MARKER in report.keywords
        if phase is not None:
            self._add_phase(phase)
        outcome = _outcome(report)
        if outcome != "passed" and self.outcome not in ("failed", "error"):
            self.outcome, self.reason = outcome, _reason(report)

    def _add_phase(self, phase: PhaseReport) -> None:
        self.verdicts += phase.verdicts
        for run in phase.runs:
            # a fixture's run is measured in setup and judged in call; NaN equals itself in a repr only
            if repr(run.metrics) not in map(repr, self.runs):
                self.runs.append(run.metrics)
            if run.trace is not None:
                self.verdicts_by_trace.setdefault(run.trace.digest, []).extend(verdicts_from_text(run.verdicts))

    def result(self, nodeid: str, worker: str, root: Path, *, setup_only: bool) -> CaseResult:
        file, line = None, None
        if self.location is not None and (root / self.location[0]).is_file():
            file = self.location[0].replace(os.sep, "/")
            line = None if self.location[1] is None else self.location[1] + 1
        outcome, reason = self.outcome, self.reason
        if outcome == "passed" and not (self.called or setup_only):
            outcome, reason = "error", INTERRUPTED
        if outcome == "passed" and any(v.tolerated for v in self.verdicts):
            outcome = "inconclusive"
        return CaseResult(
            nodeid=nodeid,
            outcome=outcome,
            file=file,
            line=line,
            verdicts=tuple(self.verdicts),
            runs=tuple(self.runs),
            reason=reason,
            attempts=self.attempts,
            worker=worker,
        )


def _worker(report: Report) -> str:
    """The pytest-xdist worker that ran the test; empty: this process did."""
    worker: str | None = getattr(report, "worker_id", None)
    if worker is None:  # the controller's own report of a worker that died
        worker = getattr(getattr(getattr(report, "node", None), "gateway", None), "id", "")
    return worker or ""


def _outcome(report: Report) -> str:
    expected = hasattr(report, "wasxfail")
    if report.outcome == "failed":
        return "failed" if report.when == "call" else "error"
    if report.outcome == "skipped":
        return "xfailed" if expected else "skipped"
    return "xpassed" if expected and report.when == "call" else "passed"


def _reason(report: Report) -> str:
    if expected := getattr(report, "wasxfail", ""):
        return one_line(str(expected), LONGEST)
    representation: Any = report.longrepr
    if isinstance(representation, tuple):  # a skip: file, line, reason
        return one_line(str(representation[-1]), LONGEST)
    crash = getattr(representation, "reprcrash", None)
    lines = str(getattr(crash, "message", None) or representation or "").strip().splitlines()
    return one_line(lines[0] if crash is not None and lines else lines[-1] if lines else "", LONGEST)


class ResultCollector:
    """Collects the reports of a session's tests."""

    def __init__(self) -> None:
        self._cases: dict[tuple[str, str], _Case] = {}
        #: Digest -> packed trace. Each process sends a trace once; the test that sent it may be run again.
        self._traces: dict[str, str] = {}

    def add(self, report: Report, phase: PhaseReport | None) -> None:
        """One more report, and what its phase concluded; None: nothing."""
        key = (report.nodeid, _worker(report))
        case = self._cases.get(key)
        if case is None or report.when == "setup":  # a repeated test starts again
            case = self._cases[key] = _Case(attempts=1 if case is None else case.attempts + 1)
        case.add(report, phase)
        runs: tuple[ReportedRun, ...] = () if phase is None else phase.runs
        self._traces |= {r.trace.digest: r.trace.packed for r in runs if r.trace is not None and r.trace.packed}

    def result(
        self, *, root: Path, configuration: Path | None, setup_only: bool = False, **fields: Any
    ) -> SessionResult:
        """The session's result.

        :param root: pytest's root directory.
        :param configuration: its configuration file.
        :param setup_only: no test was to be run (``--setup-only``).
        :param fields: other fields of the `SessionResult`.
        """
        # the workers' names matter only where several ran the same test
        nodeids = [nodeid for nodeid, _ in self._cases]
        shared = len(nodeids) != len(set(nodeids))
        cases = [
            case.result(nodeid, worker if shared else "", root, setup_only=setup_only)
            for (nodeid, worker), case in sorted(self._cases.items())
            if case.ours
        ]
        return SessionResult(
            tests=tuple(cases),
            configuration=_relative(configuration, root),
            environment=_environment(),
            **fields,
        )

    def traces(
        self, result: SessionResult, stored: Callable[[str], str | None] = lambda _: None
    ) -> tuple[CollectedTrace, ...]:
        """The traces that were sent, in the order of the tests, each with the tests of ``result`` that measured or judged it.

        :param stored: the packed trace with a digest, where it was taken out of the reports; None: it was not.
        """
        results = {(case.nodeid, case.worker): case for case in result.tests}
        tests: dict[str, list[CaseResult]] = {}
        verdicts: dict[str, list[Verdict]] = {}
        for (nodeid, worker), case in sorted(self._cases.items()):
            found = results.get((nodeid, worker)) or results.get((nodeid, ""))
            if found is None:
                continue
            for digest, concluded in case.verdicts_by_trace.items():
                tests.setdefault(digest, []).append(found)
                verdicts.setdefault(digest, []).extend(concluded)

        def read(digest: str) -> str:
            return self._traces.get(digest) or stored(digest) or ""

        return tuple(
            CollectedTrace(functools.partial(read, digest), tuple(tests[digest]), worst_of_each_check(verdicts[digest]))
            for digest in tests
            if read(digest)
        )


def _relative(path: Path | None, root: Path) -> str | None:
    if path is None:
        return None
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return None


def _environment() -> dict[str, str]:
    from importlib.metadata import version

    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "pytest": version("pytest"),
        "pytest-ftcheck": __version__,
        "python": platform.python_version(),
    }
