"""Rows that come again: which rows are one epoch, which rows are drawn at all, and whether a row keeps its label.

Batches that a run trains on hold a row once an epoch. Counted each time, one row would be evidence several times over: two visits are
always alike, in their inputs and in their labels.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch

from ....instruments.row_hashes import RowReader, Rows, first_occurrences
from ....instruments.tasks import IGNORED
from ..record import Drawn, Relabelled

#: The first epoch stands for the data if it has this many rows (as many as all checks of data need), or covers this share of the
#: data set; else a loader draws other rows each time.
ENOUGH, COVERED = 256, 0.9
#: Rows of the first epoch from which on it stands for data of unknown length.
ENOUGH_OF_UNKNOWN = 64
#: Rows from which a batch should hold more than a few distinct ones, and the share of distinct rows up to which it is repetitive.
LARGE, REPETITIVE = 8, 0.5
#: Rows read from the data set itself, at most.
PROBED = 32
#: Where the number of possible rows is no longer of interest.
MOST_POSSIBLE = 1e12


def data_set_length(source: Any) -> int | None:
    """Length of a loader's data set; None: it has none."""
    data_set = getattr(source, "dataset", None)
    if data_set is None or isinstance(data_set, torch.utils.data.IterableDataset):
        return None
    try:
        return len(data_set)
    except TypeError:
        return None


def draws_with_replacement(source: Any) -> bool:
    """Whether a loader's sampler says that it draws with replacement (``WeightedRandomSampler``): then rows repeat on purpose."""
    return bool(getattr(getattr(source, "sampler", None), "replacement", False))


def labelled_keys(keys: Sequence[bytes], target: np.ndarray | None) -> list[Hashable]:
    """The key of each row's inputs together with its label."""
    if target is None or len(target) != len(keys):
        return list(keys)
    return [(key, label.tobytes()) for key, label in zip(keys, target, strict=True)]


def loader_epoch(rows: Rows) -> int:
    """How many rows the loader yielded before it was started again; all of them where it was not."""
    return sum(e == rows.epoch[0] for e in rows.epoch) if rows.epoch else len(rows)


def first_epoch(rows: Rows, pairs: Sequence[Hashable], one_shot: bool) -> int:
    """How many rows come before the epoch begins again; all of them where it does not.

    The loader's own epochs count where they are known. Else an epoch begins again where the very same rows with the same labels do;
    in a one-shot iterator, which has to repeat itself, also where the same rows come with other labels.
    """
    if (counted := loader_epoch(rows)) < len(rows):
        return counted
    bounds = [*(i for i in range(len(rows)) if not i or rows.batch[i] != rows.batch[i - 1]), len(rows)]
    return _repeated_pairs(pairs, bounds) or (_repeated_contents(rows.contents, bounds) if one_shot else 0) or len(rows)


