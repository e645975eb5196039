"""Takes a session's results to where they are looked at: files, GitHub Actions. What cannot be written is told, and breaks nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.files import write_whole
from ..core.formatting import one_line, plural
from ..reports.session_result import SessionResult

if TYPE_CHECKING:
    from .collect_results import Traced

#: Environment variables that name the root of the repository on a CI machine; reports name files relative to it.
ROOTS = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")


@dataclass
class Delivery:
    """What came of it, for the terminal."""

    #: What was written, one line each; what could not be; lines that GitHub Actions reads.
    written: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    annotations: list[str] = field(default_factory=list)


def deliver(
    result: SessionResult,
    files: Mapping[str, Path],
    *,
    root: Path,
    github: bool = True,
    annotate: bool = True,
    traced: Sequence[Traced] = (),
) -> Delivery:
    """Write all that is wanted.

    :param files: format (``json``, ``sarif``, ``gitlab``, ``html``) -> where to.
    :param root: pytest's root directory, which the result's places are relative to.
    :param github: tell GitHub Actions, if the environment says that it is there.
    :param annotate: its annotations, too.
    :param traced: the fine-tunes, for the page.
    """
    done, prefix = Delivery(), folder_of(root)
    for form, path in files.items():

        def write(form: str = form, path: Path = path) -> str:
            write_whole(path, _written(form, result, prefix, traced))
            return f"{form} report of {plural(len(result.tests), 'test')} in {path}"

        _try(done, f"--ftcheck-{form}: {path}", write)
    if github and result.tests:
        from ..reports.github import append_summary, workflow_commands

        if annotate and os.environ.get("GITHUB_ACTIONS") == "true":
            done.annotations = workflow_commands(result, prefix)
        if step := os.environ.get("GITHUB_STEP_SUMMARY"):
            _try(done, "GITHUB_STEP_SUMMARY", lambda: append_summary(result, Path(step)))
    return done


def _written(form: str, result: SessionResult, prefix: str, traced: Sequence[Traced]) -> str:
    if form == "json":
        return result.to_json()
    if form == "sarif":
        from ..reports.sarif import sarif

        return sarif(result, prefix)
    if form == "html":
        from ..reports.html.compressed_trace import unpack
        from ..reports.html.page import page
        from ..reports.html.views import FineTune

        return page([FineTune(unpack(t.packed), tests=t.tests, packed=t.packed, verdicts=t.verdicts) for t in traced], result)
    from ..reports.gitlab import gitlab

    return gitlab(result, prefix)


def _try(done: Delivery, what: str, write: Callable[[], str]) -> None:
    try:
        done.written.append(one_line(write(), 500))
    except Exception as error:  # noqa: BLE001 - a report is never worth the verdicts
        why = one_line(str(error) or type(error).__name__, 300)
        done.warnings.append(f"{one_line(what, 300)} was not written: {why}. The verdicts and the exit status stand.")


def folder_of(root: Path) -> str:
    """Where pytest's root is within the repository, as ``"sub/folder/"``; empty: at its top, or not known."""
    for name in ROOTS:
        if top := os.environ.get(name):
            try:
                inside = root.resolve().relative_to(Path(top).resolve()).as_posix()
            except (ValueError, OSError):
                continue
            return "" if inside == "." else inside + "/"
    return ""
