"""Do labels depend on inputs? Permutation tests with several ways of comparing rows.

The statistic is the Hilbert-Schmidt independence criterion (Gretton et al., ALT 2005): the sum over all pairs of rows of how
alike their inputs are times how alike their labels are, both centred. Label permutations give its distribution under
independence, exactly (Phipson and Smyth 2010). One comparison sees words, another pairs of words, another their order; a last one
looks at single words and how often they occur, by the largest of many dependences instead of their sum.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....instruments.row_hashes import Rows
from ..record import Dependence

#: Rows compared, tokens of a row, and label permutations, at most.
ROWS, TOKENS, PERMUTATIONS = 512, 64, 499
#: A first look with fewer permutations ends the test where the dependence is plain: so many of their standard deviations away.
FIRST, PLAIN = 99, 6.0
#: A test that at most this share of permutations pass by luck has found something.
ALPHA = 0.005
#: Rows below which nothing is tested.
LEAST = 100
#: Made-up labellings, and the share of rows in which they follow the rule.
PLANTS, FAITHFUL = 6, 0.7
#: Permutations for each of them: just enough for a p-value of ``ALPHA``.
PLANTED = 199
#: Hashed features of pairs of tokens.
BUCKETS = 2048
#: A word's occurrences that are told apart, and rows that a count must be found in, and be missing from.
MOST_OFTEN, SHARED = 5, 10
Kernel = np.ndarray


def measure_dependence(rows: Rows, task: str | None) -> tuple[Dependence | None, str | None]:
    """Whether labels depend on inputs; None and the reason where that cannot be tested."""
    target = rows.target()
    if target is None or task is None:
        return None, "the labels could not be read"
    coded = code(target, task)
    if coded is None:
        return None, "there is not one label a row"
    keep = np.flatnonzero(np.isfinite(coded).all(1) & (coded != 0).any(1))
    if len(keep) > ROWS:
        keep = keep[np.linspace(0, len(keep) - 1, ROWS).astype(int)]
    if len(keep) < LEAST:
        return None, f"{len(keep)} labelled rows, and fewer than {LEAST} tell nothing"
    y = coded[keep] - coded[keep].mean(0)
    if not (np.abs(y) > 1e-12).any():
        return None, "all labels are the same"
    kernels = compare(rows, keep)
    if not kernels:
        return None, "the inputs are neither tokens nor numbers"
    rng = np.random.default_rng(0)
    p_values: dict[str, float] = {}
    built: dict[str, Kernel] = {}
    first = Permuted(y, FIRST, rng)
    for name, make in kernels.items():
        built[name] = make()
        p_values[name], away = first.test(built[name])
        if away >= PLAIN:
            return Dependence(len(keep), FIRST, p_values), None
    full = Permuted(y, PERMUTATIONS, rng)
    p_values = {name: full.test(kernel)[0] for name, kernel in built.items()}
    if rows.ids and (counted := counts([rows.ids[i][:TOKENS] for i in keep])).shape[1]:
        p_values["how often one word occurs"] = full.test_each(counted)
    if min(p_values.values()) <= ALPHA:
        return Dependence(len(keep), PERMUTATIONS, p_values), None
    plants = [Permuted(labels, PLANTED, rng) for labels in planted(rows, keep, rng)]
    found = sum(any(plant.test(kernel)[0] <= ALPHA for kernel in built.values()) for plant in plants)
    return (
        Dependence(len(keep), PERMUTATIONS, p_values, PLANTS, found, _shifted(rows, coded, keep, built, rng)),
        None,
    )


def code(target: np.ndarray, task: str) -> np.ndarray | None:
    """Labels as columns whose products say how alike two labels are; a row of zeros: left out."""
    if task == "single_label":
        if target.ndim != 1:
            return None
        flat = target.astype(np.int64)
        values = np.unique(flat[flat != -100])
        hot = (flat[:, None] == values[None, :]).astype(np.float64)
        return np.asarray(hot / np.sqrt(np.maximum(hot.sum(0), 1)))  # a rare class counts as much as a common one
    columns = target.reshape(len(target), -1).astype(np.float64)
    if task == "regression":  # ranks: no single target outweighs the rest
        columns = np.argsort(np.argsort(columns, axis=0, kind="stable"), axis=0).astype(np.float64)
    spread = columns.std(0)
    columns = (columns - columns.mean(0)) / np.where(spread > 0, spread, 1)
    return np.concatenate(
        [columns, np.ones((len(columns), 1))], axis=1
    )  # the constant is centred away; it marks the row as there


class Permuted:
    """Labels beside permutations of themselves, made once and used with every kernel."""

    def __init__(self, y: np.ndarray, permutations: int, rng: np.random.Generator) -> None:
        self.permutations = permutations
        self.y = y.astype(np.float32)
        orders = np.argsort(rng.random((len(y), permutations), dtype=np.float32), axis=0)
        self.shuffled = self.y[orders].reshape(len(y), -1)

    def test(self, kernel: Kernel) -> tuple[float, float]:
        """Share of permutations with at least as much dependence, the observed one counted in; and by how many of their standard
        deviations the observed dependence lies above their mean."""
        products = np.einsum("ij,ij->j", self.shuffled, kernel @ self.shuffled)
        by_luck = products.reshape(self.permutations, -1).sum(1, dtype=np.float64)
        observed = float((self.y * (kernel @ self.y)).sum(dtype=np.float64))
        away = (observed - float(by_luck.mean())) / max(float(by_luck.std()), 1e-30)
        return float(1 + (by_luck >= observed - 1e-6 * abs(observed)).sum()) / (1 + self.permutations), away

    def test_each(self, columns: np.ndarray) -> float:
        """Share of permutations in which the column that depends most on the labels does so at least as much: for rules that hang on
        one column, which a sum over all of them drowns."""
        observed = float(((columns.T @ self.y) ** 2).sum(1).max())
        products = (columns.T @ self.shuffled) ** 2
        by_luck = products.reshape(columns.shape[1], self.permutations, -1).sum(2).max(0)
        return float(1 + (by_luck >= observed * (1 - 1e-6)).sum()) / (1 + self.permutations)


def compare(rows: Rows, keep: np.ndarray) -> dict[str, Callable[[], Kernel]]:
    """Ways of comparing the rows, each a centred matrix of likeness; the cheapest first."""
    ways: dict[str, Callable[[], Kernel]] = {}
    if rows.ids:
        texts = [rows.ids[i][:TOKENS] for i in keep]
        there = words(texts)
        bag = rare_first(there)
        likeness = _cosine(bag)
        ways["words"] = lambda: _centre(likeness)
        ways["pairs of words"] = lambda: _centre(_combinations(bag, 2))
        ways["triples of words"] = lambda: _centre(_combinations(there - there.mean(0), 3))
        ways["neighbouring words"] = lambda: _centre(_cosine(_ordered(texts, 1)))
        ways["order of words"] = lambda: _centre(_cosine(_ordered(texts, 8)))
        ways["places"] = lambda: _centre(_places(texts))
        ways["length and repetition"] = lambda: _centre(_gaussian(_shape(rows.ids, keep)))
        ways["ids as numbers"] = lambda: _centre(_gaussian(_as_numbers(rows.ids, keep)))
    if rows.floats and len({block.shape[1] for block in rows.floats}) == 1:
        numbers = np.concatenate(rows.floats)[keep].astype(np.float64)
        numbers = np.nan_to_num(numbers, posinf=0, neginf=0)
        scaled = (numbers - numbers.mean(0)) / np.where(numbers.std(0) > 0, numbers.std(0), 1)
        ways["numbers, linear"] = lambda: _centre(scaled @ scaled.T)
        ways["numbers, near"] = lambda: _centre(_gaussian(scaled))
        ways["pairs of numbers"] = lambda: _centre((scaled @ scaled.T) ** 2)
    for name, blocks in rows.single.items():
        column = np.concatenate(blocks)[keep].astype(np.float64)
        if not rows.ids and not rows.floats and column.std() > 0:
            ways[name] = lambda column=column: _centre(_gaussian((column - column.mean())[:, None] / column.std()))  # type: ignore[misc]
    return ways


def words(texts: list[np.ndarray]) -> np.ndarray:
    """Which words stand in which row: ``(rows, words)``, without those of one row only, or of all: they compare nothing."""
    vocabulary = np.unique(np.concatenate(texts)) if texts else np.array([], dtype=np.int64)
    there = np.zeros((len(texts), len(vocabulary)), dtype=np.float32)
    for i, text in enumerate(texts):
        there[i, np.searchsorted(vocabulary, text)] = 1
    counts = there.sum(0)
    return there[:, (counts > 1) & (counts < len(texts))]


def counts(texts: list[np.ndarray]) -> np.ndarray:
    """Whether a word stands in a row exactly 0, 1, 2, ... times, each a column of unit variance; only those that a few rows share."""
    vocabulary = np.unique(np.concatenate(texts))
    often = np.zeros((len(texts), len(vocabulary)), dtype=np.int64)
    for i, text in enumerate(texts):
        np.add.at(often[i], np.searchsorted(vocabulary, text), 1)
    columns = []
    for number in range(MOST_OFTEN + 1):
        here = (often == number if number < MOST_OFTEN else often >= number).astype(np.float32)
        rows = here.sum(0)
        columns.append(here[:, (rows >= SHARED) & (rows <= len(texts) - SHARED)])
    table = np.concatenate(columns, axis=1)
    if table.shape[1] > BUCKETS:  # the most even splits tell most
        table = table[:, np.argsort(np.abs(table.mean(0) - 0.5), kind="stable")[:BUCKETS]]
    return np.asarray((table - table.mean(0)) / np.maximum(table.std(0), 1e-6))


def rare_first(there: np.ndarray) -> np.ndarray:
    """Rare features count more (inverse document frequency)."""
    return np.asarray(there * np.sqrt(np.log(len(there) / there.sum(0)))) if there.shape[1] else there


def _combinations(bag: np.ndarray, size: int) -> Kernel:
    """How many pairs (triples) of different words two rows share: Newton's identities on the products, word by word."""
    one = bag @ bag.T
    two = (bag**2) @ (bag**2).T
    if size == 2:
        kernel = (one**2 - two) / 2
    else:
        three = (bag**3) @ (bag**3).T
        kernel = (one**3 - 3 * one * two + 2 * three) / 6
    scale = np.sqrt(np.maximum(np.diag(kernel), 1e-9))
    return np.asarray(kernel / scale[:, None] / scale[None, :])


