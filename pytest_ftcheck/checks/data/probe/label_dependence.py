"""Do labels depend on inputs? Permutation tests with several ways of comparing rows (`row_similarity`).

The statistic is the Hilbert-Schmidt independence criterion (Gretton et al., ALT 2005): the sum over all pairs of rows of the
similarity of their inputs times the similarity of their labels, both centred. Label permutations give its distribution under
independence, exactly (Phipson and Smyth 2010). One comparison sees tokens, another pairs of tokens, another their order; a last one
looks at counts of single tokens, by the largest of many dependences instead of their sum.
"""

from __future__ import annotations

import numpy as np

from ....instruments.row_hashes import Rows, first_occurrences
from ....instruments.tasks import IGNORED
from ..record import Dependence
from .row_similarity import Kernel, first_tokens, inverse_frequency, kernels, token_counts, token_presence

#: Rows compared, at most, and at least: fewer show nothing.
MOST_ROWS, MIN_ROWS = 512, 100
#: Label permutations of the full test, and of a first one, which ends the test if the dependence is clear: so many of their
#: standard deviations away.
PERMUTATIONS, FIRST, CLEAR = 499, 99, 6.0
#: A test that at most this share of permutations pass by chance has found something.
ALPHA = 0.005
#: Simulated labellings, the share of rows in which they follow their rule, and label permutations for each: just enough for ``ALPHA``.
SIMULATED, FAITHFUL, SIMULATED_PERMUTATIONS = 6, 0.7, 199
#: The comparison by the counts of single tokens.
COUNTS = "counts of single tokens"


def measure_dependence(rows: Rows, task: str | None) -> tuple[Dependence | None, str | None]:
    """Whether labels depend on inputs; None and the reason where that cannot be tested. Rows with the same inputs count as one."""
    target = rows.target()
    if target is None or task is None:
        return None, "the labels could not be read"
    coded = code_labels(target, task)
    if coded is None:
        return None, "there is not exactly one label per row"
    keep = _distinct(rows, np.flatnonzero(np.isfinite(coded).all(1) & (coded != 0).any(1)))
    if len(keep) > MOST_ROWS:
        keep = keep[np.linspace(0, len(keep) - 1, MOST_ROWS).astype(int)]
    if len(keep) < MIN_ROWS:
        return None, f"the test needs {MIN_ROWS} distinct labelled rows, and {len(keep)} were read"
    y = coded[keep] - coded[keep].mean(0)
    if not (np.abs(y) > 1e-12).any():
        return None, "all labels are the same"
    ways = kernels(rows, keep)
    if not ways:
        return None, "the inputs are neither tokens nor numbers"
    rng = np.random.default_rng(0)
    p_values: dict[str, float] = {}
    computed: dict[str, Kernel] = {}
    first = Permuted(y, FIRST, rng)
    for name, compute in ways.items():
        computed[name] = compute()
        p_values[name], deviations = first.test(computed[name])
        if deviations >= CLEAR:
            return Dependence(len(keep), FIRST, p_values), None
    full = Permuted(y, PERMUTATIONS, rng)
    p_values = {name: full.test(kernel)[0] for name, kernel in computed.items()}
    if rows.ids and (counts := token_counts(first_tokens(rows, keep))).shape[1]:
        p_values[COUNTS] = full.test_columns(counts)
    if min(p_values.values()) <= ALPHA:
        return Dependence(len(keep), PERMUTATIONS, p_values), None
    controls = [Permuted(labels, SIMULATED_PERMUTATIONS, rng) for labels in simulated_labels(rows, keep, rng)]
    detected = sum(any(c.test(kernel)[0] <= ALPHA for kernel in computed.values()) for c in controls)
    shifted = _shifted_dependence(rows, coded, keep, computed, rng)
    return Dependence(len(keep), PERMUTATIONS, p_values, SIMULATED, detected, shifted), None


def _distinct(rows: Rows, labelled: np.ndarray) -> np.ndarray:
    """The labelled rows without repetitions: copies are alike in inputs and labels whether labels depend on inputs or not."""
    keys = rows.keys()
    return labelled[first_occurrences([keys[i] for i in labelled])] if keys else labelled


