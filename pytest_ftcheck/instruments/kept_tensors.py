"""Tensors and the values in them: kept, compared bit for bit, and written back only where they differ."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from .inference import InferenceMode
from .sharded_tensors import is_sharded, local, memory_of

#: Integers of the same number of bytes: as such, -0.0 differs from 0.0, and a NaN equals itself.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class KeptTensor:
    """A tensor as it is now: its memory, and a copy of the values in it; of a sharded tensor, the part that this process holds.

    Memory that may not be written to (a read-only file, a buffer that a row shares with all others) never differs, so it is never
    written.
    """

    __slots__ = ("memory", "name", "tensor", "values")

    def __init__(self, tensor: torch.Tensor, name: str = "") -> None:
        self.tensor, self.name = tensor, name
        # another handle on the same memory, which stays there when the tensor is given other memory, or is resized
        self.memory = memory_of(tensor)
        self.values = None if tensor.device.type == "meta" else self.memory.clone()

    def restore(self) -> bool:
        """Memory and values as they were when the tensor was kept; whether anything differed."""
        moved = not same_memory(local(self.tensor), self.memory)
        if moved:
            use_memory(self.tensor, self.memory)
        if self.values is None or identical(self.memory, self.values):
            return moved
        overwrite(self.memory, self.values)
        return True

    def __str__(self) -> str:
        return self.name or f"a tensor of shape {tuple(self.values.shape if self.values is not None else ())}"


class FreshMemory:
    """Other memory with the same values for some tensors, for a while: what writes into them leaves the user's own memory alone."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self.kept = [(t, t.data) for t in {id(t): t for t in tensors}.values()]

    def lend(self) -> None:
        """Give each tensor a copy of its values. Tensors that are tied by their memory stay tied."""
        copies: dict[Any, torch.Tensor] = {}
        for tensor, memory in self.kept:
            place = _place(memory)
            if place is None or place not in copies:
                with InferenceMode(memory.is_inference()):  # a copy is of the same kind
                    copy = memory.clone()
                if place is not None:
                    copies[place] = copy
            else:
                copy = copies[place]
            use_memory(tensor, copy)

    def restore(self) -> None:
        """Give each tensor its own memory again; it was not written to."""
        for tensor, memory in self.kept:
            if not same_memory(tensor, memory):
                use_memory(tensor, memory)


def _place(tensor: torch.Tensor) -> Any:
    """Where a tensor's elements are; None: it has no memory of the usual kind."""
    if tensor.layout is not torch.strided or tensor.device.type == "meta" or not tensor.numel():
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same elements of the same memory."""
    if a.layout is torch.sparse_coo and b.layout is torch.sparse_coo and a.shape == b.shape:
        return same_memory(a._indices(), b._indices()) and same_memory(a._values(), b._values())
    if a.layout is not torch.strided or b.layout is not torch.strided:
        return False
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
        and a.device == b.device
    )


def use_memory(tensor: torch.Tensor, memory: torch.Tensor) -> None:
    """Let a tensor be these elements.

    :raises TypeError: a sharded tensor, whose memory is not ours to exchange.
    """
    if is_sharded(tensor):
        raise TypeError("a sharded tensor cannot be given other memory")
    if tensor.is_inference() or memory.is_inference():
        with InferenceMode(True):  # outside it, a tensor that was made inside cannot be changed
            tensor.data = memory
    else:
        tensor.data = memory


def identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether every bit is the same. False where that cannot be compared.

    >>> zero = torch.zeros(2)
    >>> identical(zero, -zero), identical(zero / 0, zero / 0)
    (False, True)
    """
    if a.shape != b.shape or a.dtype != b.dtype or a.layout is not b.layout:
        return False
    try:
        return _same_bits(a, b)
    except (RuntimeError, TypeError):  # a layout, or a subclass, whose bits cannot be read
        return False


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.layout is torch.sparse_coo:
        a, b = a.coalesce(), b.coalesce()
        return torch.equal(a.indices(), b.indices()) and _same_bits(a.values(), b.values())
    if a.is_quantized:
        return torch.equal(a.int_repr(), b.int_repr())
    if a.layout is not torch.strided:
        return torch.equal(a, b)
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    if a.is_contiguous() and b.is_contiguous() and a.numel() * a.itemsize % 8 == 0 and a.itemsize < 8:
        try:
            # eight bytes at a time: twice as fast
            return torch.equal(a.view(-1).view(torch.int64), b.view(-1).view(torch.int64))
        except RuntimeError:  # memory that does not begin at a multiple of eight bytes
            pass
    whole = _INTEGERS[a.itemsize]
    return torch.equal(a.view(whole), b.view(whole))


def overwrite(memory: torch.Tensor, values: torch.Tensor) -> None:
    """Write these values, each element once: also where rows share their memory, or a tensor was made in inference mode."""
    with InferenceMode(memory.is_inference()), torch.no_grad():
        if memory.layout is torch.strided:
            for dim, stride in enumerate(memory.stride()):
                if stride == 0 and memory.shape[dim] > 1:
                    memory, values = memory.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
        memory.copy_(values)


def set_values(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Give a tensor these values; nothing is written where it has them."""
    if tensor.shape != values.shape:
        use_memory(tensor, values.clone())
    elif not identical(tensor.data, values):
        overwrite(tensor.data, values)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether shape and values are equal, NaN equal to NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_floating_point() and a.dtype.itemsize == 1:
        a, b = a.view(torch.uint8), b.view(torch.uint8)  # torch cannot compare 8-bit floats
    return bool(torch.equal(a, b) or ((a == b) | ((a != a) & (b != b))).all())


def small(value: Any) -> bool:
    """A tensor small enough to copy, and no part of a graph."""
    return (
        isinstance(value, torch.Tensor) and value.is_leaf and value.device.type != "meta" and value.numel() <= 100_000
    )
