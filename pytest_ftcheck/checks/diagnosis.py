"""All checks over one trace, and the root causes behind what they found, ranked; which fault explains what is in `roots`."""

from __future__ import annotations

import dataclasses
import difflib
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..core import fail_level
from ..core.formatting import describe_type, plural
from ..core.late_binding import provided
from ..core.trace import Trace
from ..core.verdict import Status, Verdict
from ..seeds.runs import Runs, repeatable
from .assertions import notify
from .catalogue import CHECKS, FAULTS, explained_by, rank_of
from .spec import Fault

Health = Literal["healthy", "unhealthy", "undecided"]
#: Last note of a verdict that would have stopped the gate, were it not for ``allow=``; the reason follows it.
_ALLOWED = "allowed"
_ORDER = {name: place for place, name in enumerate(CHECKS)}
#: Columns of a printed diagnosis.
WIDTH = 100


@dataclass(frozen=True)
class Cause:
    """One root cause: what is wrong, how that is known, and what to do.

    >>> Cause("the head is in no parameter group", "not_in_optimizer", ("optimizer_covers_model",)).title
    'the head is in no parameter group'
    """

    #: What is wrong, in one line.
    title: str
    #: Short name of the fault, as in `Verdict.fault`.
    fault: str
    #: Failed checks that it explains, the one that names it first.
    checks: tuple[str, ...]
    #: Their headlines.
    evidence: tuple[str, ...] = ()
    #: How it probably came about; empty where nothing more is known.
    why: str = ""
    #: The line to change.
    remedy: str = ""
    #: ``certain`` (read off the structure, or off what was declared), ``likely`` or ``possible``.
    confidence: str = "likely"

    def __str__(self) -> str:
        return f"{self.title} ({self.confidence}; shown by {', '.join(self.checks)})"


@dataclass(frozen=True)
class Diagnosis:
    """All verdicts of one trace, and what is behind them. ``print(diagnosis)`` is the whole of it, the cause first.

    >>> from pytest_ftcheck import example_trace
    >>> diagnose(example_trace()).status
    'healthy'
    """

    #: ``healthy``, ``unhealthy`` (some check failed) or ``undecided`` (none failed, but a run this short cannot tell).
    status: Health
    #: One a check, in the order in which a run goes.
    verdicts: tuple[Verdict, ...]
    #: Root causes, the most likely first; empty where nothing failed.
    causes: tuple[Cause, ...] = ()

    def having(self, *statuses: Status) -> tuple[Verdict, ...]:
        """The verdicts with one of these statuses.

        >>> from pytest_ftcheck import example_trace
        >>> diagnose(example_trace()).having("fail", "inconclusive")
        ()
        """
        return tuple(v for v in self.verdicts if v.status in statuses)

    @property
    def headline(self) -> str:
        """One sentence: the status, and the first cause."""
        failed, passed = self.having("fail"), self.having("pass")
        if self.causes:
            more = f", and {plural(len(self.causes) - 1, 'more cause')}" if len(self.causes) > 1 else ""
            return f"{self.causes[0].title}{more} ({plural(len(failed), 'check')} of {len(self.verdicts)} failed)"
        if open_questions := self.having("inconclusive"):
            names = ", ".join(v.check for v in open_questions)
            return f"nothing failed, but this run cannot tell: {names}"
        return f"{plural(len(passed), 'check')} passed"

    def _moot(self) -> tuple[Verdict, ...]:
        """What cannot be told and would be no news if it could: it follows from a cause that was found."""
        explained = {name for c in self.causes if c.fault in FAULTS for name in explained_by(FAULTS[c.fault])}
        return tuple(v for v in self.having("inconclusive") if v.check in explained)

    def _unasked_advice(self) -> list[Verdict]:
        """Advice, less what would have stopped the gate and was allowed."""
        return [v for v in self.having("advice") if not (v.notes and v.notes[-1].split(":")[0] == _ALLOWED)]

    def __str__(self) -> str:
        lines = _wrapped(f"{self.status}: {self.headline}.")
        for number, cause in enumerate(self.causes, 1):
            lines += ["", *_wrapped(f"{number}. {_cap(cause.title)}.", f"[{cause.confidence}]")]
            lines += _field(cause.checks[0], cause.evidence[0])
            if cause.why:
                lines += _field("why", cause.why)
            if cause.remedy:
                lines += _field("do", cause.remedy)
            if rest := cause.checks[1:]:
                lines += _field("explains", ", ".join(rest))
        open_questions, moot = self.having("inconclusive"), self._moot()
        told = [v for v in open_questions if v not in moot]
        advice = self._unasked_advice()
        allowed = [v for v in self.having("advice") if v not in advice]
        for title, verdicts, action in (
            ("undecided", told, "what would settle it"),
            ("allowed", allowed, ""),
            ("advice", advice, "do"),
        ):
            if verdicts:
                lines += ["", f"{title}:"]
            for verdict in verdicts:
                lines += _field(verdict.check, verdict.headline)
                if action and verdict.remedy:
                    lines += _field(f"  {action}", verdict.remedy)
                if not action and verdict.notes[-1] != _ALLOWED:
                    lines += _field("  because", verdict.notes[-1].removeprefix(f"{_ALLOWED}: "))
        if moot:
            lines += ["", *_wrapped(f"undecided while that is so: {', '.join(v.check for v in moot)}")]
        if skipped := self.having("skipped"):
            lines += ["", "not judged:"]
            reasons: dict[str, list[str]] = {}
            for verdict in skipped:
                reasons.setdefault(verdict.headline.rstrip("."), []).append(verdict.check)
            for reason, checks in reasons.items():
                lines += _field(", ".join(checks), reason)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return str(provided("notebook_diagnosis")(self))


