"""Gains and biases of a base, beside those that its class starts with."""

from __future__ import annotations

import torch
from torch import nn

from .....instruments.sharded_tensors import is_sharded
from ...base_twin_record import FilledVector, VectorStarts

#: Elements below which all being the same says nothing.
MIN_ELEMENTS = 8
#: Norms of torch, which start with gains of 1 and biases of 0.
TORCH_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def vector_starts(base: nn.Module, twin: nn.Module) -> VectorStarts:
    """The vectors that a class starts with one value throughout, as they are in the base.

    :param twin: made from the base's class and config, with its own first values; on the device ``meta`` only torch's norms are known.

    >>> base, twin = nn.LayerNorm(8), nn.LayerNorm(8)
    >>> _ = base.weight.data.fill_(20)
    >>> vector_starts(base, twin)
    VectorStarts(gains=8, negative=0, filled=(FilledVector(name='weight', value=20.0, of_class=1.0),))
    """
    own = dict(base.named_parameters(remove_duplicate=False))
    filled, gains = [], []
    for place, module in twin.named_modules():
        for part, made in module.named_parameters(recurse=False):
            name = f"{place}.{part}" if place else part
            value = own.get(name)
            if value is None or value.dim() != 1 or value.numel() < MIN_ELEMENTS or is_sharded(value):
                continue
            first = _first(module, part, made)
            if first is None:
                continue
            now = _constant(value)
            if now is not None and now != first:
                filled.append(FilledVector(name, now, first))
            if first == 1:
                gains.append(value.detach())
    negative = sum(int((g < 0).sum()) for g in gains)
    return VectorStarts(sum(g.numel() for g in gains), negative, tuple(filled))


def _first(module: nn.Module, part: str, made: torch.Tensor) -> float | None:
    """The one value that the class starts this vector with; None: several, or it is not known."""
    if made.device.type != "meta":
        return _constant(made)
    return {"weight": 1.0, "bias": 0.0}.get(part) if isinstance(module, TORCH_NORMS) else None


def _constant(vector: torch.Tensor) -> float | None:
    values = vector.detach()
    return float(values[0]) if bool((values == values[0]).all()) else None