def _ordered(texts: list[np.ndarray], reach: int) -> np.ndarray:
    """Hashed counts of ordered pairs of tokens at most ``reach`` apart."""
    table = np.zeros((len(texts), BUCKETS), dtype=np.float32)
    for i, text in enumerate(texts):
        for gap in range(1, min(reach, len(text) - 1) + 1):
            code = (text[:-gap].astype(np.int64) * 1_000_003 + text[gap:].astype(np.int64) * 7919) % 2_147_483_647
            table[i, code % BUCKETS] = 1
    counts = table.sum(0)
    return rare_first(table[:, (counts > 1) & (counts < len(texts))])


def _places(texts: list[np.ndarray]) -> Kernel:
    """Share of places at which two rows agree, counted from the beginning, rare agreements counting more."""
    width = max(map(len, texts), default=0)
    table = np.full((len(texts), width), -1, dtype=np.int64)
    for i, text in enumerate(texts):
        table[i, : len(text)] = text
    kernel = np.zeros((len(texts), len(texts)), dtype=np.float32)
    for column in table.T:
        same = (column[:, None] == column[None, :]) & (column >= 0)[None, :]
        often = same.mean()
        if 0 < often < 1:
            kernel += same * np.float32(-np.log(often))
    return kernel


def _shape(ids: list[np.ndarray], keep: np.ndarray) -> np.ndarray:
    """Length, and number of tokens that stand in the row twice."""
    lengths = np.array([len(ids[i]) for i in keep], dtype=np.float64)
    repeated = np.array([len(ids[i]) - len(np.unique(ids[i])) for i in keep], dtype=np.float64)
    return _standard(np.stack([lengths, repeated], axis=1))


