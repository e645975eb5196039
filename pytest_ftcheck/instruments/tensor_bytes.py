"""The bytes of a tensor, read where they are: no copy is made of a plain one, and its storage can be resized as before.

``tensor.numpy()`` makes the storage one that can never be resized again. What has no values to be read (a tensor inside a transform of
``torch.func``, a fake one, one on the meta device) is not read.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from .sharded_tensors import local

T = TypeVar("T")
_memory_view: Any = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_view.restype = ctypes.py_object
_memory_view.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
#: CPython's ``PyBUF_READ``: a view that is not written to.
_READ_ONLY = 0x100


def of_bytes(tensor: torch.Tensor, function: Callable[[memoryview], T]) -> T | None:
    """The function's result for the bytes of a dense tensor, in the order of its elements. None: it has none that can be read.

    >>> of_bytes(torch.tensor([1, 2], dtype=torch.uint8), bytes)
    b'\\x01\\x02'
    >>> of_bytes(torch.zeros(2, device="meta"), bytes)
    """
    try:
        flat = tensor if _is_in_order(tensor) else _in_order(tensor)
        view = _view(flat)
    except Exception:  # noqa: BLE001 - there are many kinds of tensors without memory, and each raises an error of its own
        return None
    # `flat` holds the memory
    return None if view is None else function(view)


def are_values() -> bool:
    """Whether tensors that are made here have values: not inside a transform of ``torch.func``, nor where fake ones are made.

    >>> found = []
    >>> _ = torch.func.grad(lambda x: [found.append(are_values()), x.sum()][1])(torch.zeros(2))
    >>> found, are_values()
    ([False], True)
    """
    return (
        torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is None
    )


def in_transform(tensor: torch.Tensor) -> bool:
    """Whether a tensor belongs to a transform of ``torch.func`` (``grad``, ``vmap``, ``jvp``), and has no values of its own.

    >>> found = []
    >>> _ = torch.func.vmap(lambda x: [found.append(in_transform(x)), x][1])(torch.zeros(2))
    >>> found, in_transform(torch.zeros(2))
    ([True], False)
    """
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def parts_of(tensor: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
    """The dense tensors that hold the values, in the same memory: of a dense one, itself; of a sparse one, its indices and values; of a
    nested one, what it is made of. None: they are not known.

    >>> len(parts_of(torch.eye(2))), len(parts_of(torch.eye(2).to_sparse()))
    (1, 2)
    """
    if in_transform(tensor):
        return None
    with torch.no_grad():
        if tensor.layout is torch.sparse_coo:
            return tensor._indices(), tensor._values()
        if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
            return tensor.crow_indices(), tensor.col_indices(), tensor.values()
        if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
            return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
        if tensor.layout is torch.jagged:
            of: Any = tensor.detach()
            lengths = of.lengths()
            return (of.values(), of.offsets(), *(() if lengths is None else (lengths,)))
        if tensor.is_nested:
            return tuple(tensor.detach().unbind())
    return (tensor,) if tensor.layout is torch.strided else None


def digest(tensor: torch.Tensor) -> int | None:
    """Checksum of every byte: shows whether anything changed, without a copy. None: it has no bytes that can be read."""
    tensor = local(tensor)
    if tensor.layout is torch.strided and not tensor.is_nested:
        return of_bytes(tensor, zlib.crc32)
    try:
        parts = parts_of(tensor)
    except (RuntimeError, TypeError, AttributeError):  # a kind of tensor that hides them
        return None
    if parts is None:
        return None
    found: int | None = zlib.crc32(str([tuple(part.shape) for part in parts]).encode())
    for part in parts:
        if found is not None:
            found = of_bytes(part, lambda view, so_far=found: zlib.crc32(view, so_far))  # type: ignore[misc]
    return found


def _is_in_order(tensor: torch.Tensor) -> bool:
    """Whether they are so already: thousands of small tensors are asked."""
    return (
        (type(tensor) is torch.Tensor or type(tensor) is nn.Parameter)
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and tensor.is_contiguous()
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _in_order(tensor: torch.Tensor) -> torch.Tensor:
    """The elements on the processor, one behind the other."""
    if tensor.layout is not torch.strided or tensor.is_nested or in_transform(tensor):
        raise TypeError("no dense tensor")
    with torch.no_grad():
        plain = tensor.detach()
        if plain.is_quantized:
            plain = plain.int_repr()
        return plain.cpu().resolve_conj().resolve_neg().contiguous()


def _view(flat: torch.Tensor) -> memoryview | None:
    """The memory of these elements; it must not be used after them. None: they are said to be there, and are not."""
    size = flat.numel() * flat.element_size()
    if not size:
        return memoryview(b"")
    storage = flat.untyped_storage()
    if not flat.data_ptr() or storage.nbytes() < flat.storage_offset() * flat.element_size() + size:
        return None
    view: memoryview = _memory_view(flat.data_ptr(), size, _READ_ONLY)
    return view
