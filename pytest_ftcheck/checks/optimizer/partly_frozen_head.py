"""A head of which a part is frozen while the rest trains, and nothing is declared of it."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.observations import Tensor
from ..spec import Fault
from . import faults

#: Names shown, at most.
MOST_NAMES = 6


def explain_partly_frozen_head(frozen: Sequence[Tensor]) -> Fault:
    """The fault of these frozen tensors of the head."""
    names = [t.name for t in frozen]
    prefixes = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    return faults.HEAD_PARTLY_FROZEN.with_details(frozen=listed(names), prefixes=prefixes)


def blocks_gradients(frozen: Sequence[Tensor]) -> bool:
    """Whether a frozen layer of zeros lets no gradient through."""
    return any(len(t.shape) > 1 and t.first.rms == 0 for t in frozen)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["a", "b"])
    'a, b'
    """
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
