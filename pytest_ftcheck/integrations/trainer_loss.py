"""The loss that a ``transformers.Trainer`` makes of one batch: ``compute_loss``, called as in training."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..instruments.model_outputs import logits_in
from .trainer_bookkeeping import bookkeeping_kept


def is_trainer(value: Any) -> bool:
    """Whether it is a ``transformers.Trainer`` or derived from one (TRL's, sentence-transformers'). Imports nothing.

    >>> is_trainer(3)
    False
    """
    base = getattr(sys.modules.get("transformers.trainer"), "Trainer", None)
    return base is not None and isinstance(value, base)


def makes_own_loss(trainer: Any) -> bool:
    """Whether the trainer makes a loss other than the one in the model's output."""
    base = sys.modules["transformers.trainer"].Trainer
    overridden = getattr(trainer.compute_loss, "__func__", None) is not base.compute_loss
    return overridden or any(
        getattr(trainer, name, None) is not None for name in ("compute_loss_func", "label_smoother")
    )


class TrainerLoss:
    """``(model, batch) -> (loss, logits)``, or the loss alone: a trainer's own loss of a batch, as of an optimizer step of this one batch.

    What ``compute_loss`` writes into its trainer (counters, lists of metrics for the log) is put back.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._accepted = _accepted(trainer.compute_loss)

    def __call__(self, model: Any, batch: Any) -> Any:
        own = dict(batch) if isinstance(batch, Mapping) else batch  # compute_loss may take the labels out
        options = {"return_outputs": True, "num_items_in_batch": None}
        with bookkeeping_kept(self.trainer), self._context():
            options["num_items_in_batch"] = _items_in(self.trainer, own)
            found = self.trainer.compute_loss(model, own, **{k: v for k, v in options.items() if self._accepted(k)})
        loss, outputs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        if isinstance(loss, torch.Tensor) and loss.numel() > 1:
            loss = loss.mean()  # as in training_step: one loss a device
        logits = logits_in(outputs)
        return loss if logits is None else (loss, logits)

    def _context(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast, where the trainer asks for it itself; newer ones wrap the model's forward in it."""
        context = getattr(self.trainer, "compute_loss_context_manager", None)
        return context() if callable(context) else contextlib.nullcontext()


def _accepted(function: Callable[..., Any]) -> Callable[[str], bool]:
    parameters = inspect.signature(function).parameters
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return lambda name: any_keyword or name in parameters


def _items_in(trainer: Any, batch: Any) -> Any:
    """``num_items_in_batch`` of an optimizer step of this one batch; None: nothing is counted, or over several processes."""
    count = getattr(trainer, "get_batch_samples", None)
    if not callable(count) or getattr(trainer.args, "world_size", 1) > 1:
        return None
    device = {"device": trainer.args.device} if _accepted(count)("device") else {}
    return count(iter([batch]), 1, **device)[1]
