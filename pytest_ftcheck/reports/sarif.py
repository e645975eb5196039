"""SARIF 2.1.0 for code scanning: one rule a check, one result a finding.

Format: OASIS, *Static Analysis Results Interchange Format Version 2.1.0*.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from ..checks.catalogue import CHECKS, FAULTS, SPECS
from ..core.formatting import one_line, shorten
from .check_docs import as_text, first_paragraph, introduction, page, summary
from .session_result import CaseResult, Finding, SessionResult

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
#: Name of our fingerprint; the version is raised when its computation changes.
FINGERPRINT = "ftcheckTest/v1"
#: What files are relative to: the root of the repository, wherever that is.
ROOT = "%SRCROOT%"
#: Characters of a message.
LONGEST = 8_000


def sarif(result: SessionResult, prefix: str = "") -> str:
    """The report as JSON.

    An expected failure (``xfail``) is a suppressed result; a test that failed without a verdict is a notification.

    :param prefix: folder of pytest's root within the repository, ``"sub/"``.

    >>> json.loads(sarif(SessionResult()))["version"]
    '2.1.0'
    """
    checks = _checks(result)
    results = [_result(f, result, checks, prefix) for f in result.findings]
    for case in result.tests:
        if case.outcome == "xfailed":
            expected = (Finding("error", case, v) for v in case.verdicts if v.blocking)
            results += [_result(f, result, checks, prefix) for f in expected]
    invocation: dict[str, Any] = {"executionSuccessful": result.exit_status in (0, 1), "exitCode": result.exit_status}
    if result.broken:
        invocation["toolExecutionNotifications"] = [_notification(c, result, prefix) for c in result.broken]
    run = {
        "tool": {
            "driver": {
                "name": "pytest-ftcheck",
                "version": result.environment.get("pytest-ftcheck", "0"),
                "rules": [_rule(check) for check in checks],
            }
        },
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {ROOT: {"description": {"text": "The root of the repository."}}},
        "results": results,
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _checks(result: SessionResult) -> list[str]:
    """All checks, in the order in which a run goes, then those that only a test defines."""
    others = {v.check for case in result.tests for v in case.verdicts} - CHECKS.keys()
    return [*CHECKS, *sorted(others)]


def _rule(check: str) -> dict[str, Any]:
    short, markdown = one_line(summary(check), 300), page(check)
    rule: dict[str, Any] = {
        "id": check,
        "name": "".join(part.capitalize() for part in check.split("_")),
        "shortDescription": {"text": short},
        "fullDescription": {"text": one_line(introduction(check) or short, 1_000)},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["fine-tuning", "machine-learning", "test"]},
    }
    if check in SPECS and SPECS[check].faults:
        rule["properties"]["faults"] = {fault.name: fault.title for fault in SPECS[check].faults}
    if markdown is not None:
        rule["help"] = {"text": as_text(markdown), "markdown": markdown}
        if source := first_paragraph(check, "Source"):
            rule["properties"]["source"] = source
    return rule


def _result(finding: Finding, result: SessionResult, checks: list[str], prefix: str) -> dict[str, Any]:
    verdict, case = finding.verdict, finding.case
    entry: dict[str, Any] = {
        "ruleId": verdict.check,
        "ruleIndex": checks.index(verdict.check),
        "level": finding.level,
        "message": {
            "text": shorten(verdict.message or f"{verdict.check}: {verdict.status}. {verdict.summary}", LONGEST)
        },
        "locations": [_location(case, finding.place, result, prefix)],
        "partialFingerprints": {FINGERPRINT: finding.fingerprint},
        "properties": {"status": verdict.status, "test": case.nodeid, "counts": verdict.counts},
    }
    if verdict.fault:
        entry["properties"]["fault"] = verdict.fault
        if verdict.fault in FAULTS:
            entry["properties"]["confidence"] = FAULTS[verdict.fault].confidence
    if case.outcome == "xfailed":
        entry["suppressions"] = [{"kind": "inSource", "justification": case.reason or "xfail"}]
    return entry


def _notification(case: CaseResult, result: SessionResult, prefix: str) -> dict[str, Any]:
    return {
        "level": "error",
        "message": {"text": f"{one_line(case.nodeid, 500)}: {case.outcome}, without a failed check: {case.reason}"},
        "locations": [_location(case, (case.file, case.line or 1), result, prefix)],
    }


def _location(case: CaseResult, place: tuple[str | None, int], result: SessionResult, prefix: str) -> dict[str, Any]:
    file, line = place
    return {
        "physicalLocation": {
            "artifactLocation": {
                "uri": quote(prefix + (file or result.configuration or "."), errors="backslashreplace"),
                "uriBaseId": ROOT,
            },
            "region": {"startLine": line},
        },
        "logicalLocations": [{"fullyQualifiedName": case.nodeid, "kind": "function"}],
    }
