"""For a callback of a ``transformers.Trainer``: which trainer calls it, and whether the training has crashed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from ..instruments.undisturbed import is_probing
from .trainer_loss import is_trainer

#: What a training loop calls on its trainer: an epoch, as newer ones do; batches, a step, a log with evaluation and checkpoint.
_STEPS_OF_THE_LOOP = ("_run_epoch", "get_batch_samples", "training_step", "_maybe_log_save_evaluate", "evaluate")


def calling_trainer(callback: Any) -> Any:
    """The trainer in whose training this callback is called now; a Trainer does not pass itself to its callbacks.

    :raises RuntimeError: there is none among the callers.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner: Any = frame.f_locals.get("self")
        if is_trainer(owner) and any(c is callback for c in owner.callback_handler.callbacks):
            return owner
        frame = frame.f_back
    raise RuntimeError(
        f"{type(callback).__name__} is called by no transformers.Trainer that has it among its callbacks: "
        "add it with trainer.add_callback(...), or watch the loop with pytest_ftcheck.watch"
    )


class CrashGuard:
    """Says when a step of the trainer's loop raises: then no event of the end ever comes.

    The methods are wrapped on this one trainer, until :meth:`remove`. To be made when the trainer has just got its last callback.
    """

    def __init__(self, trainer: Any, crashed: Callable[[BaseException], None]) -> None:
        self._crashed = crashed
        self._wrapped: list[tuple[Any, str, Any]] = []
        handler = trainer.callback_handler
        owners = [(trainer, name) for name in _STEPS_OF_THE_LOOP] + [(handler, "call_event")]
        if not hasattr(trainer, "_run_epoch"):
            owners.append((trainer.optimizer, "step"))
        # the callbacks hear that training begins; the last one has yet to, from a call_event that is not wrapped
        owners.append((handler.callbacks[-1], "on_train_begin"))
        for owner, name in owners:
            method = getattr(owner, name, None)
            if callable(method):
                self._wrapped.append((owner, name, vars(owner).get(name)))
                setattr(owner, name, self._guarded(method))

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def guarded(*arguments: Any, **options: Any) -> Any:
            try:
                return method(*arguments, **options)
            except BaseException as error:
                if not is_probing():  # a probe that raises stops no training
                    self._crashed(error)
                raise

        return guarded

    def remove(self) -> None:
        """The methods are as before; may be called twice."""
        while self._wrapped:
            owner, name, own = self._wrapped.pop()
            if own is not None:
                setattr(owner, name, own)
            elif name in vars(owner):
                delattr(owner, name)
