"""What is observed of forward passes while the run goes on: random states, inputs, modes and running statistics."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ....instruments.kept_tensors import same_bits
from ....instruments.tensor_bytes import digest
from ....instruments.uncompiled import outside_graphs
from ....instruments.undisturbed import is_probing
from ..record import BatchNormStatistics
from .dropout_sites import Site

#: Numbers of an input up to which it is compared from step to step.
MOST_COMPARED = 1_000_000


class TrainingPasses:
    """The loop's passes of the model in training mode, by hooks until `remove`; those of probes are not the loop's."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device = device
        #: Checksums of the random states in which the last one that drew random numbers began and ended; None: none drew any.
        self.random_states: tuple[int, int] | None = None
        self._inputs: set[int | None] = set()
        self._began: int | None = None
        self._handles = [
            model.register_forward_pre_hook(outside_graphs(self._begin, self._not_read), with_kwargs=True),
            model.register_forward_hook(outside_graphs(self._end)),
        ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    @property
    def used(self) -> int | None:
        """Checksum of the inputs of all of them, each counted once; None: there was none, or one was not read."""
        if None in self._inputs or not self._inputs:
            return None
        known = sorted(i for i in self._inputs if i is not None)
        return known[0] if len(known) == 1 else zlib.crc32(repr(known).encode())

    def _random_state(self) -> int | None:
        return digest(torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state())

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._began = None
        if module.training and not is_probing():
            self._inputs.add(input_checksum((args, kwargs)))
            self._began = self._random_state()

    def _end(self, module: nn.Module, _args: Any, _out: Any) -> None:
        began, self._began = self._began, None
        if module.training and began is not None and (ended := self._random_state()) not in (began, None):
            self.random_states = began, ended

    def _not_read(self) -> None:
        """A pass inside a transform of ``torch.func``."""
        self._inputs.add(None)
        self._began = None


def input_checksum(value: Any) -> int | None:
    """Checksum of the first tensor of two dimensions or more in a value; None: there is none."""
    if isinstance(value, torch.Tensor):
        if value.dim() < 2 or value.numel() > MOST_COMPARED:
            return None
        return digest(value)
    items = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return next((c for v in items if (c := input_checksum(v)) is not None), None)


@contextlib.contextmanager
def modes_of_passes(model: nn.Module, sites: Sequence[Site]) -> Iterator[list[tuple[bool, bool]]]:
    """For every pass of the whole model inside the ``with``: is it in training mode, and is something in it random then?"""
    passes: list[tuple[bool, bool]] = []
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]

    def hook(_module: nn.Module, _args: Any) -> None:
        random = any(s.module.training and s.rate > 0 for s in sites) or any(n.training for n in norms)
        passes.append((model.training, random))

    handle = model.register_forward_pre_hook(hook)
    try:
        yield passes
    finally:
        handle.remove()


@dataclass
class BatchNormObserver:
    """The running statistics of one batch normalisation while the run goes on."""

    name: str
    module: Any
    first_mean: torch.Tensor
    first_batches: int | None
    observed: int = 0

    @classmethod
    def all_in(cls, model: nn.Module) -> list[BatchNormObserver]:
        """One for each batch normalisation with running statistics."""
        return [
            cls(name, module, module.running_mean.detach().clone(), _batches_of(module))
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
        ]

    @property
    def used(self) -> bool:
        """It counted batches in training mode."""
        return self.first_batches is not None and self.first_batches != _batches_of(self.module)

    def statistics(self) -> BatchNormStatistics:
        """What was observed."""
        mean = self.module.running_mean
        changed = mean is None or not same_bits(mean.detach(), self.first_mean)
        return BatchNormStatistics(self.name, self.module.momentum, changed, self.observed)


def _batches_of(module: Any) -> int | None:
    count = getattr(module, "num_batches_tracked", None)
    return int(count) if isinstance(count, torch.Tensor) and count.numel() == 1 else None
