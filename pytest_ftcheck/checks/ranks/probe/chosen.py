"""Which parameters of a model are compared between ranks: all that every rank holds whole, and a few of them at each step."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from ....instruments.sharded_tensors import stored_parameters

#: Tensors whose gradients are followed step by step.
FOLLOWED = 8


def is_shard(parameter: nn.Parameter) -> bool:
    """Whether a rank holds a part of it: a DTensor (FSDP2, tensor parallelism), or a parameter of FSDP's flat ones."""
    if getattr(parameter, "_fsdp_flattened", False) or getattr(parameter, "_is_flat_param", False):
        return True
    return hasattr(parameter, "placements") and hasattr(parameter, "device_mesh")


def several_dimensions(model: nn.Module) -> bool:
    """Whether shards lie along several dimensions of a mesh, or no module of the model is FSDP's: then ranks may share their rows."""
    shards = [p for p in stored_parameters(model).values() if is_shard(p)]
    meshes = [getattr(p, "device_mesh", None) for p in shards]
    by_fsdp = any(
        c.__name__ in ("FSDPModule", "FullyShardedDataParallel") for m in model.modules() for c in type(m).__mro__
    )
    return bool(shards) and (not by_fsdp or any(mesh is not None and mesh.ndim > 1 for mesh in meshes))


def replicated(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are meant to be the same on all ranks, by name: no shards, none that DDP is told to ignore."""
    ignored = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    return {
        name: p
        for name, p in stored_parameters(model).items()
        if p.is_floating_point() and p.device.type != "meta" and p.numel() and not is_shard(p) and name not in ignored
    }


def followed(model: nn.Module) -> dict[str, nn.Parameter]:
    """A few trainable ones, spread over the depth of the model: of each stretch the smallest, for its gradient is read at every step."""
    trainable = [(name, p) for name, p in replicated(model).items() if p.requires_grad and p.layout is torch.strided]
    count = min(FOLLOWED, len(trainable))
    ends = [len(trainable) * i // count for i in range(count + 1)] if count else [0]
    stretches = (trainable[a:b] for a, b in pairwise(ends))
    return dict(min(stretch, key=lambda pair: pair[1].numel()) for stretch in stretches)
