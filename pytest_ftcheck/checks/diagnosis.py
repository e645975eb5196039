"""All checks over one trace, and the root causes of the failures, ranked; `catalogue` knows which fault explains which check."""

from __future__ import annotations

import dataclasses
import difflib
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..core import arguments, fail_level
from ..core.formatting import as_given, clean, describe_type, plural
from ..core.late_binding import provided
from ..core.trace import Trace
from ..core.verdict import BRIEF, NARROWEST, Status, Verdict, brief_field
from ..seeds.runs import Runs, repeatable
from .assertions import notify
from .catalogue import CHECKS, FAULTS, SPECS, explained_by, rank_of
from .longer_runs import judged_longer
from .spec import Fault

Health = Literal["healthy", "unhealthy", "undecided"]
#: Begins the last note of a verdict that ``allow=`` turned into advice; the reason follows it.
_ALLOWED = "allowed"
#: The last note of a required check that could not be judged.
_REQUIRED = "named in require="
_ORDER = {name: place for place, name in enumerate(CHECKS)}
#: Names of checks that were not run which the last line of a diagnosis lists; of more it has the number.
_NAMES_SHOWN = 4
#: Columns of a printed diagnosis.
WIDTH = 100


@dataclass(frozen=True)
class Cause:
    """One root cause: what is wrong, the evidence, and what to do.

    >>> Cause("the head is in no parameter group", "not_in_optimizer", ("optimizer_covers_model",)).title
    'the head is in no parameter group'
    """

    #: What is wrong, in one line.
    title: str
    #: Short name of the fault, as in `Verdict.fault`.
    fault: str
    #: Failed checks that it explains; the first is the one that found it.
    checks: tuple[str, ...]
    #: Their headlines.
    evidence: tuple[str, ...] = ()
    #: The likely cause in the code; empty where none is known.
    why: str = ""
    #: The line to change.
    remedy: str = ""
    #: ``certain`` (read off the structure, or off what was declared), ``likely`` or ``possible``.
    confidence: str = "likely"

    def __str__(self) -> str:
        return f"{self.title} ({self.confidence}; found by {', '.join(self.checks)})"


