"""One fine-tune by a ``transformers.Trainer`` that a factory makes: stopped early, and undone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from ..core import events
from ..core.formatting import as_given, describe_type
from ..core.recipe import Recipe
from ..core.trace import Trace
from ..instruments.global_state import seed_everything
from ..instruments.undo import Undo
from ..integrations.framework_loop import StartedLoop
from ..integrations.trainer_loss import is_trainer
from ..integrations.trainer_run import ShortRun
from ..integrations.transformers import TrainerAdapter
from .finetune_arguments import OwnArguments
from .run import limit_threads
from .started_loop import watch_started
from .watched_loop import WatchedLoop

#: What ``finetune`` takes besides a factory of a Trainer, which decides all the rest.
TAKEN = ("steps", "seed", "threads", "max_seconds", "head", "intent", "probes")


def check_arguments(factory: Any, recipe: Recipe, given: dict[str, Any]) -> None:
    """What `finetune` was given without batches: a factory, and nothing that its Trainer decides.

    :param recipe: that of the call.  :param given: its other arguments by name.
    :raises TypeError: not a factory.  :raises ValueError: an argument that makes no sense.
    """
    if is_trainer(factory):
        raise TypeError(
            f"model is a {type(factory).__name__}: expected a function without arguments that makes one, for each run starts anew: "
            "finetune(make_trainer, steps=40); a Trainer that exists is watched: with watch(trainer): trainer.train()"
        )
    if isinstance(factory, nn.Module):
        raise TypeError("batches is missing: without it, model is a function without arguments that makes a Trainer")
    if not callable(factory):
        raise TypeError(
            f"model is {describe_type(factory)}, and batches is missing: expected a function without arguments that makes a Trainer"
        )
    for name, value in given.items():
        if name not in TAKEN and value is not None:
            raise ValueError(
                f"{name}={as_given(value)} is given without batches: the Trainer that the factory makes decides it; "
                f"besides a factory of a Trainer finetune takes {', '.join(TAKEN)}, seeds"
            )
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        if field.name not in TAKEN and value != field.default:
            raise ValueError(
                f"recipe: {field.name}={as_given(value)} is given without batches: the Trainer that the factory makes decides it"
            )


class TrainerRun:
    """One run of the Trainer that a factory makes."""

    def __init__(self, factory: Callable[[], Any], recipe: Recipe, own: OwnArguments, undo: Undo) -> None:
        self._began = time.perf_counter()
        self._recipe, self._own, self._undo = recipe, own, undo
        self._listener = events.current()
        self._loop: WatchedLoop | None = None
        #: The batch that the probes were taken on.
        self.known: list[Any] = []
        #: There are no rows for metrics of the user's.
        self.evaluation_rows: list[Any] = []
        #: The trainer ends by itself after so many steps.
        self.steps_of_its_own = 0
        self._trainer = factory()
        if not is_trainer(self._trainer):
            raise TypeError(
                f"the factory returned {describe_type(self._trainer)}, and batches is missing: expected a transformers.Trainer; "
                "a model needs batches: finetune(make_model, batches)"
            )
        self._short = ShortRun(self._trainer, recipe, undo, self._progress)

    def run(self) -> Trace:
        """Train, measure, and return the trace; an exception carries the partial trace as its attribute ``ftcheck_trace``."""
        adapter = TrainerAdapter(self._trainer)
        seed_everything(self._recipe.seed)  # a Trainer's constructor seeds with its own arguments' seed
        with events.listening(None):
            try:
                adapter.attach(self)
                self._trainer.train()
                self.training_ends()
            except BaseException as error:
                self.training_ends(error)
                raise
            finally:
                adapter.detach()
                if self._listener:
                    self._listener.progress(self._recipe.steps, self._recipe.steps, None)
        if self._loop is None:
            raise ValueError(f"{type(self._trainer).__name__}.train() began no training: there is nothing to judge")
        trace = self._loop.trace
        return dataclasses.replace(
            trace,
            source="finetune",
            recipe=self._recipe,
            own_arguments=(
                "trainer",
                *(name for name in ("head", "intent", "probes") if self._own.get(name) is not None),
            ),
            stopped=self._short.stop.reason or trace.stopped,
            seconds=time.perf_counter() - self._began,
        )

    # ------------------------------------------------------------------ what the adapter says
    def training_begins(self, loop: StartedLoop) -> None:
        """The trainer's model, optimizer and data exist."""
        if self._loop is not None:
            return
        limit_threads(loop.model, self._recipe)
        self.known = [] if loop.probe_batch is None else [loop.probe_batch]
        self.steps_of_its_own = self._trainer.state.max_steps
        declared: dict[str, Any] = {name: self._own.get(name) for name in ("head", "intent", "probes")}
        self._loop = watch_started(loop, **declared)
        self._loop.begin()

    def training_ends(self, error: BaseException | None = None) -> None:
        """The last step was taken."""
        if self._loop is not None:
            self._loop.end(error)

    def _progress(self, done: int) -> None:
        if self._listener and done < self._recipe.steps:
            self._listener.progress(done, self._recipe.steps, None)
