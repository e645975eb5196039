"""From the tests' reports to a `SessionResult`: of this process, or of xdist's workers."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..core.formatting import one_line
from ..core.version import __version__
from ..reports.session_result import CaseResult, ReportedVerdict, RunFigures, SessionResult

#: Tests that use a fixture of ours have it among their keywords.
MARKER = "ftcheck"
#: Why a test is red that was begun, and of whose end nothing came in.
UNENDED = "the test did not come to its end: the session was stopped, or its process died"
#: Characters of a reason.
LONGEST = 500


class Report(Protocol):
    """What is read of a ``pytest.TestReport``."""

    nodeid: str
    outcome: Any
    when: Any
    #: File, line from 0, and name.
    location: tuple[str, int | None, str]
    keywords: Mapping[str, Any]
    longrepr: Any


@dataclass(frozen=True)
class Traced:
    """A trace that was carried here."""

    #: As `reports.html.packed.pack` makes it.
    packed: str
    #: The tests that measured or judged it.
    tests: tuple[CaseResult, ...]


class _Case:
    """One test, while its reports come in."""

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts
        self.verdicts: list[ReportedVerdict] = []
        self.runs: list[RunFigures] = []
        #: Of the traces that were carried, in order.
        self.digests: list[str] = []
        self.outcome = "passed"
        self.reason = ""
        self.location: tuple[str, int | None, str] | None = None
        self.ours = False
        #: The test itself was run; its setup alone is no result.
        self.called = False

    def add(self, report: Report, carried: Mapping[str, Any] | None) -> None:
        self.called = self.called or report.when == "call"
        if self.location is None or report.location[1] is not None:  # that of a crash knows no line
            self.location = report.location
        self.ours = self.ours or carried is not None or MARKER in report.keywords
        if carried is not None:
            self.verdicts += (_verdict(v, report.when or "call") for v in carried["verdicts"])
            runs = (RunFigures(r["summary"], r["figures"], r["environment"]) for r in carried["runs"])
            # a fixture's run is measured in setup and judged in call; NaN equals itself in a repr only
            self.runs += (run for run in runs if repr(run) not in map(repr, self.runs))
            self.digests += (r["digest"] for r in carried["runs"] if "digest" in r)
        outcome = _outcome(report)
        if outcome != "passed" and self.outcome not in ("failed", "error"):
            self.outcome, self.reason = outcome, _reason(report)

    def result(self, nodeid: str, worker: str, root: Path, *, setup_only: bool) -> CaseResult:
        file, line = None, None
        if self.location is not None and (root / self.location[0]).is_file():
            file = self.location[0].replace(os.sep, "/")
            line = None if self.location[1] is None else self.location[1] + 1
        outcome, reason = self.outcome, self.reason
        if outcome == "passed" and not (self.called or setup_only):
            outcome, reason = "error", UNENDED
        if outcome == "passed" and any(v.let_through for v in self.verdicts):
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


def _verdict(carried: Mapping[str, Any], when: str) -> ReportedVerdict:
    file, line = carried["where"] or (None, None)
    return ReportedVerdict(
        check=carried["check"],
        status=carried["status"],
        headline=carried["headline"],
        told=carried["told"],
        message=carried["message"],
        fault=carried["fault"],
        limit=carried["limit"],
        causes=tuple(carried["causes"]),
        remedy=carried["remedy"],
        margin=carried["margin"],
        counts=dict(carried["counts"]),
        gated=carried["gated"],
        when=when,
        file=file,
        line=line,
    )


def _worker(report: Report) -> str:
    """xdist's worker that ran the test; empty: this process did."""
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
    told: Any = report.longrepr
    if isinstance(told, tuple):  # a skip: file, line, reason
        return one_line(str(told[-1]), LONGEST)
    crash = getattr(told, "reprcrash", None)
    lines = str(getattr(crash, "message", None) or told or "").strip().splitlines()
    return one_line(lines[0] if crash is not None and lines else lines[-1] if lines else "", LONGEST)


class Gathered:
    """The session's tests, as their reports come in."""

    def __init__(self) -> None:
        self._cases: dict[tuple[str, str], _Case] = {}
        #: Digest -> trace, packed. Each process carries a trace once; the test that did may be run again.
        self._traces: dict[str, str] = {}

    def add(self, report: Report, carried: Mapping[str, Any] | None) -> None:
        """One more report; ``carried``: what its phase concluded, None: nothing."""
        key = (report.nodeid, _worker(report))
        case = self._cases.get(key)
        if case is None or report.when == "setup":  # a repeated test begins anew
            case = self._cases[key] = _Case(attempts=1 if case is None else case.attempts + 1)
        case.add(report, carried)
        self._traces |= {r["digest"]: r["trace"] for r in (carried or {"runs": ()})["runs"] if "trace" in r}

    def result(
        self, *, root: Path, configuration: Path | None, setup_only: bool = False, **facts: Any
    ) -> SessionResult:
        """The session as it stands.

        :param root: pytest's root directory.
        :param configuration: its configuration file.
        :param setup_only: no test was to be run (``--setup-only``).
        :param facts: other fields of the `SessionResult`.
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
            configuration=_inside(configuration, root),
            environment=_environment(),
            **facts,
        )

    def traced(self, result: SessionResult) -> tuple[Traced, ...]:
        """The traces that were carried, in the order of the tests, each with the tests of ``result`` that measured or judged it."""
        cases = {(case.nodeid, case.worker): case for case in result.tests}
        users: dict[str, list[CaseResult]] = {}
        for (nodeid, worker), found in sorted(self._cases.items()):
            case = cases.get((nodeid, worker)) or cases.get((nodeid, ""))
            if case is None:
                continue
            for digest in dict.fromkeys(found.digests):
                users.setdefault(digest, []).append(case)
        return tuple(Traced(self._traces[d], tuple(tests)) for d, tests in users.items() if d in self._traces)


def _inside(path: Path | None, root: Path) -> str | None:
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
