"""How well outputs rank the rows of each class or tag, where no threshold is reached: the area under the ROC curve, by permutation."""

from __future__ import annotations

import numpy as np
import torch

from ..core.observations import Ranking

#: Label permutations, and numbers (rows times classes) above which none are made.
PERMUTATIONS, MOST = 999, 20_000
#: Numbers that are processed at once, about: 16 MB.
AT_ONCE = 2_000_000


def ranking(task: str | None, first: torch.Tensor, last: torch.Tensor, truth: np.ndarray) -> Ranking | None:
    """The mean AUC over classes (tags) before and after the run, and how many permutations of the labels have as high a one after it,
    and as large a rise.

    An output that is below its threshold for every row says nothing to accuracy, precision and recall, and may rank the rows rightly
    all the same (Fawcett, Pattern Recognition Letters 27, 2006). None for regression, and where no class has rows in it and rows outside.

    :param first, last: logits before and after, ``(rows, classes)`` or ``(rows,)``.  :param truth: class of each row, or tags on or off.

    >>> truth = np.array([0] * 12 + [1] * 4)
    >>> found = ranking("single_label", torch.zeros(16), torch.arange(16.0) - 100, truth)
    >>> found.first, found.last, found.p_value < 0.01
    (0.5, 1.0, True)
    """
    if task not in ("single_label", "multi_label"):
        return None
    before, after = (_scores(task, x) for x in (first, last))
    if after.size > MOST or not np.isfinite(after).all() or not np.isfinite(before).all():
        return None
    on = truth if truth.ndim == 2 else np.stack([truth == c for c in _classes(after)], axis=1)
    on = on.astype(bool)[:, : after.shape[1]]
    positive = on.sum(0)
    judged = (positive > 0) & (positive < len(on))
    if on.shape != after.shape or not judged.any():
        return None
    on, counts = on[:, judged], positive[judged].astype(float)
    ranks = {name: _ranks(x[:, judged]) for name, x in (("first", before), ("last", after))}

    def areas(which: str, orders: np.ndarray) -> np.ndarray:
        sums = (ranks[which] * on[orders]).sum(1)
        return np.asarray(((sums - counts * (counts + 1) / 2) / (counts * (len(on) - counts))).mean(1))

    rng = np.random.default_rng(0)
    as_it_is = np.arange(len(on))[None]
    begun, score = float(areas("first", as_it_is)[0]), float(areas("last", as_it_is)[0])
    orders = np.stack([rng.permutation(len(on)) for _ in range(PERMUTATIONS)])
    as_good = as_much = 0
    for some in np.array_split(orders, max(1, orders.shape[0] * on.size // AT_ONCE)):
        first_area, last_area = areas("first", some), areas("last", some)
        as_good += int((last_area >= score - 1e-12).sum())
        as_much += int((last_area - first_area >= score - begun - 1e-12).sum())
    return Ranking(begun, score, (1 + as_good) / (1 + PERMUTATIONS), (1 + as_much) / (1 + PERMUTATIONS))


def _scores(task: str, logits: torch.Tensor) -> np.ndarray:
    """A number for each class and row: probabilities in logarithms for classes that compete, else the logits."""
    x = logits.double().reshape(len(logits), -1)
    out: np.ndarray = (x.log_softmax(1) if task == "single_label" and x.shape[1] > 1 else x).numpy()
    return out


def _classes(scores: np.ndarray) -> range:
    """The classes that columns stand for: one column stands for class 1."""
    return range(scores.shape[1]) if scores.shape[1] > 1 else range(1, 2)


def _ranks(columns: np.ndarray) -> np.ndarray:
    """Rank of each value in its column, from 1; equal values share their mean rank."""
    out = np.empty(columns.shape)
    for j, column in enumerate(columns.T):
        _, place, counts = np.unique(column, return_inverse=True, return_counts=True)
        out[:, j] = (counts.cumsum() - (counts - 1) / 2)[place.reshape(-1)]
    return out
