"""Tensors of which this process holds a part (``DTensor``: ``fully_shard``, tensor parallelism), read without a word to the others."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

#: Why nothing is measured on rows where a model has such parameters.
NO_PASSES = (
    "the parameters are sharded over the ranks: a forward pass gathers them, which is a collective that all ranks would have to call "
    "together"
)


def _is_dtensor_class(of: Any) -> bool:
    return any(c.__name__ == "DTensor" and c.__module__.startswith("torch.distributed") for c in of.__mro__)


# cached: it is asked of every parameter at every step
_is_dtensor: Callable[[Any], bool] = functools.lru_cache(maxsize=1024)(_is_dtensor_class)


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is one of several processes together.

    >>> is_sharded(torch.zeros(2)), is_sharded(nn.Parameter(torch.zeros(2)))
    (False, False)
    """
    return _is_dtensor(type(tensor))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The elements that this process holds, in the same memory, without a graph; of a tensor of this process alone, the tensor itself."""
    if not _is_dtensor(type(tensor)):
        return tensor
    with torch.no_grad():
        held: torch.Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return held


def memory_of(tensor: torch.Tensor) -> torch.Tensor:
    """Another handle on the elements that this process holds."""
    return local(tensor) if _is_dtensor(type(tensor)) else tensor.data


def value_here(tensor: torch.Tensor) -> torch.Tensor | None:
    """The value, where this process has all of it; None: it would have to ask the others."""
    if not _is_dtensor(type(tensor)):
        return tensor
    held = local(tensor)
    summand = any(placement.is_partial() for placement in tensor.placements)  # type: ignore[attr-defined]
    return None if summand or held.shape != tensor.shape else held


def shape_here(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Shape of the part that this process holds; None: it holds the whole tensor."""
    if value_here(tensor) is not None:
        return None
    return tuple(local(tensor).shape)


# ------------------------------------------------------------------ models
def has_shards(model: nn.Module) -> bool:
    """Whether some of its parameters are sharded, or are gathered for a moment only.

    >>> has_shards(nn.Linear(2, 2))
    False
    """
    return any(map(is_sharded, model.parameters())) or any(map(gathers_in_forward, model.modules()))


def flat_wrapper(model: nn.Module) -> str | None:
    """Name of the module, in the model or itself, that keeps its parameters as parts of flat ones (FSDP1); None: there is none."""
    for name, module in model.named_modules():
        if "FullyShardedDataParallel" in _sharding_classes(type(module)):
            return name or "the model itself"
    return None


def stored_parameters(model: nn.Module, *, every_name: bool = False) -> dict[str, nn.Parameter]:
    """The parameters by name, as the optimizer holds them: sharded ones that are gathered for a moment as they are sharded.

    :param every_name: a shared parameter under each of its names, not the first alone.
    :raises ValueError: as `gathered_parameters`.
    """
    behind = gathered_parameters(model)
    return {name: behind.get(id(p), p) for name, p in model.named_parameters(remove_duplicate=not every_name)}


def gathered_parameters(model: nn.Module) -> dict[int, nn.Parameter]:
    """Id of a gathered parameter -> the sharded one behind it, which the optimizer holds.

    After a forward pass without a backward, ``fully_shard`` leaves the outermost module's parameters gathered until the next backward pass.

    :raises ValueError: there are gathered parameters, and this version of torch does not say what is behind them.
    """
    found: dict[int, nn.Parameter] = {}
    for module in (m for m in model.modules() if "FSDPModule" in _sharding_classes(type(m))):
        for one in _managed(module):
            holder = one._module_info
            now = getattr(holder.module, holder.param_name, None)
            if now is not one.sharded_param:
                found[id(now)] = one.sharded_param
    return found


def gathers_in_forward(module: nn.Module) -> bool:
    """Whether this module's own forward pass gathers parameters from all ranks (``fully_shard``, FSDP1)."""
    return bool(_sharding_classes(type(module)))


def _known_sharding_classes(of: Any) -> frozenset[str]:
    """Which of torch's two kinds of fully sharded modules a class is."""
    names = {c.__name__ for c in of.__mro__ if c.__module__.startswith("torch.distributed")}
    return frozenset(names & {"FSDPModule", "FullyShardedDataParallel"})


_sharding_classes: Callable[[Any], frozenset[str]] = functools.lru_cache(maxsize=1024)(_known_sharding_classes)


def _managed(module: Any) -> Iterator[Any]:
    """What ``fully_shard`` knows of each parameter of a module; torch has no public name for it."""
    if all(map(is_sharded, module.parameters())):
        return
    try:
        state = module._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None)
        for group in [state._fsdp_param_group] if groups is None else groups:
            if group is not None:
                yield from group.fsdp_params
    except AttributeError as error:
        raise ValueError(
            f"model: parameters of {type(module).__name__} are gathered at the moment, after a forward pass without a backward: begin the "
            "block before that pass, or call reshard() on this module on all ranks first"
        ) from error
