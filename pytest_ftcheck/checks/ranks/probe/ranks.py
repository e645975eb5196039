"""The record of one rank of a distributed run, made without a word to the other ranks."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ....instruments.loop_calls import subscribe, unsubscribe
from ....instruments.probe import LeftOut, ModelContext, ModelProbe
from ....instruments.sharded_tensors import is_sharded, local, stored_parameters
from ....instruments.uncompiled import outside_graphs
from ....instruments.undisturbed import is_probing
from ..record import BARE, NO_SYNC, WRAPPED, Rank, Ranks, RankWeights
from .chosen import part_of, replicated, several_dimensions
from .live import ddp_around, epoch_never_set
from .rows import RowChecksums
from .sketches import NUMBERS, Sketches, plain
from .steps import StepObserver

#: Elements of each tensor that are read before the first step and at the end.
ELEMENTS = 64


class RanksProbe(ModelProbe):
    """Watch the steps and the calls of this rank. No collective is called: it may run on one rank alone."""

    name = "ranks"
    order = 4

    def __init__(self, context: ModelContext) -> None:
        super().__init__(context)
        if not (distributed.is_available() and distributed.is_initialized()):
            raise LeftOut("torch.distributed is not initialized: one process trains")
        self.size, self.rank = distributed.get_world_size(), distributed.get_rank()
        if self.size < 2:
            raise LeftOut("one process trains")
        model = context.model
        self._same = replicated(model)
        self._sketches = Sketches(list(self._same.values()), ELEMENTS) if self._same else None
        self._first: torch.Tensor | None = None
        self._last: torch.Tensor | None = None
        self._rows = RowChecksums()
        self._calls, self._call = 0, ""
        self._has_wrapped_part = any(isinstance(m, DistributedDataParallel) for m in model.modules())
        self._steps = StepObserver(model, self._before_first, lambda: self._call)
        self._hook: Any = None
        self._ended = self._wrapped = self._epoch_never_set = False

    # ------------------------------------------------------------------ moments
    def before(self) -> None:
        """Begin to watch."""
        self._hook = self.context.model.register_forward_pre_hook(outside_graphs(self._called), with_kwargs=True)
        self._steps.attach()

    def loop_begins(self) -> None:
        """In a loop of the user's, its losses are known, too."""
        subscribe(self._steps.losses)

    def loop_ends(self) -> None:
        """The last step was taken."""
        self._end()

    def after(self) -> None:
        """The same, where no loop is watched."""
        self._end()

    def close(self) -> None:
        """No hook of ours is left."""
        unsubscribe(self._steps.losses)
        self._steps.detach()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self.close()
        if self._sketches is not None:
            self._last = self._sketches.of_weights()
        self._wrapped, self._epoch_never_set = ddp_around(self.context.model), epoch_never_set()

    # ------------------------------------------------------------------ during the loop
    def _before_first(self) -> None:
        if self._sketches is not None:
            self._first = self._sketches.of_weights()

    def _called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if is_probing() or not module.training or not torch.is_grad_enabled():
            return
        self._calls += 1
        with contextlib.suppress(Exception), torch.no_grad():
            self._call = self._how_called()
            self._rows.add((args, kwargs))

    def _how_called(self) -> str:
        """By the DDP wrapper, in ``no_sync()``, or bare; empty where a part of the model has a wrapper of its own."""
        active = getattr(DistributedDataParallel, "_active_ddp_module", None)
        if active is None:
            return "" if self._has_wrapped_part else BARE
        return WRAPPED if active.require_backward_grad_sync else NO_SYNC

    # ------------------------------------------------------------------ the record
    def record(self) -> Ranks | None:
        """The record; None: no step was taken, and the model was not called."""
        if not self._ended or not (self._steps.steps or self._calls):
            return None
        if self._steps.error:
            raise RuntimeError(self._steps.error)
        rows, rows_in_order = self._rows.record()
        model = self.context.model
        sharded, several = any(map(is_sharded, stored_parameters(model).values())), several_dimensions(model)
        schedulers = self._steps.schedulers
        rank = Rank(
            rank=self.rank,
            weights=self._weights(),
            sampled=self._steps.names,
            steps=self._steps.record(),
            first_nonfinite_local=self._steps.first_nonfinite(),
            rows=rows,
            rows_in_order=rows_in_order,
            calls=self._calls,
            sharded=sharded and not several,
            sharded_otherwise=several,
            wrapped=self._wrapped,
            epoch_never_set=self._epoch_never_set,
            schedulers=() if schedulers is None else schedulers.record(self._steps.steps),
        )
        return Ranks(self.size, (rank,))

    def _weights(self) -> tuple[RankWeights, ...]:
        first, last = self._by_name(self._first), self._by_name(self._last)
        return tuple(
            RankWeights(
                name=name,
                shape=tuple(p.shape),
                elements=local(p).numel(),
                first=first.get(name, ()),
                last=last.get(name, ()),
                sharded=is_sharded(p),
                part=part_of(p),
            )
            for name, p in stored_parameters(self.context.model).items()
        )

    def _by_name(self, sketch: torch.Tensor | None) -> dict[str, tuple[float, ...]]:
        if sketch is None:
            return {}
        numbers = plain(sketch)
        return {name: numbers[i * NUMBERS : (i + 1) * NUMBERS] for i, name in enumerate(self._same)}