def diagnose(trace: Trace | Runs, *, ignore: Iterable[str] = ()) -> Diagnosis:
    """Run every check on a trace, and rank the root causes of what failed.

    One fault makes many checks fail: a head that the optimizer does not hold cannot move, and the loss cannot fall. It is said once,
    first, with the checks that it explains.

    :param ignore: names of checks to leave out.
    :raises TypeError: not a trace.  :raises ValueError: a name that is no check.

    >>> from pytest_ftcheck import example_trace
    >>> diagnose(example_trace(), ignore=["head_needed"]).causes
    ()
    """
    __tracebackhide__ = True
    if not isinstance(trace, (Trace, Runs)):
        raise TypeError(f"trace is {describe_type(trace)}: expected what finetune() or watch() gave")
    left_out = _known("ignore", ignore, CHECKS)
    verdicts = tuple(check(trace) for name, check in CHECKS.items() if name not in left_out)
    return conclude(verdicts)


def assert_healthy(
    trace: Trace | Runs, *, ignore: Iterable[str] = (), allow: Mapping[str, str] | Iterable[str] = ()
) -> Diagnosis:
    """Raise `CheckFailed` unless every check passes: the one-line gate. Returns the diagnosis.

    What is only ``inconclusive`` raises too, for what cannot be told is no pass; the message says what would settle it.

    :param ignore: names of checks to leave out altogether.
    :param allow: names of checks, or of faults (`Verdict.fault`), that may be as they are, best with the reason why:
        ``allow={"loss_decreases": "20 steps of warm-up are too few"}``. They are still judged and told, as advice.
    :raises TypeError: not a trace.  :raises ValueError: a name that is no check (nor, in ``allow``, a fault).

    >>> from pytest_ftcheck import example_trace
    >>> assert_healthy(example_trace(), allow={"head_needed": "we keep it"}).status
    'healthy'
    """
    __tracebackhide__ = True
    _known("allow", allow, (*CHECKS, *FAULTS))
    allowed = dict(allow) if isinstance(allow, Mapping) else dict.fromkeys(_names("allow", allow), "")
    for name, reason in allowed.items():
        if reason is not None and not isinstance(reason, str):
            raise TypeError(f"allow[{name!r}]={reason!r}: expected the reason, a text")
    diagnosis = diagnose(trace, ignore=ignore)
    diagnosis = conclude(tuple(_excused(v, allowed) for v in diagnosis.verdicts))
    status: Status = {"healthy": "pass", "unhealthy": "fail", "undecided": "inconclusive"}[diagnosis.status]  # type: ignore[assignment]
    headline, untold = diagnosis.headline, diagnosis.having("inconclusive") if status == "inconclusive" else ()
    if status == "pass" and fail_level.level() == "advice" and (advice := diagnosis._unasked_advice()):
        status, untold = "advice", tuple(advice)
        headline = f"nothing failed, but there is advice of {', '.join(v.check for v in advice)}"
    verdict = Verdict(
        "healthy",
        status,
        _cap(headline) + ".",
        causes=tuple(str(c) for c in diagnosis.causes) or tuple(f"{v.check}: {v.headline}" for v in untold),
        remedy=next((r for r in (*(c.remedy for c in diagnosis.causes), *(v.remedy for v in untold)) if r), ""),
        fault=diagnosis.causes[0].fault if diagnosis.causes else "",
        notes=() if status in ("pass", "advice") or not (again := repeatable(trace)) else (again,),
    )
    notify(verdict, trace, diagnosis.verdicts)
    if fail_level.raises(verdict):
        raise fail_level.error(verdict, "\n\n".join([str(diagnosis), *verdict.notes])) from None
    return diagnosis


