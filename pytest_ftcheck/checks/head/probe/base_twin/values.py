"""What enters and leaves each submodule of a base and of its twin."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from .....instruments.batches import tensors_in

#: Numbers of one value that are compared, at most.
COMPARED = 1_000_000
Kind = Literal["output", "input", "call"]


class Event(NamedTuple):
    """One value of one call of one submodule."""

    module: str
    call: int
    kind: Kind


#: Event -> value, in the order of execution.
Values = dict[Event, torch.Tensor]


def common_modules(base: nn.Module, twin: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Submodules of the same name, each once; those that only one of the two shares between places are left out."""
    groups = [_groups(base), _groups(twin)]
    modules = [dict(m.named_modules(remove_duplicate=False)) for m in (base, twin)]
    return {
        name: (modules[0][name], modules[1][name])
        for name, group in groups[1].items()
        if groups[0].get(name) == group and name == group[0]
    }


def _groups(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name -> all names of the same module."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return {name: tuple(group) for group in names.values() for name in group}


@contextlib.contextmanager
def recorded_values(modules: Mapping[str, nn.Module]) -> Iterator[Values]:
    """What enters and leaves the modules inside the ``with``; the hooks are removed afterwards."""
    values: Values = {}
    calls: Counter[str] = Counter()
    handles = []

    def hooks(name: str) -> Any:
        def entered(_module: nn.Module, args: Any, kwargs: Any) -> None:
            calls[name] += 1
            _keep("input", (args, kwargs))

        def left(_module: nn.Module, _args: Any, out: Any) -> None:
            _keep("output", out)

        def _keep(kind: Kind, value: Any) -> None:
            tensor = first_of(value)
            if tensor is not None:
                values.setdefault(Event(name, calls[name], kind), sampled(tensor))

        return entered, left

    try:
        for name, module in modules.items():
            entered, left = hooks(name)
            handles.append(module.register_forward_pre_hook(entered, with_kwargs=True))
            handles.append(module.register_forward_hook(left))
        yield values
    finally:
        for handle in handles:
            handle.remove()


def first_of(value: Any) -> torch.Tensor | None:
    """The first floating-point tensor in a value, a single number (the loss before the logits) only where there is no other; None: there
    is none."""
    found = [t for t in tensors_in(value) if t.is_floating_point()]
    return next((t for t in found if t.dim()), found[0] if found else None)


def sampled(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the values, of a large tensor one of every few."""
    flat = tensor.detach().reshape(-1)
    # an odd stride: it meets every column and every position
    return flat[:: math.ceil(len(flat) / COMPARED) | 1].clone()


def relative_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference over the largest value of ``second``; infinite where they cannot be compared."""
    if first.shape != second.shape:
        return math.inf
    if torch.equal(first, second) or not second.numel():
        return 0.0
    a, b = first.to(second.device).double(), second.double()
    finite = torch.isfinite(b)
    same = torch.isclose(a, b, rtol=0, atol=0, equal_nan=True)
    if bool((~(finite & torch.isfinite(a)) & ~same).any()):
        return math.inf
    if not bool(finite.any()):
        return 0.0
    change, scale = float((a - b)[finite].abs().max()), float(b[finite].abs().max())
    return change / scale if scale > 0 else (math.inf if change > 0 else 0.0)