def _as_numbers(ids: list[np.ndarray], keep: np.ndarray) -> np.ndarray:
    """The ids at both ends (two each, for special tokens) and their mean: made-up tasks often compare ids as numbers."""
    padded = [ids[i] if len(ids[i]) > 1 else np.zeros(2) for i in keep]
    return _standard(np.array([[row[0], row[1], row[-2], row[-1], row.mean()] for row in padded], dtype=np.float64))


def _standard(columns: np.ndarray) -> np.ndarray:
    spread = columns.std(0)
    return np.asarray((columns - columns.mean(0)) / np.where(spread > 0, spread, 1))


def _cosine(table: np.ndarray) -> Kernel:
    size = np.linalg.norm(table, axis=1, keepdims=True)
    unit = table / np.where(size > 0, size, 1)
    return np.asarray(unit @ unit.T)


def _gaussian(points: np.ndarray) -> Kernel:
    squares = (points**2).sum(1)
    distance = np.maximum(squares[:, None] + squares[None, :] - 2 * points @ points.T, 0)
    middle = np.median(distance[distance > 0]) if (distance > 0).any() else 1.0
    return np.asarray(np.exp(-distance / middle))


def _centre(kernel: Kernel) -> Kernel:
    """Rows and columns with mean zero, and nothing on the diagonal: a row is always like itself."""
    kernel = np.asarray(kernel, dtype=np.float64).copy()
    np.fill_diagonal(kernel, 0)
    kernel -= kernel.mean(0, keepdims=True)
    kernel -= kernel.mean(1, keepdims=True)
    np.fill_diagonal(kernel, 0)
    return kernel.astype(np.float32)


