"""Models whose parameters are sharded over several processes: which of them can be watched, and what their trace says of it."""

from __future__ import annotations

from torch import nn

from ..core.formatting import plural
from ..instruments.sharded_tensors import flat_wrapper, shape_here, stored_parameters


def refuse_flat_parameters(model: nn.Module) -> None:
    """``ValueError`` for FSDP1, whose parameters are parts of flat ones that only torch can tell apart."""
    where = flat_wrapper(model)
    if where is not None:
        raise ValueError(
            f"model: {where} is a FullyShardedDataParallel (FSDP1), whose flat parameters cannot be watched; expected a module, one inside "
            "DistributedDataParallel, or one sharded by torch.distributed.fsdp.fully_shard (FSDP2)"
        )


def shard_notes(model: nn.Module) -> list[str]:
    """A note where this rank holds parts of parameters: all numbers of these are those of its parts."""
    parameters = list(stored_parameters(model).values())
    count = sum(shape_here(p) is not None for p in parameters)
    if not count:
        return []
    return [
        f"{count} of {plural(len(parameters), 'tensor')} are sharded: their numbers are those of this rank's shard; w.gather() merges "
        "the shards of all ranks"
    ]
