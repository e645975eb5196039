"""Classes of the held-out rows that are predicted as each other: told apart, and named differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...core.observations import Metric
from ...core.trace import Trace
from ..learning import loss_fell

#: Rows of a class, and the share of them that is predicted as one other class, from which classes are called exchanged. By chance a class
#: of 8 rows is, of four classes, taken for one other in 80 % with a probability of 4e-4, and two for each other with its square.
EXCHANGED_ROWS, EXCHANGED_SHARE = 8, 0.8
#: A model that is right for fewer rows exchanges two classes less clearly. In a run whose loss fell, this share of both will do, if classes
#: that the model does not tell apart would be taken for each other like that less than once in a million times (Fisher's exact test).
MAJORITY, BY_CHANCE = 0.6, 1e-6
#: A model that does not know all classes as yet: one class is right in this share of its training rows, of so many or more, and of the
#: held-out rows it is taken for another class, while those of a third are taken for it.
KNOWN_ROWS, KNOWN_SHARE = 5, 0.8


@dataclass(frozen=True)
class KnownClass:
    """A class that the model knows in training."""

    label: int
    rows: int
    right: int


class Exchange(NamedTuple):
    """Classes of the held-out rows that are taken for others."""

    metric: Metric
    #: Each of them, and the class that it is taken for.
    moved: dict[int, int]
    #: The least share of its rows.
    share: float
    #: A class that training knows under its number, where not all of them are taken for each other.
    known: KnownClass | None = None


def exchanged_classes(trace: Trace) -> Exchange | None:
    """The classes that are taken for each other; None: none are."""
    for metric in trace.metrics:
        if metric.source != "held-out rows" or not metric.taken_for:
            continue
        clear = _moved(metric, EXCHANGED_SHARE)
        if _permuted(clear):
            return Exchange(metric, clear, EXCHANGED_SHARE)
        if not loss_fell(trace):
            continue
        most = _moved(metric, MAJORITY)
        pairs = {c: g for c, g in most.items() if most.get(g) == c and _by_chance(metric, c, g) < BY_CHANCE}
        if pairs:
            return Exchange(metric, pairs, MAJORITY)
        if known := _numbered_otherwise(clear, trace):
            return Exchange(metric, clear, EXCHANGED_SHARE, known)
    return None


def _numbered_otherwise(moved: dict[int, int], trace: Trace) -> KnownClass | None:
    """A class that is known in training and taken for another one here, while rows of a third are taken for it."""
    for c, (rows, right) in enumerate(trace.probe_loss.right if trace.probe_loss is not None else ()):
        taken_for_it = {other for other, guess in moved.items() if guess == c}
        if rows >= KNOWN_ROWS and right >= KNOWN_SHARE * rows and c in moved and taken_for_it - {moved[c]}:
            return KnownClass(c, rows, right)
    return None


def _moved(metric: Metric, share: float) -> dict[int, int]:
    """Class -> another one, for which this share of its rows is taken."""
    return {
        c: guess
        for c, (guess, taken) in enumerate(metric.taken_for)
        if c != guess and c < len(metric.actual) and metric.actual[c] >= EXCHANGED_ROWS and taken >= share
    }


def _permuted(moved: dict[int, int]) -> bool:
    """Whether each of them is taken for another of them, and no two for the same: another numbering, and no constant prediction."""
    return len(moved) >= 2 and set(moved) == set(moved.values())


def _by_chance(metric: Metric, one: int, other: int) -> float:
    """Probability of so many exchanged rows if the prediction did not depend on which of the two classes a row has; the rows that are not
    taken for the other class count as right."""
    import numpy as np
    from scipy.stats import fisher_exact

    rows = [metric.actual[c] for c in (one, other)]
    taken = [round(metric.taken_for[c][1] * n) for c, n in zip((one, other), rows, strict=True)]
    table = np.array([[rows[0] - taken[0], taken[0]], [taken[1], rows[1] - taken[1]]])
    return float(fisher_exact(table, alternative="less").pvalue)
