"""What a test session concluded, as plain data: every report is written from it.

The plugin fills a `SessionResult` from the tests' reports; ``--ftcheck-json`` writes it, ``ftcheck compare`` reads it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from os import PathLike
from typing import Literal

from ..core import arguments
from ..core.files import read_text
from ..core.formatting import clean_fields
from ..core.serialization import decode, encode
from ..core.verdict import STATUSES, WORST_FIRST

#: Version of the JSON layout; raised when a field changes its meaning or goes away.
SCHEMA = 2
#: Distinguishes the file from that of a trace.
KIND = "ftcheck-session"

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
#: What may come of a test.
OUTCOMES = ("passed", "inconclusive", "failed", "error", "skipped", "xfailed", "xpassed")


@dataclass(frozen=True)
class RunMetrics:
    """One run in a few numbers."""

    #: ``repr`` of the trace.
    summary: str
    #: As :func:`pytest_ftcheck.reports.run_metrics.run_metrics` names them.
    metrics: dict[str, float]
    #: Versions, device, dtype, threads.
    environment: dict[str, str]

    def __post_init__(self) -> None:
        clean_fields(self, one_line=("summary",))


@dataclass(frozen=True)
class ReportedVerdict:
    """What one check concluded in one phase of a test; of several calls the worst."""

    check: str
    status: str
    headline: str
    #: The headline; of a check that was called repeatedly, after how often it gave which status.
    summary: str
    #: The whole message; empty where the check neither failed nor was inconclusive.
    message: str
    fault: str
    limit: str
    causes: tuple[str, ...]
    remedy: str
    #: How far the decisive number is from its limit (above 0: on the good side); None: no single number decides.
    margin: float | None
    #: Verdicts by status, repeated ones counted.
    counts: dict[str, int]
    #: Whether the assertion raised.
    blocking: bool
    #: ``setup``, ``call`` or ``teardown``.
    when: str
    #: Where the assertion was called; None: not known.
    file: str | None
    line: int | None

    def __post_init__(self) -> None:
        clean_fields(self, one_line=("check", "headline", "summary", "fault"))
        for status in (self.status, *self.counts):
            arguments.one_of("status", status, STATUSES)

    @property
    def ok(self) -> bool:
        """Whether the check neither failed nor was inconclusive."""
        return self.status not in ("fail", "inconclusive")

    @property
    def tolerated(self) -> bool:
        """The check was inconclusive, and the session does not fail on that: no pass."""
        return not self.ok and not self.blocking


@dataclass(frozen=True)
class CaseResult:
    """One test."""

    nodeid: str
    #: ``passed``, ``inconclusive`` (it passed, but an inconclusive verdict was tolerated), ``failed``, ``error`` (in
    #: setup or teardown, or it did not come to its end), ``skipped``, ``xfailed`` or ``xpassed``.
    outcome: str
    #: Where the test is defined; None: in no file.
    file: str | None
    line: int | None
    verdicts: tuple[ReportedVerdict, ...] = ()
    runs: tuple[RunMetrics, ...] = ()
    #: Why it failed, was skipped or was expected to fail; one line.
    reason: str = ""
    #: How often it was run (pytest-rerunfailures); the last time counts.
    attempts: int = 1
    #: xdist's worker, where each runs all tests (``--dist each``).
    worker: str = ""

    def __post_init__(self) -> None:
        clean_fields(self, one_line=("nodeid", "reason", "worker"))
        arguments.one_of("outcome", self.outcome, OUTCOMES)

    @property
    def red(self) -> bool:
        """Whether it makes the session fail."""
        return self.outcome in ("failed", "error")


@dataclass(frozen=True)
class Finding:
    """One verdict that a reviewer should see."""

    #: ``error``: it made a test fail; ``warning``: tolerated, though inconclusive; ``note``: advice.
    level: Level
    case: CaseResult
    verdict: ReportedVerdict

    @property
    def place(self) -> tuple[str | None, int]:
        """File and line (from 1): of the assertion, else of the test."""
        if self.verdict.file is not None:
            return self.verdict.file, self.verdict.line or 1
        return self.case.file, self.case.line or 1

    @property
    def fingerprint(self) -> str:
        """Depends on the names of test and check only, not on numbers and lines: 32 hexadecimal digits."""
        named = (self.verdict.check, self.case.nodeid, self.case.worker, self.verdict.when)
        return hashlib.sha256("\0".join(named).encode("utf-8", "backslashreplace")).hexdigest()[:32]


@dataclass(frozen=True)
class SessionResult:
    """All tests of a session that judged a fine-tune, or failed before they could.

    >>> SessionResult.from_json(SessionResult().to_json()) == SessionResult()
    True
    """

    #: Sorted by node id.
    tests: tuple[CaseResult, ...] = ()
    #: Versions of Python, pytest, this plugin; the platform.
    environment: dict[str, str] = field(default_factory=dict)
    #: Fields of the recipe that the session set.
    settings: dict[str, str] = field(default_factory=dict)
    fail_on: str = "inconclusive"
    #: pytest's: 0 all passed, 1 some failed, 2 interrupted, 3 internal error, 4 usage, 5 nothing collected.
    exit_status: int = 0
    #: pytest's configuration file, relative to its root directory; None: there is none.
    configuration: str | None = None
    kind: str = KIND
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        clean_fields(self)

    @property
    def counts(self) -> dict[str, int]:
        """Verdicts by status, repeated ones counted, the worst status first.

        >>> SessionResult().counts
        {}
        """
        found = dict.fromkeys(WORST_FIRST, 0)
        for case in self.tests:
            for verdict in case.verdicts:
                for status, count in verdict.counts.items():
                    found[status] = found.get(status, 0) + count
        return {status: count for status, count in found.items() if count}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings for a reviewer, the worst first, else by node id.

        Expected failures (``pytest.raises``, ``xfail``) are none.

        >>> SessionResult().findings
        ()
        """
        found = []
        for case in self.tests:
            for verdict in case.verdicts:
                level: Level | None = None
                if verdict.blocking:
                    level = "error" if case.red else None
                elif verdict.tolerated:
                    level = "warning"
                elif verdict.status == "advice":
                    level = "note"
                if level is not None:
                    found.append(Finding(level, case, verdict))
        rank = {status: i for i, status in enumerate(WORST_FIRST)}
        return tuple(sorted(found, key=lambda f: (LEVELS.index(f.level), rank[f.verdict.status])))

    @property
    def broken(self) -> tuple[CaseResult, ...]:
        """Tests that failed without a failed check: they raised before it, or for another reason."""
        return tuple(case for case in self.tests if case.red and not any(v.blocking for v in case.verdicts))

    def to_json(self) -> str:
        """As JSON, one field a line, sorted by the tests' names.

        NaN and infinities are strings; every character is ASCII.
        """
        return json.dumps(encode(self), allow_nan=False, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SessionResult:
        """The inverse of :meth:`to_json`. ``ValueError`` names the field that does not fit."""
        try:
            raw = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"not a session's results: no valid JSON ({error})") from None
        if not isinstance(raw, dict) or raw.get("kind") != KIND or "schema" not in raw:
            raise ValueError(f"not a session's results: no field 'kind' that is {KIND!r}")
        if raw["schema"] != SCHEMA:
            newer = isinstance(raw["schema"], int) and raw["schema"] > SCHEMA
            raise ValueError(
                f"these results have schema {raw['schema']!r}, this version of pytest-ftcheck reads {SCHEMA}: "
                + ("upgrade pytest-ftcheck" if newer else "run the tests again")
            )
        result = decode(cls, raw, "session")
        assert isinstance(result, cls)
        return result

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SessionResult:
        """Read what ``--ftcheck-json`` wrote."""
        return cls.from_json(read_text(path))
