"""A Lightning module's ``training_step`` as a loss of a batch: nothing is logged, no optimizer steps, no gradient is left."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

from ..core.formatting import describe_type
from ..instruments.kept_attributes import ObjectAttributes
from .outermost_calls import OutermostCalls


class TrainingStep:
    """``(module, batch) -> loss``, or ``(loss, logits)``: what ``training_step`` computes of a batch.

    With automatic optimization the loss is what it returns, with manual optimization the one that it calls ``backward()`` on. The logits
    are the output of the module that it calls last; a module that it calls twice (two views of a row, two texts of a pair) returns
    embeddings, so there are none. To be called inside `quiet`, which restores modes, buffers, gradients and random states.

    :raises ValueError: there is not one loss: ``training_step`` returns none, or calls ``backward()`` several times.
    :raises RuntimeError: it steps an optimizer that it did not get from ``self.optimizers()``.
    """

    def __init__(self, trainer: Any, package: str) -> None:
        self.trainer, self.package = trainer, package

    def __call__(self, module: Any, batch: Any) -> Any:
        calls = OutermostCalls(module)
        manual = None if module.automatic_optimization else Backwards(module)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_no_step())
            stack.enter_context(self._silent(module))
            if manual is not None:
                stack.enter_context(manual)
            stack.enter_context(calls)
            stack.enter_context(self.trainer.precision_plugin.train_step_context())
            returned = module.training_step(*_arguments(module.training_step, batch))
        loss = _returned_loss(returned) if manual is None else manual.loss()
        logits = calls.logits()
        return loss if logits is None else (loss, logits)

    @contextlib.contextmanager
    def _silent(self, module: Any) -> Iterator[None]:
        """``log``, ``log_dict`` and ``print`` do nothing, the loggers are Lightning's own dummies; what the module keeps is put back."""
        dummy = importlib.import_module(f"{self.package}.loggers.logger").DummyLogger
        loggers = self.trainer.loggers
        kept = ObjectAttributes(module)
        vars(module).update(log=_nothing, log_dict=_nothing, print=_nothing)
        self.trainer.loggers = [dummy() for _ in loggers]
        try:
            yield
        finally:
            self.trainer.loggers = loggers
            kept.restore()


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a method that would log."""


def _arguments(step: Callable[..., Any], batch: Any) -> tuple[Any, ...]:
    """As Lightning calls it: with the batch alone, or with the number of the batch."""
    parameters = list(inspect.signature(step).parameters.values())
    if any(p.name == "dataloader_iter" for p in parameters):
        raise ValueError("training_step takes a dataloader_iter: it reads its batches itself")
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters) or len(parameters) > 1
    return (batch, 0) if several else (batch,)


def _returned_loss(returned: Any) -> Any:
    loss = returned.get("loss") if isinstance(returned, Mapping) else returned
    if loss is None:
        raise ValueError(f"training_step returned {describe_type(returned)}: there is no loss in it")
    return loss


@contextlib.contextmanager
def _no_step() -> Iterator[None]:
    """An optimizer that steps inside raises before it changes anything."""

    def refuse(*_: Any) -> None:
        raise RuntimeError("training_step steps an optimizer that it did not get from self.optimizers()")

    handle = register_optimizer_step_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


# ------------------------------------------------------------------ manual optimization
class Backwards(TorchFunctionMode):
    """Notes what ``backward()`` is called on, and calls it not; optimizers and schedulers are stand-ins, and gradients are None.

    The methods that it puts into the module are taken out by `TrainingStep`.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        self.losses: list[torch.Tensor] = []

    def __enter__(self) -> Backwards:
        module = self.module
        optimizers, schedulers = module.optimizers, module.lr_schedulers
        for p in module.parameters():
            p.grad = None
        vars(module).update(
            manual_backward=self._note,
            clip_gradients=_nothing,
            optimizers=lambda *a, **k: _stand_in(optimizers(*a, **k)),
            lr_schedulers=lambda: _stand_in(schedulers()),
        )
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hands every call on but that of ``backward()``."""
        if func is torch.Tensor.backward:
            return self._note(args[0])
        return func(*args, **(kwargs or {}))

    def _note(self, loss: torch.Tensor, *_: Any, **__: Any) -> None:
        self.losses.append(loss)

    def loss(self) -> torch.Tensor:
        """The one loss."""
        if len(self.losses) != 1:
            times = f"{len(self.losses)} times" if self.losses else "never"
            raise ValueError(f"training_step calls backward() {times}: there is not one loss")
        return self.losses[0]


class StandIn:
    """An optimizer or a scheduler to read from; its steps do nothing but call the closure."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def step(self, closure: Any = None, *_: Any, **__: Any) -> Any:
        """No step is taken."""
        return closure() if callable(closure) else None

    def zero_grad(self, *_: Any, **__: Any) -> None:
        """There are no gradients."""

    @contextlib.contextmanager
    def toggle_model(self, **_: Any) -> Iterator[None]:
        """``requires_grad`` stays as it is."""
        yield


def _stand_in(original: Any) -> Any:
    if isinstance(original, (list, tuple)):
        return [StandIn(o) for o in original]
    return None if original is None else StandIn(original)