def code_labels(target: np.ndarray, task: str) -> np.ndarray | None:
    """Labels as columns whose products are the similarity of two labels; a row of zeros: ignored."""
    if task == "single_label":
        if target.ndim != 1:
            return None
        flat = target.astype(np.int64)
        values = np.unique(flat[flat != IGNORED])
        hot = (flat[:, None] == values[None, :]).astype(np.float64)
        return np.asarray(hot / np.sqrt(np.maximum(hot.sum(0), 1)))  # a rare class counts as much as a common one
    columns = target.reshape(len(target), -1).astype(np.float64)
    if task == "regression":  # ranks: no single target outweighs the rest
        columns = np.argsort(np.argsort(columns, axis=0, kind="stable"), axis=0).astype(np.float64)
    spread = columns.std(0)
    columns = (columns - columns.mean(0)) / np.where(spread > 0, spread, 1)
    # the constant is centred away; it marks the row as labelled
    return np.concatenate([columns, np.ones((len(columns), 1))], axis=1)


class Permuted:
    """Labels beside permutations of themselves, drawn once and used with every kernel."""

    def __init__(
        self, y: np.ndarray, permutations: int, rng: np.random.Generator, orders: np.ndarray | None = None
    ) -> None:
        self.permutations = permutations
        self.y = y.astype(np.float32)
        if orders is None:
            orders = np.argsort(rng.random((len(y), permutations), dtype=np.float32), axis=0)
        self.shuffled = self.y[orders].reshape(len(y), -1)

    def test(self, kernel: Kernel) -> tuple[float, float]:
        """The p-value, and the standard deviations of the permutations by which the observed dependence lies above their mean.

        The p-value is the share of permutations with at least as much dependence, the observed one included.
        """
        products = np.einsum("ij,ij->j", self.shuffled, kernel @ self.shuffled)
        permuted = products.reshape(self.permutations, -1).sum(1, dtype=np.float64)
        observed = float((self.y * (kernel @ self.y)).sum(dtype=np.float64))
        deviations = (observed - float(permuted.mean())) / max(float(permuted.std()), 1e-30)
        return self._p_value(permuted >= observed - 1e-6 * abs(observed)), deviations

    def test_columns(self, columns: np.ndarray) -> float:
        """The p-value of the column that depends most on the labels: for rules of a single column, which a sum over all would hide."""
        observed = float(((columns.T @ self.y) ** 2).sum(1).max())
        products = (columns.T @ self.shuffled) ** 2
        permuted = products.reshape(columns.shape[1], self.permutations, -1).sum(2).max(0)
        return self._p_value(permuted >= observed * (1 - 1e-6))

    def _p_value(self, as_large: np.ndarray) -> float:
        return float(1 + as_large.sum()) / (1 + self.permutations)


def simulated_labels(rows: Rows, keep: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Labels that do depend on these inputs, as positive controls: a test that misses them has no say about the real ones.

    A random direction in the space of tokens (or numbers) splits the rows into halves; in ``FAITHFUL`` of the rows the label
    follows the split, in the others it is random.
    """
    if rows.ids:
        points = inverse_frequency(token_presence(first_tokens(rows, keep)))
    else:
        points = np.concatenate(list(rows.floats))[keep].astype(np.float32) if rows.floats else np.zeros((len(keep), 1))
        points = np.nan_to_num(points)
    labels = []
    for _ in range(SIMULATED):
        side = _random_halves(points, rng)
        random = rng.random(len(keep)) > FAITHFUL
        side = np.where(random, rng.permutation(side), side)
        labels.append((side - side.mean())[:, None].astype(np.float64))
    return labels


def _random_halves(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    score = points @ rng.standard_normal(points.shape[1])
    return np.asarray(score > np.median(score))


def _shifted_dependence(
    rows: Rows, coded: np.ndarray, keep: np.ndarray, computed: dict[str, Kernel], rng: np.random.Generator
) -> dict[str, float]:
    """How clear the dependence is with labels moved by one to three rows, or reversed in each batch (deviations, see `Permuted.test`)."""
    batch = np.asarray(rows.batch)
    starts = np.flatnonzero(np.r_[True, batch[1:] != batch[:-1]])
    groups = np.split(np.arange(len(batch)), starts[1:])
    all_rows = np.arange(len(batch))
    moves = {
        "one row back": [np.roll(g, -1) for g in groups],
        "one row on": [np.roll(g, 1) for g in groups],
        "in reverse": [g[::-1] for g in groups],
        "one row back over all batches": [np.roll(all_rows, -1)],
        "one row on over all batches": [np.roll(all_rows, 1)],
        **{
            f"{number} rows {way} over all batches": [np.roll(all_rows, sign * by)]
            for by, number in ((2, "two"), (3, "three"))
            for way, sign in (("back", -1), ("on", 1))
        },
    }
    clearness: dict[str, float] = {}
    for name, parts in moves.items():
        order = np.concatenate(parts)
        y = coded[order][keep]
        moved = Permuted(y - y.mean(0), FIRST, rng)
        clearness[name] = max(moved.test(kernel)[1] for kernel in computed.values())
    return clearness
