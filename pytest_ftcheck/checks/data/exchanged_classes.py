"""Classes of the held-out rows that are predicted as each other: told apart, and named differently."""

from __future__ import annotations

from ...core.observations import Metric
from ...core.trace import Trace
from ..learning import loss_fell

#: Rows of a class, and the share of them that is predicted as one other class, from which classes are called exchanged. By chance a class
#: of 8 rows is, of four classes, taken for one other in 80 % with a probability of 4e-4, and two for each other with its square.
EXCHANGED_ROWS, EXCHANGED_SHARE = 8, 0.8
#: A model that is right for fewer rows exchanges two classes less clearly. In a run whose loss fell, this share of both will do, if classes
#: that the model does not tell apart would be taken for each other like that less than once in a million times (Fisher's exact test).
MAJORITY, BY_CHANCE = 0.6, 1e-6


def exchanged_classes(trace: Trace) -> tuple[Metric, dict[int, int], float] | None:
    """The metric that shows it, the class that each of them is taken for, and the least share of its rows; None: none are exchanged."""
    for metric in trace.metrics:
        if metric.source != "held-out rows" or not metric.taken_for:
            continue
        if clear := _permuted(_moved(metric, EXCHANGED_SHARE)):
            return metric, clear, EXCHANGED_SHARE
        most = _moved(metric, MAJORITY) if loss_fell(trace) else {}
        pairs = {c: g for c, g in most.items() if most.get(g) == c and _by_chance(metric, c, g) < BY_CHANCE}
        if pairs:
            return metric, pairs, MAJORITY
    return None


def _moved(metric: Metric, share: float) -> dict[int, int]:
    """Class -> another one, for which this share of its rows is taken."""
    return {
        c: guess
        for c, (guess, taken) in enumerate(metric.taken_for)
        if c != guess and c < len(metric.actual) and metric.actual[c] >= EXCHANGED_ROWS and taken >= share
    }


def _permuted(moved: dict[int, int]) -> dict[int, int]:
    """The same if each of them is taken for another of them, and no two for the same: another numbering, and no constant prediction."""
    return moved if len(moved) >= 2 and set(moved) == set(moved.values()) else {}


def _by_chance(metric: Metric, one: int, other: int) -> float:
    """Probability of so many exchanged rows if the prediction did not depend on which of the two classes a row has; the rows that are not
    taken for the other class count as right."""
    import numpy as np
    from scipy.stats import fisher_exact

    rows = [metric.actual[c] for c in (one, other)]
    taken = [round(metric.taken_for[c][1] * n) for c, n in zip((one, other), rows, strict=True)]
    table = np.array([[rows[0] - taken[0], taken[0]], [taken[1], rows[1] - taken[1]]])
    return float(fisher_exact(table, alternative="less").pvalue)
