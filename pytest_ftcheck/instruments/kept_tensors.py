"""Tensors and the values in them: kept, compared bit for bit, and written back only where they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .inference import InferenceMode
from .sharded_tensors import is_sharded, local, memory_of
from .tensor_bytes import parts_of
from .undo import NotRestored, restore_or_name

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

    @classmethod
    def of(cls, tensor: torch.Tensor, name: str, memory: torch.Tensor, values: torch.Tensor | None) -> KeptTensor:
        """A tensor as it was: its memory, and the values that were in it."""
        kept = cls.__new__(cls)
        kept.tensor, kept.name, kept.memory, kept.values = tensor, name, memory, values
        return kept

    def restore(self) -> bool:
        """Memory and values as they were when the tensor was kept; whether anything differed."""
        moved = not same_memory(local(self.tensor), self.memory)
        if moved:
            use_memory(self.tensor, self.memory)
        if self.values is None or identical(self.memory, self.values):
            return moved
        overwrite(self.memory, self.values)
        if self.memory.layout is torch.sparse_coo:  # writing gave it other indices and values
            use_memory(self.tensor, self.memory)
        return True

    def __str__(self) -> str:
        if self.name or self.values is None or self.values.is_nested:  # a nested one has no shape
            return self.name or "a tensor"
        return f"a tensor of shape {tuple(self.values.shape)}"


def restore_flags(tensor: torch.Tensor, requires_grad: bool, grad: torch.Tensor | None) -> None:
    """A leaf's ``requires_grad`` and ``.grad``. What was written in place became part of a graph, and is a leaf again; a view is left in
    it, for torch detaches no view in place."""
    if tensor.requires_grad != requires_grad:
        if tensor.is_leaf:
            tensor.requires_grad_(requires_grad)
        elif not tensor._is_view():
            tensor.detach_()
    if tensor.is_leaf and tensor.grad is not grad:
        tensor.grad = grad


class KeptFlags:
    """``requires_grad`` and ``.grad`` of a leaf, and the values of that gradient."""

    __slots__ = ("grad", "requires_grad", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.requires_grad = tensor, tensor.requires_grad
        self.grad = None if tensor.grad is None else KeptLeaf(tensor.grad, "a gradient")

    def restore(self) -> bool:
        """As they were; whether the values of the gradient differed."""
        differed = self.grad is not None and self.grad.restore()
        restore_flags(self.tensor, self.requires_grad, None if self.grad is None else self.grad.tensor)
        return differed


class KeptLeaf(KeptTensor):
    """A tensor as it is now: its values and, unless it is part of a graph, its flag and its gradient."""

    __slots__ = ("flags",)

    def __init__(self, tensor: torch.Tensor, name: str = "") -> None:
        super().__init__(tensor, name)
        self.flags = KeptFlags(tensor) if tensor.is_leaf else None

    def restore(self) -> bool:
        """As it was when it was kept; whether values differed."""
        differed = super().restore()
        return (self.flags is not None and self.flags.restore()) or differed


class KeptTensors:
    """Several tensors as they are now, each as `KeptTensor` keeps one. Small plain ones are copied and compared side by side: of thousands
    the calls cost more than the numbers.

    :param named: names and tensors, each tensor once.
    """

    def __init__(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._single: list[KeptTensor] = []
        together: dict[Any, list[tuple[str, torch.Tensor]]] = {}
        for name, tensor in named:
            if _joins(tensor):
                together.setdefault((tensor.dtype, tensor.device), []).append((name, tensor))
            else:
                self._single.append(KeptTensor(tensor, name))
        self._joined = [_SideBySide(tensors) for tensors in together.values()]

    def restore(self) -> list[str]:
        """Memory and values as they were when the tensors were kept; the names of those that differed.

        :raises NotRestored: naming what could not be restored; all else was.
        """
        differed: list[str] = []
        problems: list[str] = []
        for joined in self._joined:
            joined.restore(differed, problems)
        for kept in self._single:
            if restore_or_name(kept, problems):
                differed.append(kept.name)
        if problems:
            raise NotRestored("; ".join(problems))
        return differed


#: Tensors of more elements are kept one by one.
SMALL = 2**14
_JOINED_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64})


def _joins(t: torch.Tensor) -> bool:
    return (
        (type(t) is nn.Parameter or type(t) is torch.Tensor)
        and t.dtype in _JOINED_DTYPES
        and t.layout is torch.strided
        and not t.is_nested
        and 0 < t.numel() <= SMALL
        and t.is_contiguous()
        and (t.is_cpu or t.is_cuda)
        and not t.is_inference()
    )


class _SideBySide:
    """Plain tensors of one dtype and device; their values lie in one copy."""

    def __init__(self, named: list[tuple[str, torch.Tensor]]) -> None:
        self.named = named
        self.memory = [t.data for _, t in named]
        self.places = [(m.data_ptr(), m.shape, m.stride(), m.dtype) for m in self.memory]
        self.flat = [m.view(-1) for m in self.memory]
        self.values = torch.cat(self.flat)

    def restore(self, differed: list[str], problems: list[str]) -> None:
        """As `KeptTensor.restore`; the names are added to these lists."""
        moved = [
            i
            for i, ((_, t), place) in enumerate(zip(self.named, self.places, strict=True))
            if (t.data_ptr(), t.shape, t.stride(), t.dtype) != place
        ]
        if not moved and identical(torch.cat(self.flat), self.values):
            return
        pieces = torch.split(self.values, [flat.numel() for flat in self.flat])
        for (name, tensor), memory, values in zip(self.named, self.memory, pieces, strict=True):
            kept = KeptTensor.of(tensor, name, memory, values.view(memory.shape))
            if restore_or_name(kept, problems):
                differed.append(name)


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
    if not _is_dense(tensor) or tensor.device.type == "meta" or not tensor.numel():
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same elements of the same memory."""
    if not _is_dense(a) or not _is_dense(b):
        return _same_parts(a, b, same_memory) or _same_opaque(a, b)
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
        and a.device == b.device
    )


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements lie in one memory; of a sparse or nested one they do not."""
    return tensor.layout is torch.strided and not tensor.is_nested


def _matching_parts(a: torch.Tensor, b: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The parts of two tensors side by side; none where they are not known, or of other shapes."""
    one, two = parts_of(a) or (), parts_of(b) or ()
    pairs = list(zip(one, two, strict=False))
    return pairs if len(one) == len(two) and all(x.shape == y.shape for x, y in pairs) else []