def planted(rows: Rows, keep: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Labels that do depend on these inputs: a positive control. A test that misses them has no say about the real ones.

    A random direction in the space of words (or numbers) splits the rows into halves; in ``FAITHFUL`` of the rows the label
    follows the split, in the others it is random.
    """
    if rows.ids:
        points = rare_first(words([rows.ids[i][:TOKENS] for i in keep]))
    else:
        points = np.concatenate(list(rows.floats))[keep].astype(np.float32) if rows.floats else np.zeros((len(keep), 1))
        points = np.nan_to_num(points)
    out = []
    for _ in range(PLANTS):
        side = _side(points, rng)
        lie = rng.random(len(keep)) > FAITHFUL
        side = np.where(lie, rng.permutation(side), side)
        out.append((side - side.mean())[:, None].astype(np.float64))
    return out


def _side(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    score = points @ rng.standard_normal(points.shape[1])
    return np.asarray(score > np.median(score))


def _shifted(
    rows: Rows, coded: np.ndarray, keep: np.ndarray, kernels: dict[str, Kernel], rng: np.random.Generator
) -> dict[str, float]:
    """How plain the dependence is with the labels of each batch moved by one row, or turned round (see `Permuted.test`)."""
    batch = np.asarray(rows.batch)
    starts = np.flatnonzero(np.r_[True, batch[1:] != batch[:-1]])
    groups = np.split(np.arange(len(batch)), starts[1:])
    moves = {
        "one row back": [np.roll(g, -1) for g in groups],
        "one row on": [np.roll(g, 1) for g in groups],
        "in reverse": [g[::-1] for g in groups],
    }
    whole = np.arange(len(batch))
    moves["one row back over all batches"] = [np.roll(whole, -1)]
    moves["one row on over all batches"] = [np.roll(whole, 1)]
    out: dict[str, float] = {}
    for name, parts in moves.items():
        order = np.concatenate(parts)
        y = coded[order][keep]
        y = y - y.mean(0)
        moved = Permuted(y, FIRST, rng)
        out[name] = max(moved.test(kernel)[1] for kernel in kernels.values())
    return out
