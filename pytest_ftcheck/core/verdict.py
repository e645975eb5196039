"""`Verdict`: what one check concluded; and `CheckFailed`, the error that carries it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from . import arguments
from .formatting import block_of, clean, clean_fields, describe_type, fit, table
from .late_binding import provided

Status = Literal["pass", "fail", "inconclusive", "skipped", "advice"]
STATUSES: tuple[str, ...] = get_args(Status)
#: The same, the worst first.
WORST_FIRST: tuple[str, ...] = ("fail", "inconclusive", "advice", "pass", "skipped")

#: Rows of evidence shown in a message; the verdict itself keeps all of them.
ROWS_SHOWN = 8
#: Lines of a brief message.
BRIEF = 12
#: Columns that it needs.
NARROWEST = 20


@dataclass(frozen=True)
class Verdict:
    """What one check concluded from a trace.

    ``print(verdict)`` is the whole message: headline, evidence, cause, remedy and limit.

    >>> print(Verdict("weights_move", "pass", "4 of 4 head tensors moved."))
    weights_move: pass. 4 of 4 head tensors moved.
    """

    #: Name of the check: ``weights_move`` for ``check_weights_move`` and ``assert_weights_move``.
    check: str
    #: ``pass``, ``fail``, ``inconclusive`` (the run cannot decide it), ``skipped`` (nothing to judge) or ``advice``.
    status: Status
    #: One sentence with the decisive numbers; self-contained, because a CI log shows nothing else.
    headline: str
    #: The numbers, the worst first: one mapping (column -> plain value) a row.
    evidence: tuple[Mapping[str, Any], ...] = ()
    #: What was compared with which threshold, and where the threshold comes from.
    limit: str = ""
    #: The likely root causes, most likely first.
    causes: tuple[str, ...] = ()
    #: The next action to take.
    remedy: str = ""
    #: How the numbers were taken.
    measured: str = ""
    #: Remarks that do not affect the status (exemptions, peculiarities).
    notes: tuple[str, ...] = field(default=())
    #: Name of the fault that was found (``not_in_optimizer``), which `diagnose` ranks; empty: none.
    fault: str = ""
    #: How far the decisive number is from its threshold: above 0 it passes, below 0 it fails; comparable between verdicts of one
    #: check. None where no single number decides. Repeated verdicts are ranked by it, and hypothesis is guided by it.
    margin: float | None = None
    #: Of a ``skipped`` verdict: the probe whose measurement is missing; empty where the check does not apply.
    unmeasured: str = ""
    #: Steps of the runs that it was reached from, where an inconclusive one was extended: ``(20, 40, 80)``; one number: it could not be.
    extended: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        arguments.one_of("status", self.status, STATUSES)
        for name in ("check", "headline", "limit", "remedy", "measured", "fault", "unmeasured"):
            arguments.text(name, getattr(self, name))
        if self.margin is not None:
            arguments.number("margin", arguments.as_number(self.margin), accepted="a finite number, or None")
        set_ = object.__setattr__
        for name in ("causes", "notes"):
            set_(self, name, arguments.texts(name, getattr(self, name)))
        rows = arguments.items("evidence", self.evidence, "a sequence of mappings, one a row")
        set_(self, "evidence", tuple(arguments.mapping(f"evidence[{i}]", row) for i, row in enumerate(rows)))
        set_(self, "extended", tuple(arguments.items("extended", self.extended, "a sequence of numbers of steps")))
        for i, steps in enumerate(self.extended):
            arguments.whole(f"extended[{i}]", steps, least=0)
        clean_fields(self, one_line=("check", "headline", "fault"))  # names of layers, texts of exceptions

    @property
    def ok(self) -> bool:
        """Whether ``assert_x`` accepts this verdict."""
        return self.status not in ("fail", "inconclusive")

    @property
    def _first_line(self) -> str:
        status = self.status if self.ok else self.status.upper()
        return f"{self.check}: {status}. {self.headline}"

    def __str__(self) -> str:
        lines = [self._first_line]
        lines += table(_folded(self.evidence), most=ROWS_SHOWN)
        # of a passed verdict only the numbers are of interest
        if not self.ok or self.status == "advice":
            lines += [f"  cause: {cause}" for cause in self.causes]
            lines += [f"  {'what would settle it' if self.status == 'inconclusive' else 'do'}: {self.remedy}"] * bool(
                self.remedy
            )
            lines += [f"  limit: {self.limit}"] * bool(self.limit)
            lines += [f"  measured: {self.measured}"] * bool(self.measured)
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def brief(self, width: int = 100) -> str:
        """The message in at most 12 lines of ``width`` columns: headline, cause, evidence and remedy, without limits and notes.

        >>> print(Verdict("weights_move", "fail", "1 of 4 tensors did not move.", causes=("it is frozen",), limit="0").brief())
        weights_move: FAIL. 1 of 4 tensors did not move.
          cause: it is frozen
        """
        arguments.whole("width", width, least=NARROWEST)
        headline = textwrap.shorten(self._first_line, 3 * width, placeholder=" ...")
        action = "what would settle it" if self.status == "inconclusive" else "do"
        causes = brief_field("cause", self.causes[0], width) if self.causes else []
        remedy = brief_field(action, self.remedy, width) if self.remedy else []
        room = BRIEF - len(textwrap.wrap(headline, width)) - len(causes) - len(remedy)
        if further := [line for cause in self.causes[1:2] for line in brief_field("cause", cause, width, most=2)]:
            # only where a table of some rows has room beside it
            further = further if room - len(further) >= 5 else []
            causes, room = [*causes, *further], room - len(further)
        # the table's title, and a line that counts the rows left out
        rows = table(_folded(self.evidence), most=min(room - 2, ROWS_SHOWN)) if room > 2 else []
        return clean("\n".join([headline, *causes, *(fit(row, width) for row in rows), *remedy]))

    def _repr_html_(self) -> str:
        return str(provided("notebook_verdict")(self))


def brief_field(name: str, text: str, width: int, *, indent: int = 2, most: int = 3) -> list[str]:
    """A field of a brief message: at most ``most`` lines.

    >>> brief_field("do", "set lr=", 40)
    ['  do: set lr=']
    """
    blanks = " " * indent
    return textwrap.wrap(
        f"{name}: {text}",
        width,
        initial_indent=blanks,
        subsequent_indent=blanks + "  ",
        max_lines=most,
        placeholder=" ...",
        break_on_hyphens=False,
    )


class Brief(Protocol):
    """What has a brief message: a verdict, or a diagnosis."""

    def brief(self, width: int = 100) -> str:
        """The message in at most 12 lines."""


def _folded(rows: tuple[Mapping[str, Any], ...]) -> list[Mapping[str, Any]]:
    """The rows; where they are too many, those of one block with the same reason become one row."""
    if len(rows) <= ROWS_SHOWN + 1 or not all("tensor" in row and "why" in row for row in rows):
        return list(rows)
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((block_of(row["tensor"]), row["why"]), []).append(row)
    folded: list[Mapping[str, Any]] = []
    for (block, _), members in groups.items():
        first = members[0]
        if len(members) == 1:
            folded.append(first)
            continue
        same = {k: v if all(m.get(k) == v for m in members) else None for k, v in first.items()}
        folded.append({**same, "tensor": f"{block} ({len(members)} tensors)"})
    return folded


class CheckFailed(AssertionError):
    """A check failed or was inconclusive.

    Invalid *input* raises ``ValueError`` or ``TypeError`` instead.

    >>> str(CheckFailed(Verdict("weights_move", "fail", "1 of 4 tensors did not move.")))
    'weights_move: FAIL. 1 of 4 tensors did not move.'
    """

    def __init__(self, verdict: Verdict, message: str | None = None, about: Brief | None = None) -> None:
        arguments.instance("verdict", verdict, Verdict, "a pytest_ftcheck.Verdict")
        arguments.text("message", message, optional=True)
        if about is not None and not callable(getattr(type(about), "brief", None)):
            raise TypeError(f"about is {describe_type(about)}: expected a verdict or a diagnosis")
        super().__init__(str(verdict) if message is None else message)
        #: The verdict behind the message.
        self.verdict = verdict
        self._about = about or verdict

    def brief(self, width: int = 100) -> str:
        """The message in at most 12 lines of ``width`` columns."""
        arguments.whole("width", width, least=NARROWEST)
        text, status = self._about.brief(width), self.verdict.status
        return f"{text}\n  note: {status} fails because of --ftcheck-fail-on={status}" if self.verdict.ok else text

    def __reduce__(self) -> tuple[type[CheckFailed], tuple[Verdict, str]]:
        return type(self), (self.verdict, str(self))


CheckFailed.__module__ = "pytest_ftcheck"  # what a traceback shows is what a user imports
