"""Statistics of rows that were read from batches: classes, repetition, order, tokens, and inputs that equal the label."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np

from ....instruments.row_hashes import Rows, first_occurrences
from ....instruments.tasks import IGNORED
from ..record import Copies, Leak, Order, SharedInputs, Tokens
from .epochs import possible_rows

#: A leak holds without exception in at least this many rows, and in this many of each class.
LEAK_ROWS, LEAK_ROWS_PER_CLASS = 64, 5
#: Positions compared with the label, from the start and from the end of a row, and leaks that are kept, at most.
FROM_START, FROM_END, MOST_LEAKS = 256, 8, 8
#: Classes that are counted, at most.
MOST_CLASSES = 10_000
#: Copies are counted where the values at each position could form so many times as many rows: five bits are exhausted by chance.
MIN_POSSIBLE = 10.0
#: Share of the rows with one and the same token at an end from which on it is a special token.
SPECIAL = 0.99


def class_counts(target: np.ndarray | None, task: str | None) -> tuple[int, ...]:
    """Rows with each class, or with each tag on; empty where that has no meaning."""
    if target is None or not target.size:
        return ()
    if task == "multi_label" and target.ndim == 2:
        return tuple(int(v) for v in (target > 0.5).sum(0))
    if task == "class_probabilities":
        target, task = target.argmax(-1), "single_label"
    if task != "single_label":
        return ()
    flat = target.reshape(-1).astype(np.int64)
    flat = flat[flat >= 0]
    return tuple(int(v) for v in np.bincount(flat)) if len(flat) and flat.max() < MOST_CLASSES else ()


def keys_by_batch(keys: list[bytes], batch: list[int]) -> list[list[bytes]]:
    """The keys of the rows (see `Rows.keys`), a list for each batch."""
    groups: dict[int, list[bytes]] = {}
    for key, number in zip(keys, batch, strict=bool(keys)):
        groups.setdefault(number, []).append(key)
    return list(groups.values())


def collisions(keys: list[bytes], labels: np.ndarray | None) -> tuple[int | None, int, float | None]:
    """Distinct inputs; rows whose input also occurs with another label; the best accuracy that the inputs allow."""
    if not keys:
        return None, 0, None
    distinct = len(set(keys))
    if labels is None or len(labels) != len(keys):
        return distinct, 0, None
    found = _labels_of_inputs(keys, labels)
    rows = sum(c.total() for c in found)
    if not rows:
        return distinct, 0, None
    contradictory = sum(c.total() for c in found if len(c) > 1)
    return distinct, contradictory, sum(max(c.values()) for c in found) / rows


def shared_inputs(keys: list[bytes], labels: np.ndarray | None) -> tuple[SharedInputs, ...]:
    """Classes whose inputs also come with another label, and as often; of each the other class with which most do."""
    if labels is None or len(labels) != len(keys):
        return ()
    inputs: Counter[int] = Counter()
    shared: dict[int, Counter[int]] = {}
    for counts in _labels_of_inputs(keys, labels):
        inputs.update(counts.keys())
        for label, other in itertools.permutations(counts, 2):
            if counts[label] == counts[other]:
                shared.setdefault(label, Counter())[other] += 1
    most = ((label, *others.most_common(1)[0]) for label, others in sorted(shared.items()))
    return tuple(SharedInputs(label, other, inputs[label], count) for label, other, count in most)


def _labels_of_inputs(keys: list[bytes], labels: np.ndarray) -> list[Counter[int]]:
    """For each distinct input, how often it has each label."""
    found: dict[bytes, Counter[int]] = {}
    for key, label in zip(keys, labels.tolist(), strict=True):
        if label != IGNORED:
            found.setdefault(key, Counter())[int(label)] += 1
    return list(found.values())


def copies_of_rows(rows: Rows, keys: list[bytes], labels: np.ndarray | None) -> Copies | None:
    """Rows that are copies of an earlier one, in the class that has the most distinct rows; None: the inputs have no keys, or the values
    at each position could hardly form more rows than there are."""
    if not keys:
        return None
    of_class: dict[int | None, list[bytes]] = {}
    for key, label in zip(keys, labels.tolist() if labels is not None else [None] * len(keys), strict=True):
        if label is None or label != IGNORED:
            of_class.setdefault(None if label is None else int(label), []).append(key)
    if not of_class:
        return None
    label, found = max(of_class.items(), key=lambda item: len(set(item[1])))
    copies = len(found) - len(set(found))
    if copies and possible_rows(rows, keys) < MIN_POSSIBLE * len(set(keys)):
        return None
    return Copies(len(found), copies, label)


def class_order(labels: np.ndarray, batch: np.ndarray) -> Order | None:
    """In which order the classes come; None: fewer than two labels."""
    keep = labels != IGNORED
    labels, batch = labels[keep], batch[keep]
    if len(labels) < 2:
        return None
    _, counts = np.unique(labels, return_counts=True)
    n = len(labels)
    same = float((counts * (counts - 1)).sum()) / (n * (n - 1))
    batches = single_class = 0
    expected = 0.0
    starts = np.flatnonzero(np.r_[True, batch[1:] != batch[:-1]])
    for group in np.split(labels, starts[1:]):
        if len(group) < 2:
            continue
        batches += 1
        single_class += bool((group == group[0]).all())
        drawn = np.arange(len(group))
        expected += float(sum(np.prod(np.clip(c - drawn, 0, None) / (n - drawn)) for c in counts))
    return Order(int((labels[1:] != labels[:-1]).sum()), (n - 1) * (1 - same), batches, single_class, expected)


def token_statistics(rows: Rows, vocabulary: int | None, pad: int | None) -> Tokens | None:
    """How the token ids are distributed; None: the inputs are no tokens."""
    if not rows.ids:
        return None
    lengths = np.array([len(r) for r in rows.ids])
    median = float(np.median(lengths))
    text, special = without_special(rows.ids)
    flat = np.concatenate(text) if text else np.zeros(0, dtype=np.int64)
    if not len(flat):
        return Tokens(vocabulary, 0, 0, -1, 0.0, 0.0, median, rows.masked_out)
    values, counts = np.unique(flat, return_counts=True)
    by_count = np.argsort(-counts, kind="stable")
    most_common = int(values[by_count[0]])
    return Tokens(
        vocabulary=vocabulary,
        total=len(flat),
        distinct=len(values),
        most_common=most_common,
        share=float(counts[by_count[0]]) / len(flat),
        second_share=float(counts[by_count[1]]) / len(flat) if len(values) > 1 else 0.0,
        median_length=median,
        masked_out=rows.masked_out,
        most_common_is_padding=pad is not None and most_common == pad,
        shortest=int(lengths.min()),
        longest=int(lengths.max()),
        special=special,
    )


def without_special(ids: list[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """The rows without special tokens, and how many of those a row has: what (nearly) all rows have at one end is special.

    >>> text, special = without_special([np.array([1, 8, 9, 2]), np.array([1, 7, 2])])
    >>> [row.tolist() for row in text], special
    ([[8, 9], [7]], 2)
    """
    special = 0
    if rows := [row for row in ids if len(row)]:
        if _nearly_all_equal([int(row[0]) for row in rows]):
            ids, special = [row[1:] for row in ids], 1
        rows = [row for row in ids if len(row)]
        if rows and _nearly_all_equal([int(row[-1]) for row in rows]) and max(map(len, rows)) > 1:
            ids, special = [row[:-1] for row in ids], special + 1
    return ids, special


def _nearly_all_equal(values: list[int]) -> bool:
    return Counter(values).most_common(1)[0][1] >= SPECIAL * len(values)


def find_leaks(rows: Rows, labels: np.ndarray | None) -> tuple[tuple[Leak, ...], int, str | None]:
    """Inputs that equal the label one to one: one value per class, in every distinct row; how many rows those are; and why no leak was
    searched for, if so."""
    if labels is None or len(labels) != len(rows):
        return (), 0, "there is not one class per row"
    pairs = list(zip(rows.keys() or range(len(rows)), labels.tolist(), strict=True))
    keep = np.array([i for i in first_occurrences(pairs) if labels[i] != IGNORED], dtype=np.int64)
    distinct = len({pairs[i][0] for i in keep})
    classes, counts = np.unique(labels[keep], return_counts=True)
    if distinct < LEAK_ROWS:
        return (
            (),
            distinct,
            f"there are {distinct} distinct labelled rows, and a leak is searched for in {LEAK_ROWS} or more",
        )
    if len(classes) < 2:
        return (), distinct, "all labels are the same"
    if counts.min() < LEAK_ROWS_PER_CLASS:
        few = f"a class has {counts.min()} distinct rows, and a leak is searched for in {LEAK_ROWS_PER_CLASS} of each"
        return (), distinct, few
    leaks: list[Leak] = []

    def compare(kind: str, where: str, values: np.ndarray) -> None:
        if _one_to_one(values, labels[keep]):
            leaks.append(Leak(kind, where, distinct, len(classes)))

    for name, blocks in rows.single.items():
        column = np.concatenate(blocks)
        if len(column) == len(rows):
            compare("input", name, column[keep])
    if rows.floats and len({b.shape[1] for b in rows.floats}) == 1:
        wide = np.concatenate(rows.floats)
        for j in range(wide.shape[1] if len(wide) == len(rows) else 0):
            compare("column", f"column {j}", wide[keep, j])
    if rows.ids:
        shortest = min(len(rows.ids[i]) for i in keep)
        for j in range(min(shortest, FROM_START)):
            compare("token", f"position {j} from the start", np.array([rows.ids[i][j] for i in keep]))
        for j in range(1, min(shortest, FROM_END) + 1):
            compare("token", f"position {j} from the end", np.array([rows.ids[i][-j] for i in keep]))
    return tuple(leaks[:MOST_LEAKS]), distinct, None


def _one_to_one(values: np.ndarray, labels: np.ndarray) -> bool:
    _, a = np.unique(values, return_inverse=True)
    _, b = np.unique(labels, return_inverse=True)
    if a.max() != b.max():
        return False
    return len(np.unique(a * (int(b.max()) + 1) + b)) == int(b.max()) + 1
