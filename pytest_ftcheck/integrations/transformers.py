"""``transformers.Trainer`` and what is derived from it: TRL's trainers, sentence-transformers', the user's own subclass."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
from torch import nn

from ..core.formatting import text_of
from ..instruments.reader import LossFn
from .framework_loop import LoopListener, StartedLoop
from .loss_modules import with_loss_module
from .trainer_loss import TrainerLoss, makes_own_loss
from .training_rows import training_rows


class TrainerEvents:
    """What a Trainer's callback says to ``listener``: when the training begins, and when the last step was taken.

    The best weights are loaded before ``on_train_end``. So the last step is the one after which ``should_training_stop`` is set: by the
    trainer after ``max_steps``, or by another callback (early stopping after an evaluation).
    """

    trainer: Any = None
    listener: LoopListener | None = None
    _open = False

    def on_train_begin(
        self,
        args: Any,  # noqa: ARG002
        state: Any,  # noqa: ARG002
        control: Any,  # noqa: ARG002
        *,
        model: Any = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Model, optimizer, scheduler and loader exist; weights of a checkpoint to resume from are loaded."""
        if self.listener is not None:
            self._open = True
            self.listener.training_begins(started_loop(self.trainer, model, optimizer, lr_scheduler, train_dataloader))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """The last step, if training stops now."""
        if control.should_training_stop or 0 < state.max_steps <= state.global_step:
            self._end()

    on_epoch_end = on_evaluate = on_save = on_log = on_step_end

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """All is over."""
        self._end()

    def _end(self) -> None:
        if self.listener is not None and self._open:
            self._open = False
            self.listener.training_ends()


class TrainerAdapter:
    """A `FrameworkAdapter`: between ``attach`` and ``detach`` one callback more is in the trainer's list, the last one."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._callback: Any = None

    def attach(self, listener: LoopListener) -> None:
        """Notify this listener from now on."""
        self.detach()
        base = sys.modules["transformers.trainer_callback"].TrainerCallback
        self._callback = type("FtcheckEvents", (TrainerEvents, base), {})()
        self._callback.trainer, self._callback.listener = self.trainer, listener
        self.trainer.add_callback(self._callback)

    def detach(self) -> None:
        """The trainer's callbacks are as they were before."""
        callback, self._callback = self._callback, None
        if callback is not None:
            with contextlib.suppress(ValueError):  # the user's code may have taken it out
                self.trainer.remove_callback(callback)


# ------------------------------------------------------------------ what is trained, and on what
def started_loop(trainer: Any, model: nn.Module, optimizer: Any, scheduler: Any, loader: Any) -> StartedLoop:
    """What the trainer is about to train."""
    notes: list[str] = []
    batch, problem = _probe_batch(loader)
    loss_fn: LossFn | None = None
    if problem is not None:
        notes.append(f"nothing was measured on rows: {problem}")
    elif makes_own_loss(trainer):
        loss_fn = TrainerLoss(trainer)
        notes.append(f"the probe batch's loss is that of {type(trainer).__name__}.compute_loss")
    model, loss_fn = with_loss_module(trainer, model, loss_fn)
    return StartedLoop(
        model=model,
        optimizers=[optimizer] if isinstance(optimizer, torch.optim.Optimizer) else (),
        scheduler=scheduler,
        probe_batch=batch,
        loss_fn=loss_fn,
        notes=tuple(notes),
    )


def _probe_batch(loader: Any) -> tuple[Any, str | None]:
    """Rows of the train set as a batch; None, and why."""
    try:
        batch = training_rows(loader)
    except Exception as error:  # noqa: BLE001 - rows of the user's that do not fit into one batch are no reason not to train
        why = f"{type(error).__name__}: {text_of(error).strip()[:160]}"
        return None, f"rows from all over the train set do not make a batch ({why})"
    return batch, None if batch is not None else "the train set is a stream, and the training would miss the rows"
