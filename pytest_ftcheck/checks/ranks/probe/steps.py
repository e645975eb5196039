"""The optimizer steps of a rank: sketches of weights and gradients, and of the gradients before ranks are averaged.

A hook on a parameter is called with the gradient of this backward pass, before it is added to ``.grad``; DDP averages afterwards, in a hook
on the accumulation. So the sum of the two is what this rank alone computed since ``zero_grad()``, over all micro-batches, and not before: a
step that a GradScaler skipped does not count. Our hooks return nothing, so no gradient changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ....core.formatting import text_of
from ....instruments.sharded_tensors import stored_parameters
from ....instruments.uncompiled import between_graphs
from ....instruments.undisturbed import is_probing
from ..record import RankStep
from .chosen import followed
from .live import Schedulers
from .loss_weight import LossWeights
from .sketches import Sketches, plain

#: Steps that are recorded; of longer runs every second one, every fourth, ...
MOST = 128
#: Elements of each followed tensor that are read.
ELEMENTS = 256


class StepObserver:
    """Records the steps that optimizers take on the model's parameters, between :meth:`attach` and :meth:`detach`.

    :param before_first: called before the first step.  :param call: how the model was called last.
    """

    def __init__(self, model: nn.Module, before_first: Callable[[], None], call: Callable[[], str]) -> None:
        self._in_model = {id(p) for p in stored_parameters(model).values()}
        self._before_first, self._call = before_first, call
        chosen = followed(model)
        self.names = tuple(chosen)
        self._parameters = list(chosen.values())
        self._sketches = Sketches(self._parameters, ELEMENTS) if chosen else None
        self._local = self._sketches.elements.zeros() if self._sketches is not None else torch.zeros(0)
        self._first_bad = torch.full((), -1.0, device=self._local.device)
        self._local_is_old = False
        self._weights: torch.Tensor | None = None
        self.losses = LossWeights()
        self.schedulers: Schedulers | None = None
        self.steps = 0
        self._every = 1
        self._recorded: list[tuple[int, str, dict[str, torch.Tensor | None]]] = []
        self._stepping: Any = None
        self._handles: list[Any] = []
        #: Why nothing more was recorded; empty: nothing went wrong.
        self.error = ""

    def attach(self) -> None:
        """Begin."""
        for place, parameter in enumerate(self._parameters):
            self._handles.append(parameter.register_hook(self._hook(place)))  # type: ignore[no-untyped-call]
        self._handles.append(register_optimizer_step_pre_hook(between_graphs(self._guarded(self._before))))
        self._handles.append(register_optimizer_step_post_hook(between_graphs(self._guarded(self._after))))

    def detach(self) -> None:
        """End; may be called twice."""
        while self._handles:
            self._handles.pop().remove()

    # ------------------------------------------------------------------ hooks
    def _guarded(self, hook: Callable[[Any], None]) -> Callable[..., None]:
        """Nothing that we record is worth breaking a step for."""

        def called(optimizer: Any, *_: Any) -> None:
            if self.error or is_probing():
                return
            try:
                with torch.no_grad():
                    hook(optimizer)
            except Exception as error:  # noqa: BLE001
                self.error = f"the record of a step raised {type(error).__name__}: {text_of(error).strip()[:200]}"

        return called

    def _hook(self, place: int) -> Callable[[torch.Tensor], None]:
        def called(gradient: torch.Tensor) -> None:
            if self.error or is_probing() or self._sketches is None:
                return
            try:
                with torch.no_grad():
                    if self._local_is_old:
                        self._local.zero_()
                        self._local_is_old = False
                    before = self._parameters[place].grad
                    both = (gradient.detach(),) if before is None else (gradient.detach(), before)
                    self._sketches.put_sum(place, both, self._local)
            except Exception as error:  # noqa: BLE001
                self.error = f"the record of a gradient raised {type(error).__name__}: {text_of(error).strip()[:200]}"

        return called

    def _before(self, optimizer: Any) -> None:
        nested = self._stepping is not None and self._stepping is not optimizer
        if nested or not any(id(p) in self._in_model for g in optimizer.param_groups for p in g["params"]):
            return
        self._stepping = optimizer
        if not self.steps:
            self._before_first()
            self.schedulers = Schedulers(optimizer)
        if self._sketches is not None and self.steps % self._every == 0:
            self._weights = self._sketches.of_weights()

    def _after(self, optimizer: Any) -> None:
        if self._stepping is not optimizer:
            return
        self._stepping = None
        number, self.steps = self.steps, self.steps + 1
        if self._sketches is not None:
            local = self._sketches.of(self._local)
            bad = ~torch.isfinite(local.sum())
            self._first_bad = torch.where((self._first_bad < 0) & bad, float(number), self._first_bad)
            self._local_is_old = True
            if number % self._every == 0:
                self._record(number, local)
        self.losses.reset()

    def _record(self, number: int, local: torch.Tensor) -> None:
        assert self._sketches is not None
        found = {
            "weights": self._weights,
            "local": local,
            "gradients": self._sketches.of_gradients(),
            "clipped": self.losses.clipped,
            "loss_weight": self.losses.known,
        }
        self._recorded.append((number, self._call(), found))
        if len(self._recorded) >= MOST:
            self._recorded, self._every = self._recorded[::2], 2 * self._every

    # ------------------------------------------------------------------ the record
    def record(self) -> tuple[RankStep, ...]:
        """What was recorded."""
        return tuple(_step(number, call, found) for number, call, found in self._recorded)

    def first_nonfinite(self) -> int | None:
        """First step whose gradients of this rank were not finite."""
        first = int(self._first_bad)
        return first if first >= 0 else None


def _step(number: int, call: str, found: dict[str, torch.Tensor | None]) -> RankStep:
    sketches = {name: plain(s) if (s := found[name]) is not None else () for name in ("weights", "local", "gradients")}
    clipped, weight = found["clipped"], found["loss_weight"]
    return RankStep(
        number,
        **sketches,
        call=call,
        clipped=1.0 if clipped is None else float(clipped),
        loss_weight=None if weight is None else float(weight),
    )
