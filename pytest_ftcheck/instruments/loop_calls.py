"""One `TorchFunctionMode` that sees what a loop calls: ``backward()``, the losses of ``torch.nn.functional``, ``argmax`` and its like, a
GradScaler's unscaling and ``clip_grad_norm_``.

Whoever wants to know subscribes; nothing is patched, and every call is handed on. Calls that probes make are not the loop's.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

from .sharded_tensors import local
from .tensor_bytes import are_values
from .uncompiled import leave_uncompiled
from .undisturbed import is_probing, off_while_probing

#: Loss functions whose first argument stands for the outputs, and whose second for the labels.
LOSSES = {
    F.cross_entropy: "cross_entropy",
    F.nll_loss: "nll_loss",
    F.binary_cross_entropy: "binary_cross_entropy",
    F.binary_cross_entropy_with_logits: "binary_cross_entropy_with_logits",
    F.mse_loss: "mse_loss",
    F.l1_loss: "l1_loss",
    F.smooth_l1_loss: "smooth_l1_loss",
    F.huber_loss: "huber_loss",
    F.multi_margin_loss: "multi_margin_loss",
}
#: What ``GradScaler.unscale_`` and ``GradScaler.step`` call: (gradients, found_inf, inverse of the scale).
_UNSCALE: Any = torch._amp_foreach_non_finite_check_and_unscale_
#: Where ``clip_grad_norm_`` takes norms of gradients, and clamps its factor to 1.
_CLIPPING = torch.nn.utils.clip_grad.__name__
#: What chooses the largest of several outputs.
_CHOICES: set[Any] = {torch.argmax, torch.Tensor.argmax, torch.max, torch.Tensor.max, torch.topk, torch.Tensor.topk}
#: All that is looked at.
_NORMS: Any = torch._foreach_norm
_OBSERVED = {
    torch.Tensor.backward,
    torch.autograd.backward,
    torch.autograd.grad,
    torch.clamp,
    _NORMS,
    _UNSCALE,
    *LOSSES,
    *_CHOICES,
}


class LoopCallListener:
    """What a subscriber may override. It must be quick, and what it raises is dropped."""

    def backward_called(self, loss: torch.Tensor) -> None:
        """``loss.backward()`` or ``torch.autograd.backward(loss)`` is about to run; several losses come as their sum."""

    def gradient_taken(self) -> None:
        """``torch.autograd.grad`` is about to run: gradients of another way than ``backward()``."""

    def loss_called(self, function: str, loss: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """One of `LOSSES`, by its name, returned ``loss`` for these arguments; gradients were on."""

    def largest_chosen(self, given: torch.Tensor, chosen: torch.Tensor) -> None:
        """``argmax``, ``max`` or ``topk`` of ``given`` returned these indices."""

    def gradients_unscaled(self, inverse: torch.Tensor) -> None:
        """A GradScaler multiplies the gradients by ``inverse``, one over the factor that the loss was multiplied by."""

    def backward_ended(self) -> None:
        """``backward()`` has run: the gradients are there."""

    def gradients_measured(self, gradients: Sequence[torch.Tensor], norms: Sequence[torch.Tensor]) -> None:
        """``clip_grad_norm_`` took these L2 norms of these gradients, before it multiplies them by its factor."""

    def gradients_clipped(self, factor: torch.Tensor) -> None:
        """``clip_grad_norm_`` multiplies the gradients by ``factor``, 1 at most."""


class _Calls(TorchFunctionMode):
    """The mode, active while somebody listens."""

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[LoopCallListener] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hands every call on. Inside this function the mode is off."""
        if (
            func not in _OBSERVED
        ):  # hundreds of calls a step, reads of ``.grad`` above all: nothing else comes before them
            return func(*args) if kwargs is None else func(*args, **kwargs)
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling():
            return func(*args, **kwargs)  # in a compiled graph nothing is observed, and nothing of ours is in it
        if not are_values():
            return func(*args, **kwargs)  # inside a transform of torch.func there is nothing to be read
        backward = func is torch.Tensor.backward or func is torch.autograd.backward
        if backward:
            if not is_probing() and (loss := _backpropagated(args, kwargs)) is not None:
                self._tell("backward_called", loss)
        elif func is torch.autograd.grad and not is_probing():
            self._tell("gradient_taken")
        elif func is _UNSCALE and not is_probing():
            self._tell("gradients_unscaled", args[2])
        out = func(*args, **kwargs)
        if func in LOSSES and torch.is_grad_enabled() and not is_probing():
            self._tell("loss_called", LOSSES[func], out, args, kwargs)
        elif backward and not is_probing():
            self._tell("backward_ended")
        elif func in _CHOICES and not is_probing() and (chosen := _indices(out)) is not None:
            self._tell("largest_chosen", args[0], chosen)
        elif func is torch.clamp and _is_clipping(sys._getframe(1)) and not is_probing():
            self._tell("gradients_clipped", local(out))
        elif (
            func is _NORMS
            and _is_clipping(sys._getframe(1))
            and not is_probing()
            and [*args[1:], *kwargs.values()] == [2.0]
        ):
            self._tell("gradients_measured", args[0], out)
        return out

    def _tell(self, what: str, *arguments: Any) -> None:
        for listener in tuple(self.listeners):
            with contextlib.suppress(Exception):
                getattr(listener, what)(*arguments)


