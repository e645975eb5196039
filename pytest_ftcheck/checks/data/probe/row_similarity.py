"""How similar rows of inputs are: centred kernels that compare tokens, their order, positions and numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....instruments.row_hashes import Rows

#: Tokens of a row that are compared, at most.
MOST_TOKENS = 64
#: Hashed features of pairs of tokens, and count features, at most.
MOST_FEATURES = 2048
#: Occurrences of a token that are distinguished, and rows that must have a count, and that must not.
MOST_OCCURRENCES, MIN_SHARED = 5, 10
#: Distance at most between the two tokens of an ordered pair.
REACH = 8
#: A matrix ``(rows, rows)`` of similarities.
Kernel = np.ndarray


def kernels(rows: Rows, keep: np.ndarray) -> dict[str, Callable[[], Kernel]]:
    """Ways of comparing the rows, each a centred kernel that is computed when called; the cheapest first."""
    ways: dict[str, Callable[[], Kernel]] = {}
    if rows.ids:
        texts = first_tokens(rows, keep)
        present = token_presence(texts)
        bag = inverse_frequency(present)
        similarity = _cosine(bag)
        ways["tokens"] = lambda: _centre(similarity)
        ways["pairs of tokens"] = lambda: _centre(_combinations(bag, 2))
        ways["triples of tokens"] = lambda: _centre(_combinations(present - present.mean(0), 3))
        ways["neighbouring tokens"] = lambda: _centre(_cosine(_ordered_pairs(texts, 1)))
        ways["token order"] = lambda: _centre(_cosine(_ordered_pairs(texts, REACH)))
        ways["positions"] = lambda: _centre(_shared_positions(texts))
        ways["length and repetition"] = lambda: _centre(_gaussian(_length_and_repetition(rows.ids, keep)))
        ways["ids as numbers"] = lambda: _centre(_gaussian(_ids_as_numbers(rows.ids, keep)))
    if rows.floats and len({block.shape[1] for block in rows.floats}) == 1:
        numbers = np.concatenate(rows.floats)[keep].astype(np.float64)
        numbers = np.nan_to_num(numbers, posinf=0, neginf=0)
        scaled = (numbers - numbers.mean(0)) / np.where(numbers.std(0) > 0, numbers.std(0), 1)
        ways["numbers, linear"] = lambda: _centre(scaled @ scaled.T)
        ways["numbers, by distance"] = lambda: _centre(_gaussian(scaled))
        ways["pairs of numbers"] = lambda: _centre((scaled @ scaled.T) ** 2)
    for name, blocks in rows.single.items():
        column = np.concatenate(blocks)[keep].astype(np.float64)
        if not rows.ids and not rows.floats and column.std() > 0:
            ways[name] = lambda column=column: _centre(_gaussian((column - column.mean())[:, None] / column.std()))  # type: ignore[misc]
    return ways


def first_tokens(rows: Rows, keep: np.ndarray) -> list[np.ndarray]:
    """The tokens of the kept rows that are compared."""
    return [rows.ids[i][:MOST_TOKENS] for i in keep]


def token_presence(texts: list[np.ndarray]) -> np.ndarray:
    """Which tokens occur in which row: ``(rows, tokens)``, without those of a single row or of all rows, which compare nothing."""
    vocabulary = np.unique(np.concatenate(texts)) if texts else np.array([], dtype=np.int64)
    present = np.zeros((len(texts), len(vocabulary)), dtype=np.float32)
    for i, text in enumerate(texts):
        present[i, np.searchsorted(vocabulary, text)] = 1
    rows_with = present.sum(0)
    return present[:, (rows_with > 1) & (rows_with < len(texts))]


def token_counts(texts: list[np.ndarray]) -> np.ndarray:
    """Whether a token occurs in a row exactly 0, 1, 2, ... times, each a column of unit variance; only those that some rows share."""
    vocabulary = np.unique(np.concatenate(texts))
    occurrences = np.zeros((len(texts), len(vocabulary)), dtype=np.int64)
    for i, text in enumerate(texts):
        np.add.at(occurrences[i], np.searchsorted(vocabulary, text), 1)
    columns = []
    for count in range(MOST_OCCURRENCES + 1):
        equal = (occurrences == count if count < MOST_OCCURRENCES else occurrences >= count).astype(np.float32)
        rows_with = equal.sum(0)
        columns.append(equal[:, (rows_with >= MIN_SHARED) & (rows_with <= len(texts) - MIN_SHARED)])
    table = np.concatenate(columns, axis=1)
    if table.shape[1] > MOST_FEATURES:  # the most even splits are the most informative
        table = table[:, np.argsort(np.abs(table.mean(0) - 0.5), kind="stable")[:MOST_FEATURES]]
    return np.asarray((table - table.mean(0)) / np.maximum(table.std(0), 1e-6))


def inverse_frequency(present: np.ndarray) -> np.ndarray:
    """Features weighted by inverse document frequency: rare ones count more."""
    if not present.shape[1]:
        return present
    return np.asarray(present * np.sqrt(np.log(len(present) / present.sum(0))))


def _combinations(bag: np.ndarray, size: int) -> Kernel:
    """How many pairs (triples) of different tokens two rows share: Newton's identities on the products, token by token."""
    one = bag @ bag.T
    two = (bag**2) @ (bag**2).T
    if size == 2:
        kernel = (one**2 - two) / 2
    else:
        three = (bag**3) @ (bag**3).T
        kernel = (one**3 - 3 * one * two + 2 * three) / 6
    scale = np.sqrt(np.maximum(np.diag(kernel), 1e-9))
    return np.asarray(kernel / scale[:, None] / scale[None, :])