def conclude(verdicts: Iterable[Verdict]) -> Diagnosis:
    """The diagnosis that these verdicts amount to; nothing is judged again.

    >>> conclude([Verdict("weights_move", "inconclusive", "2 steps are too few.")]).status
    'undecided'
    """
    verdicts = tuple(sorted(verdicts, key=lambda v: _ORDER.get(v.check, len(_ORDER))))
    failed = [v for v in verdicts if v.status == "fail"]
    undecided = any(v.status == "inconclusive" for v in verdicts)
    return Diagnosis("unhealthy" if failed else "undecided" if undecided else "healthy", verdicts, _causes(failed))


def _causes(failed: list[Verdict]) -> tuple[Cause, ...]:
    """The failed verdicts, each root with what it explains; roots in the order of `roots`."""
    left = sorted(failed, key=rank_of)  # stable: checks of one rank stay in the order in which a run goes
    causes = []
    while left:
        first, left = left[0], left[1:]
        root = FAULTS.get(first.fault)
        mine = [v for v in left if _explained(v, root)]
        left = [v for v in left if v not in mine]
        group = [first, *mine]
        causes.append(
            Cause(
                title=root.title if root is not None else _title(first),
                fault=first.fault,
                checks=tuple(v.check for v in group),
                evidence=tuple(v.headline for v in group),
                why=first.causes[0] if first.causes and root is not None else "",
                remedy=first.remedy,
                confidence=root.confidence if root is not None else "possible",
            )
        )
    return tuple(causes)


def _explained(verdict: Verdict, root: Fault | None) -> bool:
    if root is None:
        return False
    return verdict.fault == root.name or verdict.check in explained_by(root)


def _title(verdict: Verdict) -> str:
    return (verdict.causes[0] if verdict.causes else verdict.headline).rstrip(".")


def _excused(verdict: Verdict, allowed: Mapping[str, str]) -> Verdict:
    """A verdict that would stop the gate, as advice if it was allowed."""
    if verdict.ok:
        return verdict
    name = next((n for n in (verdict.check, verdict.fault) if n and n in allowed), None)
    if name is None:
        return verdict
    note = f"{_ALLOWED}: {allowed[name]}" if allowed[name] else _ALLOWED
    return dataclasses.replace(verdict, status="advice", notes=(*verdict.notes, note))


def _names(argument: str, value: Iterable[str]) -> tuple[str, ...]:
    __tracebackhide__ = True
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
    if names is None or not all(isinstance(n, str) for n in names):
        raise TypeError(f"{argument}={value!r}: expected names of checks")
    return names


def _known(argument: str, value: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    __tracebackhide__ = True
    names, valid = _names(argument, value), list(known)
    for name in names:
        if name not in valid:
            near = difflib.get_close_matches(name.removeprefix("assert_").removeprefix("check_"), valid, 3)
            also = " and no fault" if len(valid) > len(CHECKS) else ""
            raise ValueError(
                f"{argument}={name!r} is no check{also}; {'near' if near else 'the checks are'}: {', '.join(near or CHECKS)}"
            )
    return names


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]


def _wrapped(text: str, tail: str = "") -> list[str]:
    return textwrap.wrap(f"{text} {tail}".rstrip(), WIDTH, subsequent_indent="   ", break_on_hyphens=False)


def _field(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{name}: {text}", WIDTH, initial_indent="   ", subsequent_indent="     ", break_on_hyphens=False
    )
