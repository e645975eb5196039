"""Observe a few optimizer steps from the one before: each ``backward()``, the losses behind it, and what becomes of the gradients.

Nothing of the loop's is called or changed, but for the few autograd nodes between a value and its losses (`backpropagated`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ....instruments.batches import tensors_in
from ....instruments.loop_calls import LoopCallListener, subscribe, unsubscribe
from ....instruments.probe import ModelContext, ModelProbe
from ....instruments.tensor_bytes import of_bytes
from ....instruments.uncompiled import between_graphs, outside_graphs
from ....instruments.undisturbed import is_probing, parameters_of
from ..loss_scale_record import Backward, LossScale, Window
from .backpropagated import LossOutput, WeighedLoss, losses_behind, read_loss
from .gradient_sample import GradientSample

#: Steps that are observed: the first ones, and then those at powers of two, up to `MOST`.
FIRST = 3
MOST = 16
#: Micro-batches of one step that are observed, and losses behind one of them.
MOST_BACKWARDS = 256
MOST_LOSSES = 256
#: Elements that tell the rows of a batch from others.
ELEMENTS = 4096
#: Frames that tell one line of the loop from others.
FRAMES = 16
#: Their automatic optimization calls ``backward()`` for one loss from several lines of theirs, inside and outside the step's closure.
_LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")
_NOT_THE_LOOPS = (torch.__name__, __package__.partition(".")[0], *_LIGHTNING)


class LossScaleProbe(ModelProbe):
    """What was backpropagated at a few optimizer steps, beside the losses that it was computed from."""

    name = "loss_scale"
    order = 5

    def __init__(self, context: ModelContext) -> None:
        super().__init__(context)
        self.observer = StepObserver(context.model)

    def before(self) -> None:
        """From now on steps are observed."""
        self.observer.start()

    def loop_ends(self) -> None:
        """The watched loop is over."""
        self.observer.stop()

    def after(self) -> None:
        """The training is over."""
        self.observer.stop()

    def close(self) -> None:
        """No hook is left."""
        self.observer.stop()

    def record(self) -> LossScale:
        """What was observed."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        ranks = torch.distributed.get_world_size() if distributed else 1
        return LossScale(tuple(self.observer.windows), ranks)


@dataclass
class _Backward:
    """What is known of a call of ``backward()`` while its window is open; tensors are read when it closes."""

    value: torch.Tensor
    losses: list[WeighedLoss]
    rows: int | None
    batch: Any
    num_items: bool
    place: Any


@dataclass
class _OpenWindow:
    backwards: list[_Backward] = field(default_factory=list)
    gradients: GradientSample | None = None
    unscaled: list[torch.Tensor] = field(default_factory=list)
    clipped: list[torch.Tensor] = field(default_factory=list)
    disturbed: bool = False
    #: Rows and lines of the calls of ``backward()`` whose gradients were cleared.
    cleared: list[tuple[Any, Any]] = field(default_factory=list)