@dataclass(frozen=True)
class Diagnosis:
    """All verdicts of one trace, and the root causes of its failures. ``print(diagnosis)`` shows everything, the causes first.

    >>> from pytest_ftcheck import example_trace
    >>> diagnose(example_trace()).status
    'healthy'
    """

    #: ``healthy``, ``unhealthy`` (some check failed) or ``undecided`` (no check failed, but some were inconclusive).
    status: Health
    #: One verdict a check, in the order in which a run goes.
    verdicts: tuple[Verdict, ...]
    #: Root causes, the most fundamental first; empty where no check failed.
    causes: tuple[Cause, ...] = ()

    def having(self, *statuses: Status) -> tuple[Verdict, ...]:
        """The verdicts with one of these statuses.

        >>> from pytest_ftcheck import example_trace
        >>> diagnose(example_trace()).having("fail", "inconclusive")
        ()
        """
        return tuple(v for v in self.verdicts if v.status in statuses)

    @property
    def judged(self) -> tuple[Verdict, ...]:
        """The verdicts that rest on a measurement, whatever they say.

        >>> from pytest_ftcheck import example_trace
        >>> [v.status for v in diagnose(example_trace()).judged if v.status != "pass"]
        []
        """
        left_out = (*self.not_measured, *self.not_applicable)
        return tuple(v for v in self.verdicts if v not in left_out)

    @property
    def not_applicable(self) -> tuple[Verdict, ...]:
        """The verdicts of checks that have nothing to judge in this run, such as ``frozen_stay_frozen`` where nothing is frozen.

        >>> from pytest_ftcheck import example_trace
        >>> [v.check for v in diagnose(example_trace()).not_applicable]
        ['frozen_stay_frozen', 'ranks_agree', 'metric_matches_reference']
        """
        skipped = (v for v in self.verdicts if v.status == "skipped" and not v.unmeasured)
        return (*skipped, *(v for v in self.having("inconclusive") if _is_required(v) and not v.unmeasured))

    @property
    def not_measured(self) -> tuple[Verdict, ...]:
        """The verdicts of checks whose measurement was left out: nothing is known of them. `assert_healthy` measures those in ``require=``.

        >>> from pytest_ftcheck import diagnose, example_trace
        >>> "overfits_one_batch" in [v.check for v in diagnose(example_trace()).not_measured]
        True
        """
        return tuple(v for v in self.having("skipped", "inconclusive") if v.unmeasured)

    @property
    def not_run(self) -> tuple[str, ...]:
        """Checks that are not in it: left out by ``ignore=``, or called by no test.

        >>> from pytest_ftcheck import diagnose, example_trace
        >>> diagnose(example_trace(), ignore="head_needed").not_run
        ('head_needed',)
        """
        run = {v.check for v in self.verdicts}
        return tuple(name for name in CHECKS if name not in run)

    @property
    def coverage(self) -> str:
        """One line: how many checks judged the run, how many do not apply, and which were left out.

        >>> from pytest_ftcheck import Verdict
        >>> Diagnosis("healthy", (Verdict("weights_move", "pass", "4 of 4 tensors moved."),)).coverage
        '1 of 45 checks judged; 44 not run'
        """
        judged = sum(v.check in CHECKS for v in self.judged)
        parts = [f"{judged} of {plural(len(CHECKS), 'check')} judged"]
        if count := len(self.not_applicable):
            parts.append(f"{count} {'does' if count == 1 else 'do'} not apply")
        for names, what in (([v.check for v in self.not_measured], "not measured"), (self.not_run, "not run")):
            if names:
                listed = f": {', '.join(names)}" if what == "not measured" or len(names) <= _NAMES_SHOWN else ""
                parts.append(f"{len(names)} {what}{listed}")
        return "; ".join(parts)

    @property
    def headline(self) -> str:
        """One sentence: the status, and the first cause."""
        failed, passed = self.having("fail"), self.having("pass")
        if self.causes:
            more = f", and {plural(len(self.causes) - 1, 'more cause')}" if len(self.causes) > 1 else ""
            return f"{self.causes[0].title}{more} ({plural(len(failed), 'check')} of {len(self.verdicts)} failed)"
        if names := [v.check for v in self.having("inconclusive")]:
            return f"no check failed, but {', '.join(names)} {'was' if len(names) == 1 else 'were'} inconclusive"
        longer = [v for v in passed if len(v.extended) > 1]
        steps = max((v.extended[-1] for v in longer), default=0)
        extended = f", {len(longer)} of them in a longer run (up to {steps:,} steps)" if longer else ""
        return f"{plural(len(passed), 'check')} passed{extended}"

    def _explained_inconclusive(self) -> tuple[Verdict, ...]:
        """Inconclusive verdicts of checks that one of the causes explains: they need no action of their own."""
        explained = {name for c in self.causes if c.fault in FAULTS for name in explained_by(FAULTS[c.fault])}
        return tuple(v for v in self.having("inconclusive") if v.check in explained and not _is_required(v))

    def _own_advice(self) -> list[Verdict]:
        """Advice of the checks, without the failures that ``allow=`` turned into advice."""
        return [v for v in self.having("advice") if not (v.notes and v.notes[-1].split(":")[0] == _ALLOWED)]

    def __str__(self) -> str:
        lines = _wrapped(f"{self.status}: {self.headline}.")
        for number, cause in enumerate(self.causes, 1):
            lines += ["", *_wrapped(f"{number}. {_capitalized(cause.title)}.", f"[{cause.confidence}]")]
            lines += _field(cause.checks[0], cause.evidence[0])
            if cause.why:
                lines += _field("cause", cause.why)
            if cause.remedy:
                lines += _field("do", cause.remedy)
            if rest := cause.checks[1:]:
                lines += _field("explains", ", ".join(rest))
        explained = self._explained_inconclusive()
        unexplained = [v for v in self.having("inconclusive") if v not in explained]
        advice = self._own_advice()
        allowed = [v for v in self.having("advice") if v not in advice]
        for title, verdicts, action in (
            ("inconclusive", unexplained, "what would settle it"),
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
                    lines += _field("  reason", verdict.notes[-1].removeprefix(f"{_ALLOWED}: "))
        lines += ["", "extended:"] * any(len(v.extended) > 1 for v in self.having("pass"))
        for verdict in (v for v in self.having("pass") if len(v.extended) > 1):
            lines += _field(verdict.check, verdict.headline)
            lines += [line for note in verdict.notes for line in _field("  note", note)]
        if explained:
            names = ", ".join(v.check for v in explained)
            lines += ["", *_wrapped(f"inconclusive because of the above: {names}")]
        for title, left_out in (("does not apply", self.not_applicable), ("not measured", self.not_measured)):
            lines += _reasons(title, [v for v in left_out if v.status == "skipped"])
        return clean("\n".join([*lines, "", *_wrapped(f"{self.coverage}.")]))

    def brief(self, width: int = WIDTH) -> str:
        """The message in at most 12 lines of ``width`` columns: the first cause with evidence and remedy, the others by name.

        >>> from pytest_ftcheck import Verdict
        >>> verdict = Verdict("loss_decreases", "inconclusive", "2 steps are too few.", remedy="set steps=40")
        >>> print(Diagnosis("undecided", (verdict,)).brief())
        healthy: INCONCLUSIVE. No check failed, but loss_decreases was inconclusive.
          loss_decreases: 2 steps are too few.
          what would settle it: set steps=40
        """
        arguments.whole("width", width, least=NARROWEST)
        status = {"healthy": "PASS", "unhealthy": "FAIL", "undecided": "INCONCLUSIVE"}[self.status]
        headline = f"healthy: {status}. {_capitalized(self.headline)}."
        lines = [textwrap.shorten(headline, 3 * width, placeholder=" ...")]
        room = BRIEF - len(textwrap.wrap(lines[0], width))
        if self.causes:
            first, *others = self.causes
            found = [*brief_field("cause", first.why, width)] if first.why else []
            found += brief_field(first.checks[0], first.evidence[0], width)
            found += brief_field("do", first.remedy, width) if first.remedy else []
            further = [brief_field("and", f"{cause.title} [{cause.checks[0]}]", width, most=1) for cause in others]
        else:
            explained = self._explained_inconclusive()
            open_ = [v for v in self.having("inconclusive") if v not in explained] or self._own_advice()
            found = [line for v in open_[:1] for line in brief_field(v.check, v.headline, width)]
            action = "what would settle it" if self.status == "undecided" else "do"
            found += [line for v in open_[:1] if v.remedy for line in brief_field(action, v.remedy, width)]
            further = [brief_field(v.check, v.headline, width, most=1) for v in open_[1:]]
        shown = [line for lines_ in further for line in lines_]
        room -= len(found)
        if len(shown) > room:
            shown = [*shown[: room - 1], f"  ... and {len(shown) - room + 1} more"] if room > 0 else []
        return clean("\n".join([*lines, *found, *shown]))

    def _repr_html_(self) -> str:
        return str(provided("notebook_diagnosis")(self))


def diagnose(trace: Trace | Runs, *, ignore: Iterable[str] = ()) -> Diagnosis:
    """Run every check on a trace, and rank the root causes of what failed.

    One fault makes many checks fail: if the head is not in the optimizer, it cannot move and the loss cannot fall. Each fault is
    reported once, with the checks that it explains.

    It judges what was measured and measures nothing: the last line says what was left out.

    :param ignore: names of checks to leave out.
    :raises TypeError: not a trace.  :raises ValueError: a name that is no check.

    >>> from pytest_ftcheck import example_trace
    >>> diagnose(example_trace(), ignore=["head_needed"]).causes
    ()
    """
    __tracebackhide__ = True
    if not isinstance(trace, (Trace, Runs)):
        raise TypeError(f"trace is {describe_type(trace)}: expected a trace from finetune() or watch()")
    left_out = _validated("ignore", ignore, CHECKS)
    verdicts = tuple(spec.judge(trace) for name, spec in SPECS.items() if name not in left_out)
    return conclude(verdicts)


def assert_healthy(
    trace: Trace | Runs,
    *,
    require: Iterable[str] = (),
    ignore: Iterable[str] = (),
    allow: Mapping[str, str] | Iterable[str] = (),
) -> Diagnosis:
    """Raise `CheckFailed` unless every check passes. Returns the diagnosis.

    An ``inconclusive`` check raises too, for it is no pass; the message says what would settle it. A check that does not apply or was not
    measured does not raise: the diagnosis counts it, and ``require`` says which checks must be judged.

    :param require: names of checks that must be judged. Those that were not measured are measured now, in the same fine-tune again; one
        that cannot be measured, or does not apply, is inconclusive.
    :param ignore: names of checks to leave out altogether.
    :param allow: names of checks, or of faults (`Verdict.fault`), whose failures are accepted, best with the reason:
        ``allow={"loss_decreases": "20 steps of warm-up are too few"}``. They are still checked, and reported as advice.
    :raises TypeError: not a trace.  :raises ValueError: a name that is no check (nor, in ``allow``, a fault); a check that is both required
        and ignored.

    >>> from pytest_ftcheck import example_trace
    >>> assert_healthy(example_trace(), allow={"head_needed": "we keep it"}).status
    'healthy'
    """
    __tracebackhide__ = True
    allowed = (
        arguments.mapping("allow", allow) if isinstance(allow, Mapping) else dict.fromkeys(_names("allow", allow), "")
    )
    _validated("allow", tuple(allowed), (*CHECKS, *FAULTS))
    for name, reason in allowed.items():
        if reason is not None and not isinstance(reason, str):
            raise TypeError(f"allow[{name!r}]={as_given(reason)}: expected the reason, a text")
    required, ignore = _validated("require", require, CHECKS), _names("ignore", ignore)
    if both := [name for name in required if name in ignore]:
        raise ValueError(f"require= and ignore= both name {', '.join(both)}")
    judged = (
        _judged_as_required(v, trace) if v.check in required else _judged_as_declared(v, trace)
        for v in diagnose(trace, ignore=ignore).verdicts
    )
    diagnosis = _extended(conclude(_as_allowed(v, allowed) for v in judged), trace, allowed)
    status: Status = {"healthy": "pass", "unhealthy": "fail", "undecided": "inconclusive"}[diagnosis.status]  # type: ignore[assignment]
    headline, reasons = diagnosis.headline, diagnosis.having("inconclusive") if status == "inconclusive" else ()
    if status == "pass" and fail_level.level() == "advice" and (advice := diagnosis._own_advice()):
        status, reasons = "advice", tuple(advice)
        headline = f"no check failed, but there is advice from {', '.join(v.check for v in advice)}"
    verdict = Verdict(
        "healthy",
        status,
        _capitalized(headline) + ".",
        causes=tuple(str(c) for c in diagnosis.causes) or tuple(f"{v.check}: {v.headline}" for v in reasons),
        remedy=next((r for r in (*(c.remedy for c in diagnosis.causes), *(v.remedy for v in reasons)) if r), ""),
        fault=diagnosis.causes[0].fault if diagnosis.causes else "",
        notes=_repeatable_note(diagnosis, trace),
    )
    notify(verdict, trace, diagnosis.verdicts)
    if fail_level.raises(verdict):
        raise fail_level.error(verdict, "\n\n".join([str(diagnosis), *verdict.notes]), diagnosis) from None
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
    """The root causes of the failed verdicts, the most fundamental first, each with the checks that it explains."""
    remaining = sorted(failed, key=rank_of)  # stable: checks of one rank stay in the order in which a run goes
    causes = []
    while remaining:
        first, remaining = remaining[0], remaining[1:]
        fault = FAULTS.get(first.fault)
        group = [first, *(v for v in remaining if _explained(v, fault))]
        remaining = [v for v in remaining if v not in group]
        causes.append(
            Cause(
                title=fault.title if fault is not None else _title(first),
                fault=first.fault,
                checks=tuple(v.check for v in group),
                evidence=tuple(v.headline for v in group),
                why=first.causes[0] if first.causes and fault is not None else "",
                remedy=first.remedy,
                confidence=fault.confidence if fault is not None else "possible",
            )
        )
    return tuple(causes)


def _explained(verdict: Verdict, fault: Fault | None) -> bool:
    if fault is None:
        return False
    return verdict.fault == fault.name or verdict.check in explained_by(fault)


def _title(verdict: Verdict) -> str:
    return (verdict.causes[0] if verdict.causes else verdict.headline).rstrip(".")


def _repeatable_note(diagnosis: Diagnosis, trace: Trace | Runs) -> tuple[str, ...]:
    """That a rerun gives the same; not where it depends on the seconds that a run takes whether it was extended."""
    if diagnosis.status == "healthy" or any(v.extended for v in diagnosis.verdicts):
        return ()
    return (again,) if (again := repeatable(trace)) else ()


def _extended(diagnosis: Diagnosis, trace: Trace | Runs, allowed: Mapping[str, str]) -> Diagnosis:
    """The diagnosis; where some checks are inconclusive and none failed, these are judged in a longer run, if the trace may have one."""
    if diagnosis.status != "undecided" or not isinstance(trace, Trace):
        return diagnosis
    open_ = {v.check: v for v in diagnosis.having("inconclusive") if not _is_required(v)}
    longer = {name: _as_allowed(judged_longer(SPECS[name].judge, trace, v), allowed) for name, v in open_.items()}
    return conclude(longer.get(v.check, v) for v in diagnosis.verdicts)


def _as_allowed(verdict: Verdict, allowed: Mapping[str, str]) -> Verdict:
    """The verdict; a failure that is allowed becomes advice. What a required check could not judge is no failure."""
    if verdict.ok or _is_required(verdict):
        return verdict
    name = next((n for n in (verdict.check, verdict.fault) if n and n in allowed), None)
    if name is None:
        return verdict
    note = f"{_ALLOWED}: {allowed[name]}" if allowed[name] else _ALLOWED
    return dataclasses.replace(verdict, status="advice", notes=(*verdict.notes, note))


def _judged_as_declared(verdict: Verdict, trace: Trace | Runs) -> Verdict:
    """The verdict; where something that is declared was not measured, that of the same fine-tune again with its probe, if it can be had."""
    return CHECKS[verdict.check](trace) if verdict.status == "inconclusive" and verdict.unmeasured else verdict


def _judged_as_required(verdict: Verdict, trace: Trace | Runs) -> Verdict:
    """The verdict of a required check, measured now if it was not; ``inconclusive`` where it cannot be judged."""
    if verdict.unmeasured:
        verdict = CHECKS[verdict.check](trace)
    if verdict.status == "inconclusive" and verdict.unmeasured:
        return dataclasses.replace(verdict, notes=(*verdict.notes, _REQUIRED))
    if verdict.status != "skipped":
        return verdict
    return dataclasses.replace(
        verdict,
        status="inconclusive",
        headline=f"It is required and does not apply: {_reason(verdict)}.",
        remedy=f"make the run one that {verdict.check} can judge, or take it out of require=",
        notes=(*verdict.notes, _REQUIRED),
    )


def _is_required(verdict: Verdict) -> bool:
    """Whether it is the verdict of a required check that could not be judged."""
    return _REQUIRED in verdict.notes[-1:]


def _names(argument: str, value: Iterable[str]) -> tuple[str, ...]:
    __tracebackhide__ = True
    return arguments.texts(argument, value, "names of checks")


def _validated(argument: str, value: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    __tracebackhide__ = True
    names, valid = _names(argument, value), list(known)
    also = " and no fault" if len(valid) > len(CHECKS) else ""
    errors = []
    for name in dict.fromkeys(n for n in names if n not in valid):
        near = difflib.get_close_matches(name.removeprefix("assert_").removeprefix("check_"), valid, 3)
        hint = f"did you mean {', '.join(near)}?" if near else f"the checks are {', '.join(CHECKS)}"
        errors.append(f"{argument}={as_given(name)} is no check{also}; {hint}")
    if errors:
        raise ValueError("\n".join(errors))
    return names


def _reason(verdict: Verdict) -> str:
    """Why a check judged nothing, without a full stop."""
    return verdict.headline.removeprefix("Not measured").lstrip(": ").rstrip(".")


def _reasons(title: str, verdicts: list[Verdict]) -> list[str]:
    """The checks that were left out, by reason."""
    reasons: dict[str, list[str]] = {}
    for verdict in verdicts:
        reasons.setdefault(_reason(verdict) or "no reason given", []).append(verdict.check)
    lines = ["", f"{title}:"] if reasons else []
    for reason, checks in reasons.items():
        lines += _field(", ".join(checks), reason)
    return lines


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _wrapped(text: str, tail: str = "") -> list[str]:
    return textwrap.wrap(f"{text} {tail}".rstrip(), WIDTH, subsequent_indent="   ", break_on_hyphens=False)


def _field(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{name}: {text}", WIDTH, initial_indent="   ", subsequent_indent="     ", break_on_hyphens=False
    )
