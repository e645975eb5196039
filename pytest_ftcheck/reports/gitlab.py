"""GitLab's Code Quality report: the findings of a session, as a merge request shows them.

Format: docs.gitlab.com, "Code Quality".
"""

from __future__ import annotations

import json

from ..core.formatting import one_line
from .session_result import Finding, SessionResult

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
    text = f"{verdict.check} ({verdict.status}): {verdict.summary}{'' if verdict.summary.endswith('.') else '.'}"
    if verdict.remedy:
        text += f" Do: {verdict.remedy}"
    return {
        "description": one_line(text, LONGEST),
        "check_name": f"ftcheck.{verdict.check}",
        "fingerprint": finding.fingerprint,
        "severity": _severity(finding),
        # the format requires a file; a test without one is placed in pytest's configuration
        "location": {"path": prefix + (file or result.configuration or "."), "lines": {"begin": line}},
    }


def _severity(finding: Finding) -> str:
    if finding.level == "error":
        return {"fail": "critical", "inconclusive": "major"}.get(finding.verdict.status, "minor")
    return "minor" if finding.level == "warning" else "info"
