"""The diagnosis that a report shows of a trace: the session's own verdicts, or all checks where no session judged it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..core.verdict import WORST_FIRST, Verdict

if TYPE_CHECKING:
    from ..checks.diagnosis import Diagnosis
    from ..core.trace import Trace


def diagnosis_of(trace: Trace, verdicts: Iterable[Verdict] = ()) -> Diagnosis:
    """The only place where reports diagnose.

    :param verdicts: what a session concluded of the trace, under its own options; empty: no session judged it, so all checks are run.

    >>> from pytest_ftcheck import example_trace
    >>> diagnosis_of(example_trace()).status
    'healthy'
    >>> diagnosis_of(example_trace(), [Verdict("weights_move", "fail", "1 of 4 tensors did not move.")]).status
    'unhealthy'
    """
    from ..checks.diagnosis import Diagnosis, conclude, diagnose

    if reached := tuple(verdicts):
        return conclude(reached)
    try:
        return diagnose(trace)
    except ValueError as error:  # it has no tensors
        return Diagnosis("undecided", (Verdict("healthy", "inconclusive", f"The checks cannot be run: {error}."),))


def worst_of_each_check(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """One verdict a check: the worst, and the latest of those.

    >>> passed, failed = Verdict("loss_decreases", "pass", "It fell."), Verdict("loss_decreases", "fail", "It rose.")
    >>> [v.status for v in worst_of_each_check([failed, passed])]
    ['fail']
    """
    worst: dict[str, Verdict] = {}
    for verdict in verdicts:
        known = worst.get(verdict.check)
        if known is None or WORST_FIRST.index(verdict.status) <= WORST_FIRST.index(known.status):
            worst[verdict.check] = verdict
    return tuple(worst.values())


def verdicts_to_text(verdicts: Iterable[Verdict]) -> str:
    """As ASCII, for the way from xdist's workers: names may hold halves of surrogate pairs.

    >>> verdict = Verdict("loss_decreases", "fail", "It rose.", ({"step": 3, "loss": float("inf")},))
    >>> verdicts_from_text(verdicts_to_text([verdict])) == (verdict,)
    True
    """
    return json.dumps([dataclasses.asdict(verdict) for verdict in verdicts], default=str)


def verdicts_from_text(text: str) -> tuple[Verdict, ...]:
    """The inverse of `verdicts_to_text`."""
    lists = ("evidence", "causes", "notes", "extended")
    return tuple(Verdict(**{**fields, **{name: tuple(fields[name]) for name in lists}}) for fields in json.loads(text))
