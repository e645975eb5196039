"""From the ranks' reports of one phase to the one report of the test."""

from __future__ import annotations

import copy
import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from _pytest._code.code import ExceptionChainRepr, ReprFileLocation, ReprTraceback

from ..call_site import library_folders
from .launch import TO_ANSWER, Launch, Phase, Rank
from .marker import TO_START

#: What gloo says where another rank is gone.
_LOST = re.compile(
    r"Connection (closed|reset|refused) by peer|Broken pipe|Socket closed|Application timeout caused pair closure"
)
#: A strict expected failure that did not come: pytest's own words.
_STRICT = "[XPASS(strict)]"
_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


@dataclass
class _Failure:
    """Ranks that failed at the same place, and what they said, without addresses."""

    ranks: list[int]
    #: Of the first of them: pytest's representation, or a text.
    shown: Any
    message: str
    #: The others' message where it differs.
    others: list[tuple[int, str]] = field(default_factory=list)


def of_phase(report: pytest.TestReport, launch: Launch, root: Path) -> pytest.TestReport:
    """The test's report of a phase.

    It failed where a rank failed, died, or was over the time limit. Else it has failed as expected where a rank has, and was skipped where
    no rank passed. Verdicts, properties and whatever else plugins attach are those of one rank: the first that failed, else the lowest.

    :param report: pytest's own report of the phase in this process.
    """
    phase: Phase = report.when
    mine = {rank.number: rank.reports[phase] for rank in launch.ranks if phase in rank.reports}
    failures = _failures(launch, phase)
    expected = {n: r for n, r in mine.items() if r.skipped and hasattr(r, "wasxfail")}
    if expected and all(_is_strict_pass(f.shown) for f in failures):
        failures = []
    speaker = _speaker(mine, failures, expected)
    merged = copy.copy(report if speaker is None else speaker)
    merged.nodeid, merged.location, merged.keywords = report.nodeid, report.location, report.keywords
    merged.duration, merged.start, merged.stop = report.duration, report.start, report.stop
    if failures:
        merged.outcome = "failed"
        merged.longrepr = _representation(failures, launch, root)
    elif unavailable := next((rank.unavailable for rank in launch.ranks if rank.unavailable), ""):
        merged.outcome = "skipped" if phase == "setup" else merged.outcome
        if phase == "setup":
            merged.longrepr = (str(root / report.location[0]), (report.location[1] or 0) + 1, f"Skipped: {unavailable}")
    else:
        skipped: Any = merged.longrepr
        if isinstance(skipped, list):  # a skip's place and reason, through JSON
            merged.longrepr = tuple(skipped)
    merged.sections = _sections(launch, phase, mine)
    return merged


def _speaker(
    reports: dict[int, pytest.TestReport], failures: Sequence[_Failure], expected: dict[int, pytest.TestReport]
) -> pytest.TestReport | None:
    for failure in failures:
        for rank in failure.ranks:
            if rank in reports and reports[rank].failed:
                return reports[rank]
    if failures:
        return next((r for r in reports.values() if not r.skipped), None)
    passed = [report for report in reports.values() if not report.skipped]
    return next(iter([*expected.values(), *passed, *reports.values()]), None)


def _is_strict_pass(shown: Any) -> bool:
    return isinstance(shown, str) and shown.startswith(_STRICT)


# ---------------------------------------------------------------------- failures
def _failures(launch: Launch, phase: Phase) -> list[_Failure]:
    """Each kind of failure once; not what follows from another rank's end."""
    found: list[_Failure] = []
    for rank in launch.ranks:
        report = rank.reports.get(phase)
        if report is not None and report.failed:
            if launch.broken and (phase == "teardown" or _LOST.search(_message(report.longrepr))):
                continue
            _fold(found, rank.number, report.longrepr)
        elif rank.error and phase == rank.phase:
            _fold(found, rank.number, rank.error.rstrip())
        elif rank.died and phase == rank.phase:
            _fold(found, rank.number, _how_it_died(rank))
    if launch.timed_out == phase:
        late = [rank.number for rank in launch.ranks if rank.ended]
        text = f"not over after {launch.declared.timeout:g} s, the test's time limit; all processes were ended"
        if not all(rank.joined for rank in launch.ranks):
            text = f"not started after {TO_START:g} s; all processes were ended"
        found.append(_Failure(late, text, text))
    return found


def _how_it_died(rank: Rank) -> str:
    status = rank.status or 0
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"the process was ended by {name} in the test's {rank.phase}"
    return f"the process ended by itself, with exit status {status}, in the test's {rank.phase}"


def _fold(found: list[_Failure], rank: int, shown: Any) -> None:
    """With those that failed at the same place."""
    message = _message(shown)
    for failure in found:
        if _place(failure.shown) == _place(shown):
            failure.ranks.append(rank)
            if message != failure.message:
                failure.others.append((rank, message))
            return
    found.append(_Failure([rank], shown, message))


