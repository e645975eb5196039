"""All checks over one trace, and the root causes behind what they found, ranked: a table, not a framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .checks import CHECKS
from .trace import Trace
from .verdict import Verdict

Health = Literal["healthy", "ill", "undecided"]


@dataclass(frozen=True)
class Cause:
    """One root cause: what is wrong, how that is known, and what to do.

    >>> Cause("the head is in no parameter group", "not_in_optimizer", ("optimizer_covers_model",)).title
    'the head is in no parameter group'
    """

    #: What is wrong, in one line.
    title: str
    #: Short name of the fault.
    fault: str
    #: Checks that show it, the one that names it first.
    checks: tuple[str, ...]
    #: Their headlines.
    evidence: tuple[str, ...] = ()
    #: The line to change.
    remedy: str = ""
    #: ``certain`` (structure or declared intent), ``likely`` or ``possible``.
    confidence: str = "likely"


@dataclass(frozen=True)
class Diagnosis:
    """All verdicts of one trace, and what is behind them.

    >>> from pytest_ftcheck import example_trace
    >>> diagnose(example_trace()).status
    'healthy'
    """

    #: ``healthy``, ``ill`` (some check failed) or ``undecided`` (none failed, but a run this short cannot tell).
    status: Health
    verdicts: tuple[Verdict, ...]
    #: Root causes, most likely first; empty where nothing failed.
    causes: tuple[Cause, ...] = ()


def diagnose(trace: Trace) -> Diagnosis:
    """Run every check on a trace, and rank the root causes of what failed.

    >>> from pytest_ftcheck import example_trace
    >>> diagnose(example_trace()).causes
    ()
    """
    if not isinstance(trace, Trace):
        raise TypeError(f"trace is a {type(trace).__name__}: expected what finetune() or watch() gave")
    verdicts = tuple(check(trace) for check in CHECKS.values())
    failed = [v for v in verdicts if v.status == "fail"]
    causes = tuple(
        Cause(v.causes[0] if v.causes else v.headline, v.fault, (v.check,), (v.headline,), v.remedy) for v in failed
    )
    status: Health = (
        "ill" if failed else "undecided" if any(v.status == "inconclusive" for v in verdicts) else "healthy"
    )
    return Diagnosis(status, verdicts, causes)


def assert_healthy(
    trace: Trace, *, ignore: Sequence[str] = (), allow: Mapping[str, Any] | Sequence[str] = ()
) -> Diagnosis:
    """Raise `CheckFailed` unless no check fails. ignore, allow.

    >>> from pytest_ftcheck import example_trace
    >>> assert_healthy(example_trace()).status
    'healthy'
    """
    return diagnose(trace)
