"""Training with a checkpoint in between, beside the same training without: does it continue as if nothing had happened?"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ....instruments.batches import own_copy, rows_of, to_device
from ....instruments.environment import data_hash
from ....instruments.global_state import seed_everything
from ....instruments.model_outputs import as_loss
from ....instruments.optimizers import expects_metric
from ....instruments.probe import LeftOut, Probe, ProbeContext
from ....instruments.snapshots import LoaderSnapshot
from ...retraining.probe.rerun import Deadline, InitialState, OptimizerCopy, casting, clip, gradients_of
from ..record import Resume
from .checkpoint import CheckpointFailed, OwnCheckpoint, StateDicts
from .components import Components, copy_scheduler, random_states, set_random_states
from .module_state import ModuleState

#: Steps before the checkpoint and after it: two of each let momentum and a schedule show.
BEFORE, AFTER = 3, 3
#: Trainings, at most: twice without interruption, once resumed, and those that find the component.
TRAININGS = 12
#: Weights differ if they end so far apart, over the distance moved: float32 rounds at 1e-7, and a step may enlarge it.
APART = 1e-5
#: ... or so many times as far as two uninterrupted runs do.
REPEATS = 10.0


class ResumeProbe(Probe):
    """Trains, saves, loads and trains on, from the run's start."""

    name = "resume"
    order = 96
    default = False
    watchable = False

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        if not context.recipe_loop:
            raise LeftOut("the loop is your own, and only a loop of ours can be run again (leave step= out)")
        if context.recipe.autocast == "float16" and context.device.type == "cuda":
            raise LeftOut("runs under a GradScaler are not repeated: autocast='bfloat16' needs none")
        if context.steps < 2:
            raise LeftOut("a checkpoint needs a step before it and one after it: steps= is 1")
        self.after_steps = min(AFTER, context.steps // 2)
        self.before_steps = min(BEFORE, context.steps - self.after_steps)
        self.deadline = Deadline(context.recipe.max_seconds)
        self.batches: list[Any] = []
        #: The scheduler of the training at hand, and whether its step takes the loss.
        self.scheduler: Any = None
        self.takes_loss = False
        self.resume: Resume | None = None

    def cost(self) -> float:
        """Several short trainings."""
        return 3.0 * rows_of(self.context.fixed_batches[0]) * (self.before_steps + self.after_steps) * TRAININGS

    # ------------------------------------------------------------------ the run
    def before(self) -> None:
        """Keep the start: weights, buffers, attributes, optimizer and scheduler."""
        context = self.context
        self.start = InitialState(context.model)
        self.modules = ModuleState(context.model)
        self.optimizer = OptimizerCopy(context.optimizer, self.start.parameters)
        self.scheduler_at_start = None
        if context.scheduler is not None:
            try:
                self.scheduler_at_start = copy_scheduler(context.scheduler, context.optimizer, context.optimizer)
            except Exception as error:
                raise LeftOut(f"the scheduler cannot be copied ({type(error).__name__})") from error

    def iteration(self, number: int, batch: Any) -> None:
        """Keep the batch."""
        if number < self.before_steps + self.after_steps:
            self.batches.append(own_copy(batch))

    def after(self) -> None:
        """Train without interruption, twice; then with a checkpoint in between."""
        context = self.context
        if len(self.batches) < self.before_steps + self.after_steps:
            raise LeftOut("the run ended before the steps that are to be repeated")
        if not self.optimizer.same_groups(context.optimizer):
            raise LeftOut("the optimizer's tensors changed in the run, so it cannot be repeated")
        now = ModuleState(context.model)
        checkpoint = StateDicts() if context.checkpoint is None else OwnCheckpoint(context.checkpoint)
        try:
            with self.start.retraining(loads=True), torch.enable_grad():
                self.resume = self._measured(checkpoint)
        finally:
            now.put_back()
            if isinstance(checkpoint, OwnCheckpoint):
                checkpoint.close()
            self.batches = []

    def record(self) -> Resume | None:
        """What was measured."""
        return self.resume

    # ------------------------------------------------------------------ the comparison
    def _measured(self, checkpoint: StateDicts | OwnCheckpoint) -> Resume:
        same_batches, saves_position = self._position()
        self._fresh(self.context.recipe.seed)
        self._train(0, self.before_steps)
        saved = Components(self.context.model, self.optimizer.optimizer, self.scheduler)
        at_checkpoint = self._weights()
        try:
            checkpoint.save(self.context.model, self.optimizer.optimizer, self.scheduler)
        except CheckpointFailed as failed:
            return self._failed(failed, checkpoint)
        # saving may draw random numbers: it must not count as the interruption
        self.scheduler = saved.put_back(("random",), self.optimizer.optimizer, self.scheduler)
        losses = self._train(self.before_steps, self._end)
        straight = self._weights()
        moved = _distance(straight, at_checkpoint)
        self._fresh(self.context.recipe.seed)
        self._train(0, self._end)
        repeat = _over(_distance(self._weights(), straight), moved)
        limit = max(APART, REPEATS * repeat)
        try:
            resumed_losses, changed = self._resumed(checkpoint, saved, ())
        except CheckpointFailed as failed:
            return self._failed(failed, checkpoint)
        difference = _over(_distance(self._weights(), straight), moved)
        needed: tuple[str, ...] = ()
        explained = True
        if not difference <= limit:
            explained, needed = self._explained(checkpoint, saved, changed, straight, moved, limit)
        return Resume(
            steps_before=self.before_steps,
            steps_after=self.after_steps,
            losses=losses,
            resumed_losses=resumed_losses,
            difference=difference,
            repeat_difference=repeat,
            changed=changed,
            needed=needed,
            explained=explained,
            refused=tuple(checkpoint.refused),
            own_checkpoint=isinstance(checkpoint, OwnCheckpoint),
            same_batches=same_batches,
            saves_position=saves_position,
        )

    def _explained(
        self,
        checkpoint: StateDicts | OwnCheckpoint,
        saved: Components,
        changed: Sequence[str],
        straight: Sequence[torch.Tensor],
        moved: float,
        limit: float,
    ) -> tuple[bool, tuple[str, ...]]:
        """Whether the difference goes with all components put back by hand, and which of them it takes."""

        def goes(names: Sequence[str]) -> bool:
            self._resumed(checkpoint, saved, names)
            return _over(_distance(self._weights(), straight), moved) <= limit

        if not changed or not goes(changed):
            return False, ()
        alone = tuple(name for name in changed if not goes([n for n in changed if n != name]))
        return True, alone or tuple(changed)

    def _resumed(
        self, checkpoint: StateDicts | OwnCheckpoint, saved: Components, by_hand: Sequence[str]
    ) -> tuple[tuple[float, ...], tuple[str, ...]]:
        """Losses of a resumed training, and the components that loading did not bring back; these are put back first."""
        self._fresh(self.context.recipe.seed + 1)
        checkpoint.load(self.context.model, self.optimizer.optimizer, self.scheduler)
        changed = saved.changed(self.scheduler, self.optimizer.optimizer)
        self.scheduler = saved.put_back(by_hand, self.optimizer.optimizer, self.scheduler)
        return self._train(self.before_steps, self._end), changed

    def _failed(self, failed: CheckpointFailed, checkpoint: StateDicts | OwnCheckpoint) -> Resume:
        return Resume(
            self.before_steps,
            self.after_steps,
            (),
            (),
            math.nan,
            math.nan,
            raised=str(failed),
            raised_while=failed.doing,
            own_checkpoint=isinstance(checkpoint, OwnCheckpoint),
        )

    # ------------------------------------------------------------------ the training
    @property
    def _end(self) -> int:
        return self.before_steps + self.after_steps

    def _fresh(self, seed: int) -> None:
        """Everything as in a new process, before its first step."""
        self.start.restore()
        self.modules.put_back()
        self.optimizer.reset()
        self.scheduler = None
        if self.scheduler_at_start is not None:
            self.scheduler = copy_scheduler(self.scheduler_at_start, self.context.optimizer, self.optimizer.optimizer)
        self.takes_loss = self.scheduler is not None and expects_metric(self.scheduler)
        seed_everything(seed)

    def _train(self, first: int, last: int) -> tuple[float, ...]:
        """The losses of these steps."""
        context, parameters = self.context, self.start.parameters
        groups: list[dict[str, Any]] = [{} for _ in self.optimizer.optimizer.param_groups]
        losses: list[float] = []
        for number in range(first, last):
            self.deadline.check()
            batch = to_device(own_copy(self.batches[number]), context.device)
            found: list[float] = []

            def backward(batch: Any = batch, found: list[float] = found) -> torch.Tensor:
                with torch.enable_grad(), casting(context):
                    loss = as_loss(context.reader.training_loss(batch)[0])
                gradients = gradients_of(loss, parameters)
                if not self.optimizer.closure:  # as in our own loop
                    clip(gradients, context.recipe.max_grad_norm)
                for p, g in zip(parameters, gradients, strict=True):
                    p.grad = g
                found.append(float(loss.detach()))
                return loss.detach()

            with torch.enable_grad() if self.optimizer.closure else torch.no_grad():
                self.optimizer.step(groups, backward)
            losses += found[:1]
            if self.scheduler is not None:
                self.scheduler.step(*([found[-1]] if self.takes_loss else []))
        for p in parameters:
            p.grad = None
        return tuple(losses)

    def _weights(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.start.parameters]

    # ------------------------------------------------------------------ the data
    def _position(self) -> tuple[bool | None, bool]:
        """Whether a resumed loop that skips what it has seen gets the batches that the uninterrupted one gets."""
        source = self.context.batches.source
        if self.context.batches.list is not None:
            return None, False
        snapshot = LoaderSnapshot(source)
        first: Any = None
        saves = callable(getattr(source, "state_dict", None)) and callable(getattr(source, "load_state_dict", None))
        try:
            first = copy.deepcopy(source.state_dict()) if saves else None
            seed_everything(self.context.recipe.seed)
            iterator = _endless(source)
            for _ in range(self.before_steps):
                next(iterator)
            state = copy.deepcopy(source.state_dict()) if saves else None
            random = random_states()
            expected = [data_hash([next(iterator)]) for _ in range(self.after_steps)]
            snapshot.restore()
            set_random_states(random)
            if saves:
                source.load_state_dict(state)
            iterator = _endless(source)
            for _ in range(0 if saves else self.before_steps):
                next(iterator)
            return [data_hash([next(iterator)]) for _ in range(self.after_steps)] == expected, saves
        except Exception:  # noqa: BLE001 - fewer batches than steps, or a source that does anything
            return None, saves
        finally:
            if first is not None:
                source.load_state_dict(first)
            snapshot.restore()


def _endless(source: Any) -> Iterator[Any]:
    """The batches of a source, from its start again where it ends."""
    found = True
    while found:
        found = False
        for batch in source:
            found = True
            yield batch


def _distance(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    return math.sqrt(
        math.fsum(float((a.double() - b.double()).square().sum()) for a, b in zip(one, other, strict=True))
    )


def _over(distance: float, moved: float) -> float:
    return distance / moved if moved > 0 else 0.0 if distance == 0 else math.inf
