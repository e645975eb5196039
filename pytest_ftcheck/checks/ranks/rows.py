"""The rows of the ranks: others on each rank, in another order in each epoch."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.formatting import plural
from ...core.verdict import Verdict
from . import faults
from .record import Rank

NAME = "ranks_agree"
#: Different batches that it takes to show what they have in common, or their order.
LEAST_BATCHES = 2


def same_on_all(ranks: Sequence[Rank]) -> Verdict | None:
    """Whether each batch has the same rows on all ranks. With tensor parallelism that is meant."""
    if any(rank.sharded_otherwise for rank in ranks):
        return None
    calls = list(zip(*(rank.rows for rank in ranks), strict=False))
    # one batch again and again is meant to be the same, on all ranks as well
    if len(set(calls)) < LEAST_BATCHES or not all(len(set(of_ranks)) == 1 for of_ranks in calls):
        return None
    return faults.SAME_ROWS.verdict(
        NAME, f"All {len(ranks)} ranks trained on the same rows in each of {plural(len(calls), 'batch', 'batches')}."
    )


def epochs_in_same_order(ranks: Sequence[Rank]) -> Verdict | None:
    """Whether batches come again in the same order, epoch after epoch, though a sampler is there to shuffle them."""
    if not all(rank.epoch_never_set for rank in ranks):
        return None
    lengths = {_epoch(rank.rows_in_order) for rank in ranks}
    length = lengths.pop()
    if lengths or length is None:
        return None
    return faults.EPOCHS_IN_SAME_ORDER.verdict(
        NAME, f"The {length} batches of the first epoch come again in the same order, on each of {len(ranks)} ranks."
    )


def _epoch(rows: Sequence[int]) -> int | None:
    """After how many batches the first ones come again, all of them in their order; None: they do not.

    >>> _epoch((5, 6, 7, 5, 6, 7, 5)), _epoch((5, 6, 7, 5, 7, 6)), _epoch((5, 6, 7, 5, 6)), _epoch((5, 5, 5))
    (3, None, None, None)
    """
    length = next((i for i, one in enumerate(rows) if i and one == rows[0]), 0)
    if length < LEAST_BATCHES or len(rows) < 2 * length:
        return None
    return length if all(a == b for a, b in zip(rows, rows[length:], strict=False)) else None
