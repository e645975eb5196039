"""A short run of a ``transformers.Trainer``: stopped early, silent, nothing saved, and everything as before afterwards."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..core.recipe import Recipe
from ..instruments.kept_attributes import ObjectAttributes
from ..instruments.optimizers import held_optimizers
from ..instruments.snapshots import LoaderSnapshot, ModelSnapshot, OptimizerSnapshot, SchedulerSnapshot
from ..instruments.undo import Undo

#: Callbacks from these modules report to trackers, draw progress bars, or save on signals: a short run does none of it.
_REPORTING = ("transformers.integrations", "transformers.utils.notebook", "transformers.trainer_jit_checkpoint")
#: Names of the Trainer's own callbacks that print.
_PRINTING = ("ProgressCallback", "PrinterCallback")
#: Classes of accelerate that are one object in the whole process.
_SHARED = ("PartialState", "AcceleratorState", "GradientState")


class ProcessState:
    """What making a Trainer changes in the process: environment variables, accelerate's shared state, the log level of transformers."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._level = getattr(_logging(), "get_verbosity", lambda: None)()
        self._shared = {name: copy.copy(state) for name in _SHARED if (state := _shared_state(name)) is not None}

    def restore(self) -> None:
        """Everything as it was when this was made."""
        for name in set(os.environ) - set(self._environment):
            del os.environ[name]
        os.environ.update(self._environment)
        for name in _SHARED:
            state, was = _shared_state(name), self._shared.get(name, {})
            if state is not None and state != was:
                state.clear()
                state.update(was)
        if self._level is not None:
            _logging().set_verbosity(self._level)


def _logging() -> Any:
    return sys.modules.get("transformers.utils.logging")


def _shared_state(name: str) -> Any:
    return getattr(getattr(sys.modules.get("accelerate.state"), name, None), "_shared_state", None)


class ShortRun:
    """One run of a trainer that ends after so many optimizer steps, if it does not end before.

    The schedule is that of the whole training: it is not told of the early end. Evaluation and checkpoints are left out.
    """

    def __init__(self, trainer: Any, recipe: Recipe, undo: Undo, progress: Callable[[int], None]) -> None:
        self.trainer, self._undo = trainer, undo
        base = sys.modules["transformers.trainer_callback"].TrainerCallback
        #: The callback that ends the training.
        self.stop: StopAfter = type("FtcheckStop", (StopAfter, base), {})(recipe.steps, recipe.max_seconds, progress)
        self._keep()
        trainer.args = _quiet_arguments(trainer.args, recipe.seed)
        handler = trainer.callback_handler
        handler.callbacks = [c for c in handler.callbacks if not _reports(c)]
        trainer.add_callback(self.stop)

    def _keep(self) -> None:
        """Snapshots of the trainer and of all that its training changes."""
        trainer, undo = self.trainer, self._undo
        for model in _modules(trainer):
            undo.keep(ModelSnapshot(model))
        if isinstance(trainer.optimizer, torch.optim.Optimizer):
            for each in held_optimizers(trainer.optimizer):
                undo.keep(OptimizerSnapshot(each))
        if trainer.lr_scheduler is not None:
            undo.keep(SchedulerSnapshot(trainer.lr_scheduler))
        handler = trainer.callback_handler
        owners = [trainer, handler, trainer.accelerator, trainer.state, trainer.control, *handler.callbacks]
        owners += [trainer.train_dataset, trainer.eval_dataset, trainer.data_collator]
        for owner in owners:
            if hasattr(owner, "__dict__"):
                undo.keep(ObjectAttributes(owner))
        undo.keep(LoaderSnapshot(trainer.train_dataset))


class StopAfter:
    """The callback that ends the training, and lets nothing be saved or evaluated."""

    def __init__(self, steps: int, max_seconds: float | None, progress: Callable[[int], None]) -> None:
        self._steps, self._max_seconds, self._began = steps, max_seconds, time.perf_counter()
        self._progress = progress
        #: Why training ended early, in words; None: after the number of steps asked for, or by itself.
        self.reason: str | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One more step was taken."""
        self.on_epoch_end(args, state, control)
        self._progress(state.global_step)
        if state.global_step >= self._steps:
            control.should_training_stop = True
        elif self._max_seconds is not None and time.perf_counter() - self._began > self._max_seconds:
            self.reason = f"max_seconds={self._max_seconds:g} reached after {state.global_step} of {self._steps} steps"
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """What the callbacks before this one asked for."""
        control.should_save = control.should_evaluate = False


def _modules(trainer: Any) -> list[nn.Module]:
    """The model, and other modules that the trainer holds (a loss with parameters), each once. Not a model that ``train`` makes anew."""
    found = {id(v): v for v in vars(trainer).values() if isinstance(v, nn.Module)}
    if trainer.model_init is not None:
        found.pop(id(trainer.model), None)
    inner = {id(m) for v in found.values() for m in v.modules() if m is not v}
    return [v for key, v in found.items() if key not in inner]


def _quiet_arguments(args: Any, seed: int) -> Any:
    """A copy of the training arguments with the run's seed. The callbacks' conditions (early stopping needs evaluation) still hold."""
    quiet = copy.copy(args)
    for name, value in {"seed": seed, "eval_on_start": False, "push_to_hub": False}.items():
        if hasattr(quiet, name):
            object.__setattr__(quiet, name, value)
    return quiet


def _reports(callback: Any) -> bool:
    """Whether a callback reports, prints, or saves by itself, by where its class comes from."""
    for kind in type(callback).__mro__:
        if kind.__module__.startswith(_REPORTING):
            return True
        if kind.__module__ == "transformers.trainer_callback" and kind.__name__ in _PRINTING:
            return True
    return False
