"""Do labels depend on inputs, where a row has many: classes or words of its tokens, the places of an answer, a target text?

Permuted are whole rows of labels, because the labels of one row hang together: under independence every exchange of them is as likely
(Phipson and Smyth 2010). Rows of labels of about one length are exchanged among themselves, cut to the shortest of them. Labels of tokens
are compared with the ids at and beside their places, by mutual information; bags of labels with the rows, as `label_dependence` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....core.formatting import plural
from ....instruments.row_hashes import Rows, first_occurrences
from ....instruments.tasks import IGNORED
from ..record import Dependence
from .epochs import labelled_keys
from .label_dependence import (
    ALPHA,
    CLEAR,
    FAITHFUL,
    FIRST,
    MIN_ROWS,
    MOST_ROWS,
    PERMUTATIONS,
    SIMULATED,
    SIMULATED_PERMUTATIONS,
    Permuted,
)
from .row_similarity import Kernel, first_tokens, inverse_frequency, kernels, token_presence

#: p-value at which one of up to 22 comparisons has found something, the least that the permutations give: chance does it in one run of 25.
FOUND = 1 / (1 + PERMUTATIONS)
#: Labels from which on they are words of a language rather than classes, and the share of simulated ones that follow their rule then: a
#: neighbour determines few of the words of a text.
WORDS, FAITHFUL_WORDS = 50, 0.2
#: Labels of a row that are compared, at most: 8,192 of 512 rows. Rows among which labels are exchanged, at least.
MOST_LABELS, BLOCK = 16, 16
#: Distances of the tokens whose ids are compared with a label; the most likely first.
DISTANCES = (0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5)
#: The same of two neighbouring tokens, by the place of the second.
PAIRS = {0: "the tokens at the place and before", 1: "the tokens at the place and after"}
#: Tokens around a place that are looked for elsewhere in the row, as words of a question are beside its answer.
AROUND = 3
REPEATED = "tokens nearby that occur elsewhere in the row"
#: An id that is beside more labels than this share, as the mask is, distinguishes none of them.
COMMON = 0.5
#: Principal components of the bags of labels.
COMPONENTS = 4
SHARED = "tokens shared with the target"


def measure_sequence_dependence(rows: Rows, target: np.ndarray, unit: str) -> tuple[Dependence | None, str | None]:
    """The permutation tests; None and the reason where they cannot be made.

    :param target: labels ``(rows, k)``; -100 does not count.  :param unit: ``token``, ``answer`` or ``target``, as in `Dependence`.
    """
    if not rows.ids or (unit == "token" and target.shape[1] != max(rows.widths)):
        return None, "there is not exactly one label per row"
    labelled = [i for i in range(len(rows)) if len(rows.ids[i]) and len(_places(rows, target, i, unit))]
    pairs = labelled_keys(rows.keys(), target)  # a text that comes with other labels is another row
    keep = np.array(labelled, dtype=np.int64)[first_occurrences([pairs[i] for i in labelled])]
    if len(keep) > MOST_ROWS:
        keep = keep[np.linspace(0, len(keep) - 1, MOST_ROWS).astype(int)]
    if len(keep) < MIN_ROWS:
        return None, f"the test needs {MIN_ROWS} distinct labelled rows, and {len(keep)} were read"
    rng = np.random.default_rng(0)
    if unit == "target":
        return _Targets(rows, target, keep, rng).measured()
    return _Tokens(rows, target, keep, unit, rng).measured()


def _places(rows: Rows, target: np.ndarray, row: int, unit: str) -> np.ndarray:
    """Which of a row's labels count: of its real tokens, of its answer's two places, or of its target."""
    if unit == "token":
        return np.flatnonzero(target[row][rows.columns[row]] != IGNORED)
    if unit == "answer":  # both places, and both inside
        places = np.searchsorted(rows.columns[row], target[row])
        inside = bool((target[row] >= 0).all() and (places < len(rows.ids[row])).all())
        return np.asarray(places if inside else places[:0])
    return np.flatnonzero(target[row] != IGNORED)


def _p_value(observed: float, permuted: np.ndarray) -> tuple[float, float]:
    """Share of the permutations with at least as much dependence, the observed one included; and the deviations above their mean."""
    as_large = permuted >= observed - 1e-9 * abs(observed)
    return float(1 + as_large.sum()) / (1 + len(permuted)), (observed - permuted.mean()) / max(permuted.std(), 1e-30)


def _blocks(lengths: np.ndarray) -> list[np.ndarray]:
    """Rows of one length together, and with those of the next where they are fewer than `BLOCK`."""
    order = np.argsort(lengths, kind="stable")
    blocks, begin = [], 0
    for i in range(1, len(order)):
        if i - begin >= BLOCK <= len(order) - i and lengths[order[i]] != lengths[order[i - 1]]:
            blocks.append(order[begin:i])
            begin = i
    return [*blocks, order[begin:]]


def _exchanges(blocks: list[np.ndarray], rows: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Permutations ``(count, rows)`` of the rows within their blocks."""
    orders = np.empty((count, rows), dtype=np.int64)
    for block in blocks:
        orders[:, block] = block[np.argsort(rng.random((count, len(block))), axis=1)]
    return orders


