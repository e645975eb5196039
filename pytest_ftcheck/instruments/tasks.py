"""Labels by the conventions of torch and transformers: which do not count, and where a causal language model has them."""

from __future__ import annotations

import torch

#: The label that cross-entropy leaves out, by the convention of torch and transformers.
IGNORED = -100


def earlier(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Labels moved to the position so many before theirs; the last positions are ignored.

    >>> earlier(torch.tensor([[5, 6, 7]]), 1)
    tensor([[   6,    7, -100]])
    """
    moved = torch.full_like(labels, IGNORED)
    moved[:, : labels.shape[1] - count] = labels[:, count:]
    return moved
