"""Checksums of the rows that a model is called with, computed on the rows' own device: nothing waits for a GPU."""

from __future__ import annotations

from typing import Any

import torch

from ....instruments.batches import tensors_in

#: Numbers of a row that are read; of longer rows every k-th.
MOST = 512
#: Calls of which the checksums are kept.
CALLS = 512
#: A checksum is a whole number that a float can hold.
BITS = (1 << 53) - 1
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: 2^64 divided by the golden ratio, as a signed number: spreads consecutive numbers (Knuth, The Art of Computer Programming, 6.4).
_SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)


class RowChecksums:
    """Two checksums of each batch: without regard to the order of its rows, and with it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(20064)
        weights = torch.randint(1 << 62, (MOST,), generator=generator, device="cpu") * 2 + 1
        self._weights = {weights.device: weights}
        self._found: list[torch.Tensor] = []

    def add(self, batch: Any) -> None:
        """The next batch: whatever tensors there are in it, the labels among them."""
        if len(self._found) >= CALLS:
            return
        sums: torch.Tensor | None = None
        for salt, tensor in enumerate(tensors_in(batch), 1):
            if (
                tensor.is_complex()
                or tensor.layout is not torch.strided
                or not tensor.numel()
                or tensor.device.type == "meta"
            ):
                continue
            rows = self._rows(tensor.detach(), salt)
            place = torch.arange(len(rows), device=rows.device) * 2 + 1
            pair = torch.stack([rows.sum(), (rows * place).sum()])
            sums = pair if sums is None else sums + pair.to(sums.device)
        if sums is not None:
            self._found.append(sums)

    def _rows(self, tensor: torch.Tensor, salt: int) -> torch.Tensor:
        """A checksum of each row."""
        flat = tensor.reshape(len(tensor) if tensor.dim() else 1, -1)
        flat = flat[:, :: -(-flat.shape[1] // MOST)].contiguous()
        whole = flat.view(_INTEGERS[flat.element_size()]) if flat.is_floating_point() else flat
        if flat.device not in self._weights:
            self._weights[flat.device] = self._weights[torch.device("cpu")].to(flat.device)
        weights = self._weights[flat.device][: flat.shape[1]]
        rows = (whole.long() * weights).sum(1) + salt
        rows = (rows ^ (rows >> 29)) * _SPREAD
        return rows ^ (rows >> 32)

    def record(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The checksums of all batches: without regard to order, and with it."""
        pairs = [tuple(int(v) & BITS for v in pair.tolist()) for pair in self._found]
        return tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)
