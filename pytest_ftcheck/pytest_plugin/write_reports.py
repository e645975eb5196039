"""Writes a session's reports: to files, and for GitHub Actions. A report that cannot be written is a warning."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.files import write_atomically
from ..core.formatting import one_line, plural, text_of
from ..reports.session_result import SessionResult

if TYPE_CHECKING:
    from .collect_results import CollectedTrace

#: Environment variables with the root of the repository on a CI machine; paths in reports are relative to it.
ROOTS = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")


@dataclass
class WrittenReports:
    """Lines for the terminal."""

    #: One a file written.
    files: list[str] = field(default_factory=list)
    #: One a report that could not be written.
    warnings: list[str] = field(default_factory=list)
    #: Workflow commands that GitHub Actions reads.
    annotations: list[str] = field(default_factory=list)


def write_reports(
    result: SessionResult,
    files: Mapping[str, Path],
    *,
    root: Path,
    github: bool = True,
    annotate: bool = True,
    traces: Sequence[CollectedTrace] = (),
) -> WrittenReports:
    """Write all reports.

    :param files: format (``json``, ``sarif``, ``gitlab``, ``html``) -> path.
    :param root: pytest's root directory, which the result's paths are relative to.
    :param github: write the job summary and annotations where the environment is GitHub Actions.
    :param annotate: with annotations.
    :param traces: the fine-tunes, for the HTML page.
    """
    written, prefix = WrittenReports(), folder_of(root)
    for form, path in files.items():

        def write(form: str = form, path: Path = path) -> str:
            write_atomically(path, _content(form, result, prefix, traces))
            return f"{form} report of {plural(len(result.tests), 'test')} in {path}"

        _try(written, f"--ftcheck-{form}: {path}", write)
    if github and result.tests:
        from ..reports.github import append_summary, workflow_commands

        if annotate and os.environ.get("GITHUB_ACTIONS") == "true":
            written.annotations = workflow_commands(result, prefix)
        if step := os.environ.get("GITHUB_STEP_SUMMARY"):
            _try(written, "GITHUB_STEP_SUMMARY", lambda: append_summary(result, Path(step)))
    return written


def _content(form: str, result: SessionResult, prefix: str, traces: Sequence[CollectedTrace]) -> str:
    if form == "json":
        return result.to_json()
    if form == "sarif":
        from ..reports.sarif import sarif

        return sarif(result, prefix)
    if form == "html":
        from ..reports.html.page import page
        from ..reports.html.views import FineTune

        fine_tunes = [FineTune(None, tests=t.tests, packed=t.packed, verdicts=t.verdicts) for t in traces]
        return page(fine_tunes, result)
    from ..reports.gitlab import gitlab

    return gitlab(result, prefix)


def _try(written: WrittenReports, what: str, write: Callable[[], str]) -> None:
    try:
        written.files.append(one_line(write(), 500))
    except Exception as error:  # noqa: BLE001 - a report must not cost the test results
        reason = one_line(text_of(error) or type(error).__name__, 300)
        written.warnings.append(
            f"{one_line(what, 300)} was not written: {reason}. Test results and exit status are unaffected."
        )


def folder_of(root: Path) -> str:
    """Pytest's root relative to the repository, as ``"sub/folder/"``; empty: it is the top, or unknown."""
    for name in ROOTS:
        if top := os.environ.get(name):
            try:
                inside = root.resolve().relative_to(Path(top).resolve()).as_posix()
            except (ValueError, OSError):
                continue
            return "" if inside == "." else inside + "/"
    return ""
