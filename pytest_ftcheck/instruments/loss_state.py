"""What a loss function of the user's keeps between its calls: counters, running means, tables of weights."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .kept_attributes import keep_attributes
from .kept_tensors import KeptTensors
from .undisturbed import modules_of
from .undo import Undo

_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
#: Values that a closure's name is bound to anew.
_REBOUND = (int, float, bool, str, tuple, type(None), torch.Tensor)


class LossState:
    """What a loss function reaches besides its arguments: the object that it is or belongs to, its closure, its defaults, callable globals.

    >>> class Counting:
    ...     calls = 0
    ...     def __call__(self, model, batch):
    ...         self.calls += 1
    >>> loss = Counting()
    >>> with LossState(loss, torch.nn.Linear(1, 1)).kept():
    ...     loss(None, None)
    >>> loss.calls
    0
    """

    def __init__(self, function: Callable[..., Any], model: nn.Module) -> None:
        self.function, self.model = function, model

    def kept(self) -> Undo:
        """A block after which all of it is as before."""
        owners, cells = self._found()
        modules = [m for o in owners if isinstance(o, nn.Module) for m in modules_of(o)]
        plain = [o for o in owners if not isinstance(o, nn.Module)]
        undo = Undo(*(_Cell(c) for c in cells))
        undo.keep(KeptTensors(("", b) for m in modules for b in m._buffers.values() if b is not None))
        undo.keep(*keep_attributes((*plain, *modules)))
        return undo

    def _found(self) -> tuple[list[Any], list[types.CellType]]:
        own = {id(m) for m in modules_of(self.model)}
        owners: list[Any] = []
        cells: list[types.CellType] = []
        seen: set[int] = set()
        todo: list[Any] = [self.function]
        while todo:
            value = todo.pop()
            if id(value) in seen or id(value) in own:
                continue
            seen.add(id(value))
            if isinstance(value, _FUNCTIONS):
                closure = getattr(value, "__closure__", None) or ()
                cells += [c for c in closure if _is_bound(c) and type(c.cell_contents) in _REBOUND]
                todo += _reached(value)
            elif callable(value) and hasattr(value, "__dict__") and not isinstance(value, type):
                owners.append(value)
                if not isinstance(value, nn.Module):
                    todo += [type(value).__call__, *vars(value).values()]
        return owners, cells


class _Cell:
    """What a name of an enclosing function is bound to."""

    def __init__(self, cell: types.CellType) -> None:
        self.cell, self.value = cell, cell.cell_contents

    def restore(self) -> None:
        """The same value."""
        self.cell.cell_contents = self.value


def _reached(function: Any) -> Iterable[Any]:
    """What a function can reach by its names."""
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, types.MethodType):
        return [function.__self__, function.__func__]
    known = function.__globals__
    by_name = [known[n] for n in function.__code__.co_names if n in known]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    held = [c.cell_contents for c in function.__closure__ or () if _is_bound(c)]
    return [*by_name, *defaults, *held]


def _is_bound(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