def _same_parts(a: torch.Tensor, b: torch.Tensor, same: Callable[[torch.Tensor, torch.Tensor], bool]) -> bool:
    """Whether two tensors of one kind are made of the same parts. False where the parts are not known."""
    if a.layout is not b.layout or a.is_nested is not b.is_nested or (not a.is_nested and a.shape != b.shape):
        return False
    pairs = _matching_parts(a, b)
    return bool(pairs) and all(same(x, y) for x, y in pairs)


def _same_opaque(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of oneDNN, whose elements have an order of their own, are the same ones."""
    return bool(
        a.is_mkldnn
        and b.is_mkldnn
        and a.shape == b.shape
        and torch.ops.mkldnn.data_ptr(a) == torch.ops.mkldnn.data_ptr(b)
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
    if a.dtype != b.dtype or a.layout is not b.layout:
        return False
    try:
        if not _is_dense(a) or not _is_dense(b):
            return _same_values(a, b)
        return a.shape == b.shape and _same_bits(a, b)
    except (RuntimeError, TypeError):  # a layout, or a subclass, whose bits cannot be read
        return False


def _same_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Of two tensors that are made of parts, or whose elements have an order of their own."""
    if a.is_mkldnn and b.is_mkldnn:
        return identical(a.to_dense(), b.to_dense())
    if a.layout is torch.sparse_coo and a.shape == b.shape:
        a, b = a.coalesce(), b.coalesce()
    return _same_parts(a, b, identical)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.is_quantized:
        return torch.equal(a.int_repr(), b.int_repr())
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
        if not _is_dense(memory) and (parts := _matching_parts(memory, values)):
            for into, part in parts:
                overwrite(into, part)
            return
        if _is_dense(memory):
            for dim, stride in enumerate(memory.stride()):
                if stride == 0 and memory.shape[dim] > 1:
                    memory, values = memory.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
        memory.copy_(values)


def set_values(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Give a tensor these values; nothing is written where it has them."""
    if _is_dense(tensor) and tensor.shape != values.shape:
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