def _repeated_pairs(pairs: Sequence[Hashable], bounds: Sequence[int]) -> int:
    """Rows of the first batches that all others repeat, the last time perhaps in part; 0: there are none."""
    sums = np.array([hash(pair) for pair in pairs], dtype=np.int64).view(np.uint64).cumsum()
    totals = np.concatenate([np.zeros(1, dtype=np.uint64), sums])[list(bounds)]
    first_at: dict[Hashable, int] = {}
    for i, pair in enumerate(pairs):
        first_at.setdefault(pair, i)
    batches = len(bounds) - 1
    for size in range(1, batches):
        chunks = totals[::size]
        differences = chunks[1:] - chunks[:-1]
        if not (differences == differences[0]).all():
            continue
        rest = bounds[batches // size * size]
        if rest < len(pairs) and (
            first_at[pairs[rest]] >= bounds[size] or Counter(pairs[rest:]) - Counter(pairs[: bounds[size]])
        ):
            continue
        return bounds[size]
    return 0


def _repeated_contents(contents: Sequence[bytes], bounds: Sequence[int]) -> int:
    """Rows before the first batch whose rows all came before, if no row came twice until then; 0: there is none such."""
    known: set[bytes] = set()
    for start, end in itertools.pairwise(bounds):
        batch = set(contents[start:end])
        if start and batch <= known:
            return start
        if batch & known or len(batch) < end - start:
            return 0
        known |= batch
    return 0


def rows_of_data(rows: Rows, pairs: Sequence[Hashable], first: int, data_set: int | None) -> np.ndarray:
    """The rows that stand for the data, each epoch's visit of a row counted once."""
    if first == len(rows):
        return np.arange(len(rows))
    enough = ENOUGH_OF_UNKNOWN if data_set is None else min(ENOUGH, COVERED * data_set)
    # augmented rows differ from epoch to epoch, so a complete epoch is better than all rows that differ
    return np.arange(first) if first >= enough or len(set(pairs)) <= first else first_occurrences(pairs)


def relabelled(contents: Sequence[bytes], labels: np.ndarray | None, first: int) -> Relabelled | None:
    """Whether rows keep their label: those that come once in the first epoch, compared with the next time they come."""
    if labels is None or first == len(contents) or len(labels) != len(contents):
        return None
    once = {key for key, count in Counter(contents[:first]).items() if count == 1}
    before = {contents[i]: int(labels[i]) for i in range(first) if contents[i] in once and labels[i] != IGNORED}
    again: dict[bytes, int] = {}
    for key, label in zip(contents[first:], labels[first:].tolist(), strict=True):
        if key in before and label != IGNORED:
            again.setdefault(key, int(label))
    if not again:
        return None
    n = len(again)
    old, new = Counter(before[key] for key in again), Counter(again.values())
    changed = sum(before[key] != label for key, label in again.items())
    pairs = Counter((before[key], label) for key, label in again.items())
    recoded = tuple((a, b, rows) for (a, b), rows in sorted(pairs.items()) if a != b and rows == old[a])
    return Relabelled(n, changed, n - sum(old[c] * new[c] for c in old) / n, recoded)


def drawn_rows(rows: Rows, keys: Sequence[bytes], source: Any, reader: RowReader) -> Drawn | None:
    """Which rows come in one epoch of the loader; where they are few, some are read from the data set itself."""
    if not keys:
        return None
    groups: dict[int, list[bytes]] = {}
    for key, number in zip(keys, rows.batch, strict=True):
        groups.setdefault(number, []).append(key)
    large = [group for group in groups.values() if len(group) >= LARGE]
    repetitive = sum(len(set(group)) <= REPETITIVE * len(group) for group in large)
    known = set(keys)
    drawn = Drawn(
        rows=len(keys),
        distinct=len(known),
        batches=len(large),
        repetitive=repetitive,
        possible=possible_rows(rows, keys) if repetitive else MOST_POSSIBLE,
        data_set=data_set_length(source),
    )
    if not drawn.few:
        return drawn
    others = _read_data_set(source, drawn.data_set or 0, reader)
    return dataclasses.replace(drawn, probed=len(others), never_drawn=sum(key not in known for key in others))


def _read_data_set(source: Any, length: int, reader: RowReader) -> list[bytes]:
    """The keys of some rows of a loader's data set, evenly spaced, read as the loader would read them."""
    if not isinstance(source, torch.utils.data.DataLoader) or source.batch_sampler is None:
        return []
    rows = Rows()
    try:
        places = np.linspace(0, length - 1, min(PROBED, length)).astype(int).tolist()
        reader.read(source.collate_fn([source.dataset[i] for i in places]), rows)
        return rows.keys()
    except Exception:  # noqa: BLE001 - a data set that is read in its own way
        return []


def possible_rows(rows: Rows, keys: Sequence[bytes]) -> float:
    """In how many ways the values at each position could be combined: a small space of inputs is exhausted by few rows."""
    places = first_occurrences(keys)
    if rows.ids:
        width = max(len(rows.ids[i]) for i in places)
        columns = [{int(rows.ids[i][j]) if j < len(rows.ids[i]) else -1 for i in places} for j in range(width)]
    elif rows.floats and len({block.shape[1] for block in rows.floats}) == 1:
        columns = [set(column.tolist()) for column in np.concatenate(rows.floats)[places].T]
    else:
        return float(len(places))
    possible = 1.0
    for column in columns:
        possible = min(MOST_POSSIBLE, possible * len(column))
    return possible
