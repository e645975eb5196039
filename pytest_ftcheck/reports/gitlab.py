"""GitLab: what was found as a code quality report, which merge requests show beside the lines.

Format: docs.gitlab.com, "Code Quality", "Code Quality report format".
"""

from __future__ import annotations

import json

from ..session import Finding, SessionResult
from ..text import one_line

#: Characters of a description.
LONGEST = 1_000


def gitlab(result: SessionResult, prefix: str = "") -> str:
    """The report as JSON: a list of findings, the worst first.

    :param prefix: folder of pytest's root within the repository, ``"sub/"``.

    >>> gitlab(SessionResult())
    '[]\\n'
    """
    return json.dumps([_entry(f, result, prefix) for f in result.findings], indent=1) + "\n"


def _entry(finding: Finding, result: SessionResult, prefix: str) -> dict[str, object]:
    file, line = finding.place
    verdict = finding.verdict
    told = f"{verdict.check} ({verdict.status}): {verdict.told}{'' if verdict.told.endswith('.') else '.'}"
    if verdict.remedy:
        told += f" Do: {verdict.remedy}"
    return {
        "description": one_line(told, LONGEST),
        "check_name": f"ftcheck.{verdict.check}",
        "fingerprint": finding.fingerprint,
        "severity": _severity(finding),
        # the format asks for a file; a test that is in none belongs to pytest's configuration
        "location": {"path": prefix + (file or result.configuration or "."), "lines": {"begin": line}},
    }


def _severity(finding: Finding) -> str:
    if finding.level == "error":
        return {"fail": "critical", "inconclusive": "major"}.get(finding.verdict.status, "minor")
    return "minor" if finding.level == "warning" else "info"
