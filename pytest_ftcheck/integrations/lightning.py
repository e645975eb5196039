"""Lightning's loop: a callback says when it begins and ends, and ``training_step`` is the loss."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..core.formatting import describe_type, text_of
from ..instruments.batches import own_copy
from ..instruments.undisturbed import quiet, undisturbed
from .framework_loop import LoopListener, StartedLoop
from .training_rows import training_rows
from .training_step import TrainingStep

#: Lightning under its two names; neither is imported here.
PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def package_of(trainer: Any) -> str | None:
    """The package that this object is a ``Trainer`` of; None: it is none of Lightning's.

    >>> package_of(object()) is None
    True
    """
    for name in PACKAGES:
        package = sys.modules.get(name)
        if package is not None and isinstance(trainer, package.Trainer):
            return name
    return None


class LightningHooks:
    """The hooks of a Lightning callback that say to ``listener`` when the training begins and ends."""

    listener: LoopListener | None = None
    #: The module that is to be trained; None: any.
    module: Any = None
    _begun = _ended = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """The first batch is there; in later ones nothing is done."""
        if self.listener is not None and not self._begun:
            if self.module is not None and self.module is not pl_module:
                raise ValueError(
                    f"module is another {type(self.module).__name__} than the {type(pl_module).__name__} that fit() trains: "
                    "pass the same one to both"
                )
            self._begun = True
            self.listener.training_begins(started_loop(trainer, pl_module, batch))

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """The epoch in which averaged weights get their batch statistics is no training."""
        if any(_averages_now(callback, trainer.current_epoch) for callback in trainer.callbacks):
            self._end()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """The last step was taken; callbacks that load other weights come later."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """The training, or a validation during it, raised."""
        self._end(exception)

    def _end(self, error: BaseException | None = None) -> None:
        if self.listener is not None and self._begun and not self._ended:
            self._ended = True
            self.listener.training_ends(error)


def _averages_now(callback: Any, epoch: int) -> bool:
    """Whether ``StochasticWeightAveraging`` puts the average into the model at the start of this epoch, which trains no more."""
    swa = any(c.__name__ == "StochasticWeightAveraging" for c in type(callback).__mro__)
    return swa and getattr(callback, "_max_epochs", -1) != -1 and epoch == callback.swa_end + 1


class LightningAdapter:
    """A ``Trainer``: its loop is watched between ``attach`` and ``detach``, by a callback in front of all others.

    :param module: the module that ``fit`` gets; None: any.
    :raises TypeError: no ``Trainer`` of Lightning's, or no ``LightningModule``.
    """

    def __init__(self, trainer: Any, *, module: Any = None) -> None:
        package = package_of(trainer)
        if package is None:
            raise TypeError(f"trainer is {describe_type(trainer)}: expected a lightning.Trainer")
        if module is not None and not isinstance(module, sys.modules[package].LightningModule):
            raise TypeError(
                f"module is {describe_type(module)}: expected the {package}.LightningModule that fit() gets"
            )
        self.trainer, self.package, self.module = trainer, package, module
        self._callback: Any = None
        self._before: list[Any] = []

    def attach(self, listener: LoopListener) -> None:
        """Tell this listener from now on."""
        self.detach()
        base = sys.modules[self.package].Callback
        self._callback = type("FtcheckLoop", (LightningHooks, base), {})()
        self._callback.listener, self._callback.module = listener, self.module
        self._before = self.trainer.callbacks
        # another list: Lightning may be in a loop over the one that there is
        self.trainer.callbacks = [self._callback, *self._before]

    def detach(self) -> None:
        """The trainer's callbacks are as they were before."""
        own, self._callback = self._callback, None
        if own is not None:
            left = [c for c in self.trainer.callbacks if c is not own]
            same = len(left) == len(self._before) and all(a is b for a, b in zip(left, self._before, strict=True))
            self.trainer.callbacks = self._before if same else left


# ------------------------------------------------------------------ what is trained, and on what
def started_loop(trainer: Any, module: nn.Module, batch: Any) -> StartedLoop:
    """The loop that is about to train on this batch, its first."""
    notes: list[str] = []
    step = TrainingStep(trainer, package_of(trainer) or PACKAGES[0])
    probe = _probe_batch(trainer, module, batch)
    problem = _problem(step, module, probe)
    if problem is not None and probe is not batch:
        probe = batch
        problem = _problem(step, module, probe)
    if problem is not None:
        notes.append(f"training_step cannot be called besides the training ({problem}): nothing was measured on rows")
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return StartedLoop(
        model=module,
        optimizers=list(trainer.optimizers),
        scheduler=schedulers[0] if len(schedulers) == 1 else None,
        probe_batch=own_copy(probe) if problem is None else None,
        loss_fn=step if problem is None else None,
        notes=tuple(notes),
    )


def _problem(step: TrainingStep, module: nn.Module, batch: Any) -> str | None:
    """Why the loss of this batch cannot be measured; None: it can."""
    with quiet(module, weights=True):
        try:
            step(module, own_copy(batch))
        except Exception as error:  # noqa: BLE001 - the user's code, called out of turn, may raise anything
            return f"{type(error).__name__}: {text_of(error).strip()[:160]}"
    return None


def _probe_batch(trainer: Any, module: Any, batch: Any) -> Any:
    """Rows from all over the training set, brought to the device by the module's own hooks; else the first batch."""
    loader = trainer.train_dataloader
    with undisturbed(module, weights=True), contextlib.suppress(Exception):
        rows = training_rows(loader, within=_rows_per_epoch(trainer, loader))
        if rows is not None:
            rows = trainer.precision_plugin.convert_input(rows)
            rows = module._on_before_batch_transfer(rows, dataloader_idx=0)
            return trainer.strategy.batch_to_device(rows, dataloader_idx=0)
    return batch


def _rows_per_epoch(trainer: Any, loader: Any) -> int | None:
    """Rows that an epoch reads; None: all, as far as is known."""
    sampler: Sequence[Any] | Any = getattr(loader, "batch_sampler", None)
    batches, size = trainer.num_training_batches, getattr(sampler, "batch_size", None)
    return int(batches) * size if isinstance(batches, int) and isinstance(size, int) else None
