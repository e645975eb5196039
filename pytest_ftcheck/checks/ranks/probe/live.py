"""What exists in the process beside the model: its DDP wrapper, samplers, schedulers. They are found among python's tracked objects."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data.distributed import DistributedSampler

from ....instruments.optimizers import wrapped_optimizers
from ..record import RankScheduler


def living(kind: type) -> list[Any]:
    """All objects of a class; objects that pretend to be of another class (proxies) are asked nothing.

    >>> model = nn.Linear(2, 2)
    >>> any(found is model for found in living(nn.Linear))
    True
    """
    known: dict[int, bool] = {}  # a process has a million objects, of some thousand classes
    found = []
    for one in gc.get_objects():
        of = type(one)
        if id(of) not in known:
            known[id(of)] = any(c is kind for c in of.__mro__)
        if known[id(of)]:
            found.append(one)
    return found


def ddp_around(model: nn.Module) -> bool:
    """Whether a DDP wrapper holds a parameter of the model."""
    own = {id(p) for p in model.parameters()}
    return any(id(p) in own for ddp in living(DistributedDataParallel) for p in ddp.module.parameters())


def epoch_never_set() -> bool:
    """Whether there is a `DistributedSampler` that shuffles, and all of these are still at epoch 0."""
    shuffling = [s for s in living(DistributedSampler) if s.shuffle]
    return bool(shuffling) and not any(s.epoch for s in shuffling)


class Schedulers:
    """The schedulers that drive an optimizer, from its first step on."""

    def __init__(self, optimizer: Any) -> None:
        inner = wrapped_optimizers(optimizer)
        driving = (s for s in living(LRScheduler) if any(getattr(s, "optimizer", None) is o for o in inner))
        self._first = [(weakref.ref(s), s.last_epoch) for s in driving]

    def record(self, steps: int) -> tuple[RankScheduler, ...]:
        """How often each of them stepped for each of so many optimizer steps."""
        known = [(ref(), first) for ref, first in self._first]
        return tuple(
            RankScheduler(type(s).__name__, (s.last_epoch - first) / steps)
            for s, first in known
            if s is not None and steps
        )
