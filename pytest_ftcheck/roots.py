"""Which fault is at the root of what: one table, from the most fundamental fault to the mere symptom.

A fault at the root explains the failures of other checks: they are listed with it, not beside it. Verdicts whose fault is not in the
table come after those that are, in the order of the checks.
"""

from __future__ import annotations

from dataclasses import dataclass

from .checks import CHECKS
from .verdict import Verdict


@dataclass(frozen=True)
class Root:
    """One row of the table."""

    #: Short name, as in `Verdict.fault`.
    fault: str
    #: What is wrong, in one line, without numbers.
    title: str
    #: Checks that fail merely because of it.
    explains: frozenset[str]
    #: ``certain``, ``likely`` or ``possible``.
    confidence: str = "likely"


#: Checks of what came of a run: any fault at its root can make them fail.
OUTCOMES = ("loss_decreases", "metric_improves", "loss_stable", "labels_learnable")


def _root(fault: str, title: str, *explains: str, confidence: str = "likely") -> Root:
    return Root(fault, title, frozenset((*OUTCOMES, *explains)), confidence)


ROOTS: tuple[Root, ...] = ()
_RANK = {root.fault: i for i, root in enumerate(ROOTS)}
_ORDER = {name: i for i, name in enumerate(CHECKS)}


def root_of(verdict: Verdict) -> Root | None:
    """The row of the verdict's fault; None: it has none."""
    index = _RANK.get(verdict.fault)
    return None if index is None else ROOTS[index]


def rank_of(verdict: Verdict) -> tuple[int, int]:
    """Sorts verdicts, the most fundamental fault first."""
    return _RANK.get(verdict.fault, len(ROOTS)), _ORDER.get(verdict.check, len(_ORDER))