@dataclass
class _Pairs:
    """Labels beside the ids around their places. Of tokens the labels are exchanged, of answers the places."""

    #: Ids of each row, -1 behind its end; places and labels, -1 where there is none.
    ids: np.ndarray
    places: np.ndarray
    labels: np.ndarray
    places_move: bool

    def information(self, values: np.ndarray, distance: int, order: np.ndarray) -> float:
        """Mutual information of the labels and of what stands beside them, as a sum over labels, up to a constant.

        :param values: of each token of each row, whole numbers from 0; -1: none.
        """
        places = self.places[order] if self.places_move else self.places
        labels = self.labels if self.places_move else self.labels[order]
        there = places + distance
        inside = (places >= 0) & (there >= 0) & (there < values.shape[1]) & (labels >= 0)
        beside = np.where(inside, np.take_along_axis(values, np.where(inside, there, 0), 1), -1)
        classes = int(self.labels.max()) + 1
        codes, counts = np.unique((beside * classes + labels)[beside >= 0], return_counts=True)
        if not self.places_move:  # how often each label and each id occurs is the same in every order
            return float((counts * np.log(counts)).sum())
        overall = np.bincount(values[values >= 0]) / max(1, int((values >= 0).sum()))
        of_label = np.bincount(codes % classes, counts, classes)[codes % classes]
        return float((counts * np.log(counts / of_label / overall[codes // classes])).sum())

    def test(self, values: np.ndarray, distance: int, orders: np.ndarray) -> tuple[float, float]:
        own = self.information(values, distance, np.arange(len(self.ids)))
        return _p_value(own, np.array([self.information(values, distance, order) for order in orders]))


class _Tokens:
    """Labels of tokens, or the places of answers."""

    def __init__(self, rows: Rows, target: np.ndarray, keep: np.ndarray, unit: str, rng: np.random.Generator) -> None:
        self.rows, self.keep, self.unit, self.rng = rows, keep, unit, rng
        places = [_places(rows, target, i, unit) for i in keep]
        if unit == "token":
            places = [p[np.unique(np.linspace(0, len(p) - 1, min(len(p), MOST_LABELS)).astype(int))] for p in places]
        lengths = np.array([len(p) if unit == "token" else len(rows.ids[i]) for p, i in zip(places, keep, strict=True)])
        self.blocks = _blocks(lengths)
        if unit == "token":
            for block in self.blocks:
                shortest = lengths[block].min()
                for i in block:
                    places[i] = places[i][:shortest]
            labels = [target[i][rows.columns[i]][p] for i, p in zip(keep, places, strict=True)]
        else:
            labels = [np.arange(len(p)) for p in places]
        _, coded = np.unique(np.concatenate(labels), return_inverse=True)
        labels = np.split(coded.reshape(-1), np.cumsum([len(p) for p in places])[:-1])
        _, ids = np.unique(np.concatenate([rows.ids[i] for i in keep]), return_inverse=True)
        texts = np.split(ids.reshape(-1), np.cumsum([len(rows.ids[i]) for i in keep])[:-1])
        self.pairs = _Pairs(_table(texts), _table(places), _table(labels), unit == "answer")

    def measured(self) -> tuple[Dependence | None, str | None]:
        """A first test with few permutations ends the search where the dependence is clear."""
        if self.unit == "token" and self.pairs.labels.max() == 0:
            return None, "all labels are the same"
        count, p_values = len(self.keep), {}
        first = _exchanges(self.blocks, count, FIRST, self.rng)
        ids = self.pairs.ids
        ways = {_name(distance): (ids, distance) for distance in DISTANCES}
        ways |= {name: (_neighbours(ids), distance) for distance, name in PAIRS.items()}
        ways[REPEATED] = (_repeated_nearby(ids), 0)
        for name, way in ways.items():
            p_values[name], deviations = self.pairs.test(*way, first)
            if deviations >= CLEAR:
                return Dependence(count, FIRST, p_values, unit=self.unit), None
        full = _exchanges(self.blocks, count, PERMUTATIONS, self.rng)
        p_values = {name: self.pairs.test(*way, full)[0] for name, way in ways.items()}
        if self.unit == "token" and min(p_values.values()) > FOUND:
            bags = Permuted(_components(_bags(self.pairs.labels)), PERMUTATIONS, self.rng, full.T)
            p_values |= {name: bags.test(compute())[0] for name, compute in kernels(self.rows, self.keep).items()}
        if min(p_values.values()) <= FOUND:
            return Dependence(count, PERMUTATIONS, p_values, unit=self.unit), None
        found = [self._finds_simulated() for _ in range(SIMULATED)]
        return Dependence(count, PERMUTATIONS, p_values, SIMULATED, sum(found), unit=self.unit), None

    def _finds_simulated(self) -> bool:
        """Whether labels that do follow the ids are found to: a positive control.

        Each id has a random score. Labels of tokens are sorted by the scores of the ids beside them; an answer begins and ends at the two
        highest scores of its row. In the share `FAITHFUL` of the labels (answers), that is; the others stay random.
        """
        pairs, rng = self.pairs, self.rng
        scores = rng.random(int(pairs.ids.max()) + 1)
        orders = _exchanges(self.blocks, len(self.keep), SIMULATED_PERMUTATIONS, rng)
        if self.unit == "answer":
            best = np.sort(np.argsort(np.where(pairs.ids >= 0, scores[pairs.ids], -1.0), axis=1)[:, -2:], axis=1)
            places = np.where(rng.random((len(best), 1)) < FAITHFUL, best, pairs.places)
            return _Pairs(pairs.ids, places, pairs.labels, True).test(pairs.ids, 0, orders)[0] <= ALPHA
        usable = [d for d in DISTANCES if self._distinguishes(d)]
        if not usable:
            return False
        distance = int(rng.choice(usable))
        counted = pairs.labels >= 0
        there = np.clip(pairs.places + distance, 0, pairs.ids.shape[1] - 1)
        score = scores[np.take_along_axis(pairs.ids, there, 1)][counted]
        rank = rng.permutation(int(pairs.labels.max()) + 1)  # which label has the lowest scores
        own = pairs.labels[counted]
        sorted_labels = own[np.argsort(rank[own], kind="stable")]
        simulated = np.empty_like(own)
        simulated[np.argsort(score, kind="stable")] = sorted_labels
        free = np.flatnonzero(rng.random(len(own)) >= (FAITHFUL_WORDS if len(rank) > WORDS else FAITHFUL))
        simulated[free] = simulated[rng.permutation(free)]
        labels = pairs.labels.copy()
        labels[counted] = simulated
        return _Pairs(pairs.ids, pairs.places, labels, False).test(pairs.ids, distance, orders)[0] <= ALPHA

    def _distinguishes(self, distance: int) -> bool:
        there = self.pairs.places + distance
        inside = (self.pairs.places >= 0) & (there >= 0) & (there < self.pairs.ids.shape[1])
        beside = np.take_along_axis(self.pairs.ids, np.where(inside, there, 0), 1)[inside]
        counts = np.bincount(beside[beside >= 0])
        return bool(counts.sum()) and counts.max() < COMMON * counts.sum()


class _Targets:
    """Target texts of whole rows: their bags of tokens, and the tokens that they share with their sources."""

    def __init__(self, rows: Rows, target: np.ndarray, keep: np.ndarray, rng: np.random.Generator) -> None:
        self.rows, self.keep, self.rng = rows, keep, rng
        self.texts = [target[i][target[i] != IGNORED] for i in keep]
        words = int(target.max()) + 1  # the words of each target, and again with their places
        placed = [np.concatenate([t, words * (1 + np.arange(len(t))) + t]) for t in self.texts]
        bags = inverse_frequency(token_presence(placed)).astype(np.float64)
        lengths = np.array([[len(t)] for t in self.texts], dtype=np.float64)
        self.components = np.concatenate([_components(bags), _standardised(lengths)], axis=1)
        self.blocks = [np.arange(len(keep))]

    def measured(self) -> tuple[Dependence | None, str | None]:
        if not (np.abs(self.components) > 1e-12).any():
            return None, "all labels are the same"
        count, p_values = len(self.keep), {}
        overlap = self._overlap()
        orders = _exchanges(self.blocks, count, PERMUTATIONS, self.rng)
        if overlap is not None:
            p_values[SHARED], deviations = _of_overlap(overlap, orders[:FIRST])
            if deviations >= CLEAR:
                return Dependence(count, FIRST, p_values, unit="target"), None
        first = Permuted(self.components, FIRST, self.rng)
        computed: dict[str, Kernel] = {}
        for name, compute in kernels(self.rows, self.keep).items():
            computed[name] = compute()
            p_values[name], deviations = first.test(computed[name])
            if deviations >= CLEAR:
                return Dependence(count, FIRST, p_values, unit="target"), None
        full = Permuted(self.components, PERMUTATIONS, self.rng)
        p_values = {name: full.test(kernel)[0] for name, kernel in computed.items()}
        if overlap is not None:
            p_values[SHARED] = _of_overlap(overlap, orders)[0]
        if min(p_values.values()) <= FOUND:
            return Dependence(count, PERMUTATIONS, p_values, unit="target"), None
        found = sum(self._finds_simulated(computed) for _ in range(SIMULATED))
        return Dependence(count, PERMUTATIONS, p_values, SIMULATED, found, unit="target"), None

    def _overlap(self) -> np.ndarray | None:
        """How many tokens each source shares with each target, rare ones counting more; None: sources and targets share none."""
        sources = first_tokens(self.rows, self.keep)
        present = token_presence([*sources, *self.texts])
        weighted = inverse_frequency(present)
        size = np.linalg.norm(weighted, axis=1, keepdims=True)
        unit = weighted / np.where(size > 0, size, 1)
        shared = unit[: len(sources)] @ unit[len(sources) :].T
        return shared if shared.std() > 1e-9 else None

    def _finds_simulated(self, computed: dict[str, Kernel]) -> bool:
        """Whether the same targets are found to depend on sources when they are given to them by a rule.

        Sources are sorted along a random direction in the space of their tokens, targets by one of their components.
        """
        rng = self.rng
        points = inverse_frequency(token_presence(first_tokens(self.rows, self.keep)))
        sources = np.argsort(points @ rng.standard_normal(points.shape[1]), kind="stable")
        column = self.components[:, rng.integers(self.components.shape[1])]
        given = np.empty(len(sources), dtype=np.int64)
        given[sources] = np.argsort(column, kind="stable")
        free = np.flatnonzero(rng.random(len(given)) >= FAITHFUL)
        given[free] = given[rng.permutation(free)]
        control = Permuted(self.components[given], SIMULATED_PERMUTATIONS, rng)
        return any(control.test(kernel)[0] <= ALPHA for kernel in computed.values())


def _of_overlap(shared: np.ndarray, orders: np.ndarray) -> tuple[float, float]:
    own = np.arange(len(shared))
    return _p_value(float(shared[own, own].sum()), shared[own, orders].sum(1))


def _table(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of different lengths as one table, -1 behind their ends."""
    table = np.full((len(rows), max(1, max(map(len, rows)))), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def _name(distance: int) -> str:
    if not distance:
        return "the token at the place"
    return f"the token {plural(abs(distance), 'place')} {'before' if distance < 0 else 'after'}"


def _neighbours(ids: np.ndarray) -> np.ndarray:
    """A number for each token and the one before, the same for equal pairs; -1 where there is none."""
    pairs = ids[:, :-1] * (int(ids.max()) + 1) + ids[:, 1:]
    _, coded = np.unique(pairs, return_inverse=True)
    inside = (ids[:, 1:] >= 0) & (ids[:, :-1] >= 0)
    return np.pad(np.where(inside, coded.reshape(pairs.shape), -1), ((0, 0), (1, 0)), constant_values=-1)


def _repeated_nearby(ids: np.ndarray) -> np.ndarray:
    """Of each token how many at most `AROUND` places away occur more than once in their row; -1 behind its end."""
    repeated = np.zeros(ids.shape, dtype=np.int64)
    for row, own in zip(repeated, ids, strict=True):
        _, place, counts = np.unique(own, return_inverse=True, return_counts=True)
        row[:] = (counts[place.reshape(-1)] > 1) & (own >= 0)
    total = np.pad(repeated.cumsum(1), ((0, 0), (AROUND + 1, AROUND)), mode="edge")
    total[:, : AROUND + 1] = 0
    width = 2 * AROUND + 1
    return np.where(ids >= 0, total[:, width:] - total[:, :-width], -1)


def _bags(labels: np.ndarray) -> np.ndarray:
    """How often each label occurs in each row, rare labels counting as much as common ones.

    :param labels: ``(rows, k)``, -1: none.
    """
    table = np.zeros((len(labels), int(labels.max()) + 1))
    row, place = np.nonzero(labels >= 0)
    np.add.at(table, (row, labels[row, place]), 1)
    return np.asarray(table / np.sqrt(np.maximum(table.sum(0), 1)))


def _components(bags: np.ndarray) -> np.ndarray:
    """The first principal components, each of unit variance."""
    if not bags.shape[1]:
        return np.zeros((len(bags), 1))
    left, values, _ = np.linalg.svd(bags - bags.mean(0), full_matrices=False)
    return _standardised(left[:, : max(1, min(COMPONENTS, int((values > 1e-6).sum())))])


def _standardised(table: np.ndarray) -> np.ndarray:
    spread = table.std(0)
    return np.asarray((table - table.mean(0)) / np.where(spread > 1e-9, spread, np.inf))