def _ordered_pairs(texts: list[np.ndarray], reach: int) -> np.ndarray:
    """Hashed ordered pairs of tokens at most ``reach`` apart."""
    table = np.zeros((len(texts), MOST_FEATURES), dtype=np.float32)
    for i, text in enumerate(texts):
        for gap in range(1, min(reach, len(text) - 1) + 1):
            code = (text[:-gap].astype(np.int64) * 1_000_003 + text[gap:].astype(np.int64) * 7919) % 2_147_483_647
            table[i, code % MOST_FEATURES] = 1
    rows_with = table.sum(0)
    return inverse_frequency(table[:, (rows_with > 1) & (rows_with < len(texts))])


def _shared_positions(texts: list[np.ndarray]) -> Kernel:
    """Positions at which two rows have the same token, counted from the start; rare agreements count more."""
    width = max(map(len, texts), default=0)
    table = np.full((len(texts), width), -1, dtype=np.int64)
    for i, text in enumerate(texts):
        table[i, : len(text)] = text
    kernel = np.zeros((len(texts), len(texts)), dtype=np.float32)
    for column in table.T:
        same = (column[:, None] == column[None, :]) & (column >= 0)[None, :]
        frequency = same.mean()
        if 0 < frequency < 1:
            kernel += same * np.float32(-np.log(frequency))
    return kernel


def _length_and_repetition(ids: list[np.ndarray], keep: np.ndarray) -> np.ndarray:
    """Length, and number of tokens that repeat an earlier one of the row."""
    lengths = np.array([len(ids[i]) for i in keep], dtype=np.float64)
    repeated = np.array([len(ids[i]) - len(np.unique(ids[i])) for i in keep], dtype=np.float64)
    return _standardised(np.stack([lengths, repeated], axis=1))


def _ids_as_numbers(ids: list[np.ndarray], keep: np.ndarray) -> np.ndarray:
    """The ids at both ends (two each, for special tokens) and their mean: toy tasks often compare ids as numbers."""
    padded = [ids[i] if len(ids[i]) > 1 else np.zeros(2) for i in keep]
    return _standardised(np.array([[row[0], row[1], row[-2], row[-1], row.mean()] for row in padded], dtype=np.float64))


def _standardised(columns: np.ndarray) -> np.ndarray:
    spread = columns.std(0)
    return np.asarray((columns - columns.mean(0)) / np.where(spread > 0, spread, 1))


def _cosine(table: np.ndarray) -> Kernel:
    size = np.linalg.norm(table, axis=1, keepdims=True)
    unit = table / np.where(size > 0, size, 1)
    return np.asarray(unit @ unit.T)


def _gaussian(points: np.ndarray) -> Kernel:
    squares = (points**2).sum(1)
    distance = np.maximum(squares[:, None] + squares[None, :] - 2 * points @ points.T, 0)
    median = np.median(distance[distance > 0]) if (distance > 0).any() else 1.0
    return np.asarray(np.exp(-distance / median))


def _centre(kernel: Kernel) -> Kernel:
    """Rows and columns with mean zero, and a zero diagonal: a row is always similar to itself."""
    kernel = np.asarray(kernel, dtype=np.float64).copy()
    np.fill_diagonal(kernel, 0)
    kernel -= kernel.mean(0, keepdims=True)
    kernel -= kernel.mean(1, keepdims=True)
    np.fill_diagonal(kernel, 0)
    return kernel.astype(np.float32)
