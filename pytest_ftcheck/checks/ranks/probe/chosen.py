"""Which parameters of a model are compared between ranks: all that every rank holds whole, and a few of them at each step."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from ....instruments.sharded_tensors import is_sharded, stored_parameters

#: Tensors whose gradients are followed step by step.
FOLLOWED = 8


def several_dimensions(model: nn.Module) -> bool:
    """Whether shards lie along several dimensions of a mesh, or no module of the model is FSDP's: then ranks may share their rows."""
    meshes = [p.device_mesh for p in stored_parameters(model).values() if is_sharded(p)]  # type: ignore[attr-defined]
    by_fsdp = any(c.__name__ == "FSDPModule" for m in model.modules() for c in type(m).__mro__)
    return bool(meshes) and (not by_fsdp or any(mesh.ndim > 1 for mesh in meshes))


def part_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """Coordinates of this rank along the dimensions of the mesh that a sharded parameter is divided along."""
    if not is_sharded(parameter):
        return ()
    placements, mesh = parameter.placements, parameter.device_mesh  # type: ignore[attr-defined]
    at = mesh.get_coordinate() or ()
    return tuple(int(c) for c, placement in zip(at, placements, strict=False) if placement.is_shard())


def replicated(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are meant to be the same on all ranks, by name: no shards, none that DDP is told to ignore."""
    ignored = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    return {
        name: p
        for name, p in stored_parameters(model).items()
        if p.is_floating_point() and p.device.type != "meta" and p.numel() and not is_sharded(p) and name not in ignored
    }


def followed(model: nn.Module) -> dict[str, nn.Parameter]:
    """A few trainable ones, spread over the depth of the model: of each stretch the smallest, for its gradient is read at every step."""
    trainable = [(name, p) for name, p in replicated(model).items() if p.requires_grad and p.layout is torch.strided]
    count = min(FOLLOWED, len(trainable))
    ends = [len(trainable) * i // count for i in range(count + 1)] if count else [0]
    stretches = (trainable[a:b] for a, b in pairwise(ends))
    return dict(min(stretch, key=lambda pair: pair[1].numel()) for stretch in stretches)
