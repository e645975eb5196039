"""Memory that is used again: fresh pages from the operating system would cost as much as computing on them."""

from __future__ import annotations

import math

import torch


class Pool:
    """Memory by name, for one thread: every group of heads computes in that of the one before it.

    >>> pool = Pool()
    >>> pool.take("a", torch.zeros(4)).data_ptr() == pool.take("a", torch.zeros(2, 2)).data_ptr()
    True
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], torch.Tensor] = {}

    def take(self, name: object, like: torch.Tensor, *shape: int) -> torch.Tensor:
        """A tensor of this shape (default: that of ``like``) with whatever was in it; the same memory for the same name."""
        wanted = shape or tuple(like.shape)
        count = math.prod(wanted)
        key = (name, like.dtype, like.device)
        flat = self._kept.get(key)
        if flat is None or flat.numel() < count:
            flat = self._kept[key] = like.new_empty(count)
        return flat[:count].view(wanted)
