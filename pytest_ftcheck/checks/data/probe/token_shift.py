"""Whether held-out texts are made of the tokens that training texts are made of."""

from __future__ import annotations

import numpy as np

from ....instruments.row_hashes import Rows
from ..record import TokenShift
from .batch_statistics import without_special
from .row_similarity import MOST_TOKENS

#: Rows compared, from each part, at most; below the least nothing is compared.
MOST_ROWS, LEAST_ROWS = 512, 32
#: Divisions of the same rows at random.
DIVISIONS = 20


def token_shift(training: Rows, held_out: Rows | None) -> TokenShift | None:
    """Total variation distance between the ids of training and held-out rows, beside that of random divisions of the same rows.

    Whole rows are divided, because tokens of one text are not independent of each other. None: fewer than 32 rows of tokens in either.

    >>> row = lambda *ids: np.array(ids)
    >>> a, b = Rows(ids=[row(1, 2, 3)] * 32, batch=[0] * 32), Rows(ids=[row(1, 9, 3)] * 32, batch=[0] * 32)
    >>> token_shift(a, b).distance
    1.0
    """
    if held_out is None or not training.ids or not held_out.ids:
        return None
    texts = [_texts(training), _texts(held_out)]
    sizes = [len(t) for t in texts]
    if min(sizes) < LEAST_ROWS:
        return None
    lengths = [len(row) for part in texts for row in part]
    ids, place = np.unique(np.concatenate([row for part in texts for row in part]), return_inverse=True)
    place = place.reshape(-1)
    row_of = np.repeat(np.arange(sum(sizes)), lengths)
    total = np.bincount(place, minlength=len(ids)).astype(float)

    def shares(held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        there = np.bincount(place, held[row_of], len(ids))
        return (total - there) / (total - there).sum(), there / there.sum()

    held = np.repeat([0.0, 1.0], sizes)
    here, there = shares(held)
    most = int((there - here).argmax())
    rng = np.random.default_rng(0)
    divided = [_distance(*shares(rng.permutation(held))) for _ in range(DIVISIONS)]
    return TokenShift(
        rows=sizes[0],
        held_out_rows=sizes[1],
        distance=_distance(here, there),
        by_chance=float(np.mean(divided)),
        spread=float(np.std(divided)),
        risen=int(ids[most]),
        risen_from=float(here[most]),
        risen_to=float(there[most]),
    )


def _texts(rows: Rows) -> list[np.ndarray]:
    """The first tokens of some rows, evenly spaced over all of them, without special tokens and without empty rows."""
    texts = [row[:MOST_TOKENS] for row in without_special(rows.ids)[0] if len(row)]
    return (
        texts if len(texts) <= MOST_ROWS else [texts[i] for i in np.linspace(0, len(texts) - 1, MOST_ROWS).astype(int)]
    )


def _distance(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.abs(p - q).sum() / 2)