class StepObserver(LoopCallListener):
    """Observes what leads to an optimizer step on the model's parameters, from the step before."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.windows: list[Window] = []
        self._steps = 0
        self._own: set[int] = set()  # ids of the model's parameters
        self._open: _OpenWindow | None = None
        self._losses: list[LossOutput] = []  # whose backward() was not called as yet
        self._older: list[LossOutput] = []  # those that one backward() has passed by
        #: Of the model's last call: rows, what tells them from others, whether it was given num_items_in_batch.
        self._batch: tuple[int | None, Any, bool] = (None, None, False)
        self._new_batch = True  # no call of a part of the model since the last backward()
        self._hooks: list[Any] = []

    # ------------------------------------------------------------------ on and off
    def start(self) -> None:
        """Observe from now on."""
        self._hooks = [
            register_optimizer_step_pre_hook(between_graphs(self._before_step)),
            register_optimizer_step_post_hook(between_graphs(self._after_step)),
        ]
        # a loop may call the parts of the model and never the whole, as a Lightning module's training_step does; the hooks stay to the
        # end, for a compiled model is compiled again where one goes
        for module in (self.model, *self.model.children()):
            self._hooks.append(
                module.register_forward_pre_hook(outside_graphs(self._called, self._not_read), with_kwargs=True)
            )
        self._begin()

    def stop(self) -> None:
        """Observe no more; may be called twice."""
        while self._hooks:
            self._hooks.pop().remove()
        self._end()

    def _begin(self) -> None:
        self._open = _OpenWindow()
        self._own = set(map(id, parameters_of(self.model)))
        subscribe(self)

    def _end(self) -> None:
        unsubscribe(self)
        self._open, self._new_batch = None, True
        self._losses, self._older, self._batch = [], [], (None, None, False)

    # ------------------------------------------------------------------ the loop's calls
    def _called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if (
            self._open is None
            or is_probing()
            or not torch.is_grad_enabled()
            or not (module is self.model or self._new_batch)
        ):
            return
        with contextlib.suppress(Exception):
            given = next((t for t in tensors_in((args, kwargs)) if t.dim()), None)
            self._new_batch = self._new_batch and module is not self.model and given is None
            rows = None if given is None else len(given)
            self._batch = rows, _digest(given), kwargs.get("num_items_in_batch") is not None

    def _not_read(self) -> None:
        """Which rows the model was called with last is not known."""
        self._batch, self._new_batch = (None, None, False), False

    def loss_called(self, function: str, loss: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A loss of torch, which may be behind the next ``backward()``."""
        if self._open is not None and len(self._losses) < MOST_LOSSES:
            found = read_loss(function, loss, args, kwargs)
            if found is not None:
                self._losses.append(found)

    def backward_called(self, loss: torch.Tensor) -> None:
        """Notes what it is called on, before the graph is gone."""
        window = self._open
        if window is None:
            return
        self._new_batch = True
        known, self._older, self._losses = self._older + self._losses, self._losses, []
        if GradientSample(self.model).is_zero:
            window.cleared += [(b.batch, b.place) for b in window.backwards][: MOST_BACKWARDS - len(window.cleared)]
            window.backwards.clear()
            window.disturbed = False
        elif not window.backwards or window.gradients is None or window.gradients.factor() != 1.0:
            window.disturbed = True
        window.unscaled.clear()
        window.clipped.clear()
        if len(window.backwards) < MOST_BACKWARDS:
            behind = losses_behind(loss, known)
            self._older = [o for o in self._older if all(o is not b.loss for b in behind)]
            rows, batch, num_items = self._batch
            window.backwards.append(_Backward(loss.detach(), behind, rows, batch, num_items, _place()))

    def backward_ended(self) -> None:
        """Notes some of the gradients."""
        if self._open is not None:
            self._open.gradients = GradientSample(self.model)

    def gradients_unscaled(self, inverse: torch.Tensor) -> None:
        """Notes what a GradScaler multiplies them by."""
        if self._open is not None and not self._open.unscaled:  # it is called for each device and dtype
            self._open.unscaled.append(inverse.detach().clone())

    def gradients_clipped(self, factor: torch.Tensor) -> None:
        """Notes what ``clip_grad_norm_`` multiplies them by."""
        if self._open is not None:
            self._open.clipped.append(factor.detach().clone())

    # ------------------------------------------------------------------ the optimizer's step
    def _concerns_model(self, optimizer: Optimizer) -> bool:
        return any(id(p) in self._own for group in optimizer.param_groups for p in group["params"])

    def _before_step(self, optimizer: Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not _has_closure(arguments, named):
            self._close(optimizer)

    def _close(self, optimizer: Optimizer) -> None:
        window = self._open
        if window is None or not window.backwards or is_probing() or not self._concerns_model(optimizer):
            return
        with contextlib.suppress(Exception):
            scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer unscales in its step
            if isinstance(scale, torch.Tensor):
                window.unscaled.append(scale.detach().double().reciprocal())
            fused = 1.0 if not isinstance(scale, torch.Tensor) else 1 / float(scale)
            with torch.no_grad():
                self.windows.append(_closed(self._steps, window, fused))
        self._end()

    def _after_step(self, optimizer: Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if is_probing() or not self._concerns_model(optimizer):
            return
        if _has_closure(arguments, named):  # whose gradients are there only now
            self._close(optimizer)
        self._steps += 1
        due = self._steps < FIRST or self._steps & (self._steps - 1) == 0
        if self._open is None and due and len(self.windows) < MOST:
            self._begin()


def _has_closure(arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether ``optimizer.step`` was given a function that computes the gradients; the first argument is the optimizer."""
    return any(map(callable, (*arguments[1:], *named.values())))


def _closed(step: int, window: _OpenWindow, fused: float) -> Window:
    """A window in plain numbers."""
    known: list[Any] = []
    backwards = []
    for b in window.backwards:
        terms = tuple(found.term() for found in b.losses)
        repeated = b.batch is not None and b.batch in known
        known.append(b.batch)
        backwards.append(Backward(float(b.value), terms, b.rows, repeated, b.num_items))
    change = None if window.gradients is None else window.gradients.factor()
    unscaled = float(window.unscaled[0]) if window.unscaled else 1.0
    clipped = None
    for factor in window.clipped:
        clipped = (1.0 if clipped is None else clipped) * float(factor)
    return Window(
        step,
        tuple(backwards),
        len({b.place for b in window.backwards}),
        unscaled,
        clipped,
        None if change is None else change * fused,
        window.disturbed,
        _micro_batches_cleared(window),
    )


def _micro_batches_cleared(window: _OpenWindow) -> int:
    """Of those whose gradients were cleared, how many were micro-batches like those that remained; 0 if any was something else."""
    rows = [rows for rows, _ in window.cleared] + [b.batch for b in window.backwards]
    places = {place for _, place in window.cleared} | {b.place for b in window.backwards}
    alike = len(places) == 1 and None not in rows and len(set(rows)) == len(rows)
    return len(window.cleared) if alike else 0


def _digest(tensor: torch.Tensor | None) -> Any:
    """What tells the rows of one batch from those of another."""
    if tensor is None or not tensor.numel():
        return None
    flat = tensor.detach().reshape(-1)
    some = flat[:: -(-flat.numel() // ELEMENTS)]
    found = of_bytes(some.double() if some.is_floating_point() else some, bytes)
    return None if found is None else (tuple(tensor.shape), found)


def _place() -> tuple[Any, ...]:
    """The lines of code that led here, without those of torch and our own."""
    frame: FrameType | None = sys._getframe(1)
    lines: list[Any] = []
    while frame is not None and len(lines) < FRAMES:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _NOT_THE_LOOPS:
            lines.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(lines)