def _is_clipping(caller: FrameType) -> bool:
    return caller.f_globals.get("__name__") == _CLIPPING


leave_uncompiled(_Calls.__torch_function__)
_calls: _Calls | None = None
_paused = False


def subscribe(listener: LoopCallListener) -> None:
    """Tell this listener from now on."""
    global _calls
    if _calls is None:
        _calls = _Calls()
        _calls.__enter__()  # type: ignore[no-untyped-call]
    if not any(listener is other for other in _calls.listeners):
        _calls.listeners.append(listener)


def unsubscribe(listener: LoopCallListener) -> None:
    """Tell this listener no more; may be called at any time. With the last listener the mode goes."""
    global _calls
    if _calls is None:
        return
    resume()  # a step that raised
    _calls.listeners = [other for other in _calls.listeners if other is not listener]
    if not _calls.listeners:
        mode, _calls = _calls, None
        _leave(mode)


def pause() -> None:
    """See nothing until `resume`: an optimizer's step without a closure has thousands of calls, and none that anybody asked for."""
    global _paused
    length = torch._C._len_torch_function_stack()
    if not _paused and length and torch._C._get_function_stack_at(length - 1) is _calls:
        _pop_mode()  # type: ignore[no-untyped-call]
        _paused = True


def resume() -> None:
    """See again; may be called at any time."""
    global _paused
    if _paused and _calls is not None:
        _push_mode(_calls)  # type: ignore[no-untyped-call]
    _paused = False


@contextlib.contextmanager
def unobserved() -> Iterator[None]:
    """Inside, nothing is seen, as in what our own loop does besides: while it is, python is called at each attribute of a tensor."""
    pause()
    try:
        yield
    finally:
        resume()


class FunctionModes:
    """The modes of functions that are active in this thread, and who listens to ours, as they are now."""

    def __init__(self) -> None:
        self.modes = self._active()
        self.calls, self.paused = _calls, _paused
        self.listeners = [] if _calls is None else list(_calls.listeners)

    @staticmethod
    def _active() -> list[TorchFunctionMode]:
        return [torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack())]

    def restore(self) -> None:
        """The same ones in the same order."""
        global _calls, _paused
        _close_what_is_open()
        _calls, _paused = self.calls, self.paused
        if _calls is not None:
            _calls.listeners = list(self.listeners)
        now = self._active()
        if len(now) != len(self.modes) or any(a is not b for a, b in zip(now, self.modes, strict=True)):
            while torch._C._len_torch_function_stack():
                _pop_mode()  # type: ignore[no-untyped-call]
            for mode in self.modes:
                _push_mode(mode)  # type: ignore[no-untyped-call]


def _off() -> Callable[[], None]:
    """Pause; resume is for whoever paused."""
    if _calls is None or _paused:
        return lambda: None
    pause()
    return resume if _paused else lambda: None


off_while_probing(_off)


def _leave(mode: TorchFunctionMode) -> None:
    """Take a mode off torch's stack, also from below modes that were entered later and are still on."""
    _close_what_is_open()
    above = []
    try:
        while torch._C._len_torch_function_stack():
            top = _pop_mode()  # type: ignore[no-untyped-call]
            if top is mode:
                return
            above.append(top)
    finally:
        for other in reversed(above):
            _push_mode(other)  # type: ignore[no-untyped-call]


def _close_what_is_open() -> None:
    """Ends what an interrupt has left half done in torch's own code, while the exception is on its way.

    torch takes the mode off for each call that a mode sees, by a generator in a ``with``. An interrupt right behind its first half leaves
    it waiting, and it would put the mode back as soon as the traceback is freed: after all has been restored. So the frames of that
    ``with`` are cleared, which ends it now; no frame of the user's is touched.
    """
    error, seen = sys.exc_info()[1], set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        step = error.__traceback__
        while step is not None:
            if step.tb_frame.f_globals.get("__name__") in ("torch.overrides", "contextlib"):
                with contextlib.suppress(RuntimeError):  # it still runs
                    step.tb_frame.clear()
            step = step.tb_next
        error = error.__context__


def _indices(out: Any) -> torch.Tensor | None:
    """What ``argmax`` returned, or the indices of ``max`` and ``topk``; None: there are none."""
    found = getattr(out, "indices", None) if isinstance(out, tuple) else out
    return found if isinstance(found, torch.Tensor) and found.dtype is torch.int64 else None


def _backpropagated(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The tensor that a call of ``backward`` is about."""
    given = args[0] if args else kwargs.get("tensors")
    gradient = args[1] if len(args) > 1 else kwargs.get("gradient", kwargs.get("grad_tensors"))
    if isinstance(given, torch.Tensor):
        return (given * gradient).sum() if isinstance(gradient, torch.Tensor) else given
    tensors = [t for t in given or () if isinstance(t, torch.Tensor)]
    if len(tensors) > 1 and all(t.numel() == 1 for t in tensors):
        return torch.stack([t.reshape(()) for t in tensors]).sum()
    return tensors[0] if tensors else None