def _message(shown: Any) -> str:
    crash = getattr(shown, "reprcrash", None)
    return _ADDRESS.sub("0x...", str(shown if crash is None else crash.message)).strip()


def _place(shown: Any) -> object:
    crash = getattr(shown, "reprcrash", None)
    return _message(shown) if crash is None else (crash.path, crash.lineno)


# ---------------------------------------------------------------------- words
def ranks_in_words(ranks: Sequence[int]) -> str:
    """A list of ranks.

    >>> ranks_in_words([1]), ranks_in_words([0, 2, 3])
    ('rank 1', 'ranks 0, 2 and 3')
    """
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _representation(failures: Sequence[_Failure], launch: Launch, root: Path) -> ExceptionChainRepr:
    """As pytest shows a chain of exceptions: each failure below a line with its ranks; last, what the other ranks did."""
    chain: list[tuple[ReprTraceback, ReprFileLocation | None, str | None]] = []
    for failure in failures:
        who = ranks_in_words(failure.ranks)
        if hasattr(failure.shown, "chain"):
            chain += [_text(f"{who}:"), *failure.shown.chain]
        else:
            separator = "\n" if "\n" in str(failure.shown) else " "
            chain.append(_text(f"{who}:{separator}{failure.shown}"))
        chain += [_text(f"rank {rank}, at the same line: {message}") for rank, message in failure.others]
    first = failures[0]
    crash = getattr(first.shown, "reprcrash", None)
    others = [ranks_in_words(failure.ranks) for failure in failures[1:]]
    reason = first.message if crash is not None else first.message.splitlines()[-1].removeprefix("E").strip()
    summary = f"{ranks_in_words(first.ranks)}: {reason}" + (f" (and {', '.join(others)})" if others else "")
    file, line = (launch.file, launch.line) if crash is None else (crash.path, crash.lineno)
    failed = {rank for failure in failures for rank in failure.ranks if launch.timed_out is None}
    rest = "\n".join(_what_it_did(rank, root) for rank in launch.ranks if rank.number not in failed)
    last = ReprTraceback([], rest or None, "native")
    return ExceptionChainRepr([*chain, (last, ReprFileLocation(file, line, summary), None)])


def _text(text: str) -> tuple[ReprTraceback, None, None]:
    return ReprTraceback([], text, "native"), None, None


def _what_it_did(rank: Rank, root: Path) -> str:
    who = f"rank {rank.number}"
    if rank.ended:
        if rank.body_over:
            return f"{who} had come to its teardown"
        return f"{who} {where_in_words(rank, root)}; it was ended"
    report = rank.reports.get("call") or rank.reports.get("setup")
    if report is None:
        return f"{who} did not run the test"
    if report.failed:
        return f"{who} lost its connection to the others{_users_line(report.longrepr)}"
    return f"{who} {'was skipped' if report.skipped else 'passed'}"


def _users_line(shown: Any) -> str:
    """The innermost line of a traceback that is in the user's code."""
    for entry in reversed(getattr(getattr(shown, "reprtraceback", None), "reprentries", ())):
        place = getattr(entry, "reprfileloc", None)
        if place is not None and not str(Path(place.path).absolute()).startswith(library_folders()):
            return f" at {place.path}:{place.lineno}"
    return ""


def where_in_words(rank: Rank, root: Path) -> str:
    """Where it stood when it was asked."""
    if rank.where is None:
        return (
            f"did not answer within {TO_ANSWER:g} s where it was: its {rank.phase} is in code that holds Python's lock"
        )
    inside = f"in {rank.where['inside']}" if "inside" in rank.where else ""
    if "file" not in rank.where:
        return f"was starting ({inside})" if rank.phase == "setup" else f"stood {inside}"
    at = f"{_shown(Path(rank.where['file']), root)}:{rank.where['line']}"
    return f"stood at {at}" + (f", {inside}" if inside else "")


def _shown(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


# ---------------------------------------------------------------------- sections
def _sections(launch: Launch, phase: Phase, reports: dict[int, pytest.TestReport]) -> list[tuple[str, str]]:
    """What each rank printed and logged, by rank; and, of ranks that were ended, where they were."""
    found: list[tuple[str, str]] = []
    for rank in launch.ranks:
        report = reports.get(rank.number)
        for name, text in [] if report is None else report.sections:
            found.append((f"{name}, rank {rank.number}", text))
        if phase != "setup" or rank.gone:
            found += printed(rank, phase)
        if rank.ended and rank.where is not None:
            found.append((f"Stack of rank {rank.number}", rank.where["stack"]))
    return found


def printed(rank: Rank, phase: str) -> Iterable[tuple[str, str]]:
    """A section a stream, as pytest calls those of captured output."""
    for name, stream in rank.printed.items():
        if text := stream.new_text():
            yield f"Captured {name} {phase}, rank {rank.number}", text
