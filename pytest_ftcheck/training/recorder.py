"""Records every optimizer step on a model: gradients, updates, displacements, learning rates.

Attached to torch's global step hooks, so that it notices every optimizer that steps on the model's parameters. Gradients are read in
the hook after the step, because with a closure there are none before it. Nothing is patched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..core.observations import Iteration, Step
from ..instruments import loop_calls
from ..instruments.optimizers import OptimizerReplacements, SchedulerOrder, lr_of
from ..instruments.sampled_elements import LARGE_BASE, SAMPLE_HEAD, SampledElements, sample_size
from ..instruments.sharded_tensors import value_here
from ..instruments.tensor_statistics import plain, short
from ..instruments.uncompiled import between_graphs
from .clipped_norms import ClippedNorms
from .external_writes import ExternalWrites
from .gradient_norms import read_norms
from .gradient_statistics import NO_GRADIENT, NOT_CONCERNED, GradientStatistics
from .moving_averages import MovingAverages
from .recorded_fields import GroupRates, optimizer_record, tensor_records
from .sampled_histograms import histograms_of
from .watched_optimizers import WatchedOptimizers
from .watched_parameters import WatchedBuffers, watch_parameters
from .weight_decay import WeightDecay

#: Per-tensor series keep at most this many steps; beyond that every second one is dropped, again and again.
SERIES = 1024
#: After this many steps or iterations, numbers that are still tensors become plain numbers: small tensors take more memory.
CONVERTED_AT_ONCE = 64
#: From one step with histograms to the next the number of the step grows by this factor; of more than so many tensors by the other, for
#: 5,000 tensors took two training steps for those of 20 steps.
GROWTH, MANY_TENSORS, GROWTH_OF_MANY = 1.5, 1_000, 4.0


@dataclass
class _Iteration:
    loss: float | torch.Tensor | None = None
    step: int | None = None
    steps: int = 0
    training: bool = True
    backward_error: str | None = None


@dataclass
class _Step:
    iteration: int | None
    lrs: tuple[float, ...]
    norm: float | torch.Tensor
    unclipped: float | torch.Tensor | None
    training: bool
    by_watched_optimizer: bool


class Recorder:
    """Records every optimizer step on a model's parameters between :meth:`attach` and :meth:`detach`.

    The cost of a step does not depend on how many were recorded; no copy of the model is made.

    :param optimizers: those that train the model; empty: adopted when they first step, see `WatchedOptimizers`.
    """

    def __init__(
        self, model: nn.Module, optimizers: Sequence[TorchOptimizer], head: Sequence[str], scheduler: Any = None
    ) -> None:
        self.model, self.head = model, tuple(head)
        self.iterations: list[_Iteration] = []
        self.steps: list[_Step] = []
        #: Norm of all gradients before clipping, where we clip; taken in by the next step.
        self.unclipped: float | torch.Tensor | None = None
        #: Called before a step whose optimizer divides the gradients by a GradScaler's factor itself, with the factor.
        self.scaled_step: Callable[[torch.Tensor], None] = lambda _: None
        self._watched = watch_parameters(model, self.head)
        self._live = [w for w in self._watched if w.slot is not None]
        #: What the loop's own clipping says of large gradients, where there are any; to be subscribed to the loop's calls.
        self.clipped_norms = ClippedNorms(LARGE_BASE) if any(w.stride > 1 for w in self._live) else None
        sizes = [sample_size(w.parameter.shape, w.part, w.role) for w in self._live]
        self._sampled = SampledElements([w.parameter for w in self._live], sizes)
        for w in self._live:
            if w.part == "head" and w.values.numel() > SAMPLE_HEAD:
                w.initial = w.values.clone()
        t = self._sampled
        # flat vectors of the sampled elements: before the run, before and after a step, and sums over all steps
        self._start = t.values(t.zeros())
        self._before, self._after = t.zeros(), self._start.clone()
        self._grads, self._had_gradient = t.zeros(), t.zeros(torch.bool)
        self._incomplete: list[int] = list(range(len(self._live)))  # places: some sampled element had no gradient yet
        self._by_gradient, self._by_decay = t.zeros(), t.zeros()
        self._gradients = GradientStatistics(len(self._live), t.device)
        self._max_update = torch.zeros(len(self._live), dtype=torch.float32, device=t.device)
        self._writes = ExternalWrites(t)
        self._averages = MovingAverages(t, self._live)
        self._decay = WeightDecay(t, self._live)
        self._rows: list[torch.Tensor] = []  # one a recorded step: norms of gradient, update and displacement
        self._recorded: list[int] = []
        self._every = 1
        self._rates: dict[tuple[int, int], GroupRates] = {}  # by place of the optimizer and index of the group
        self._by_id = {id(w.parameter): w for w in self._watched}
        self.optimizers = WatchedOptimizers(optimizers, self._by_id.keys())
        self._in_other_optimizers: set[int] = set()  # ids of tensors that other optimizers held at their steps
        self._other_steps = 0
        self._replacements = OptimizerReplacements()
        self._scheduler = SchedulerOrder(scheduler)
        self._inside_step = False
        self._iterations_before_step = 0
        self._next_histogram = 0
        self._converted = 0
        self._handles: list[Any] = []
        self._buffers = WatchedBuffers(model, self.head)
        self._add_histograms(-1, exact=True)
        for optimizer in optimizers:
            self._map_groups(optimizer, 0)

    def attach(self) -> None:
        """Start recording."""
        self._handles = [
            register_optimizer_step_pre_hook(between_graphs(self._before_step)),
            register_optimizer_step_post_hook(between_graphs(self._after_step)),
        ]

    def detach(self) -> None:
        """Stop recording; safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # ------------------------------------------------------------------ called by the loop
    def begin_iteration(self) -> None:
        """A new iteration begins."""
        self.iterations.append(_Iteration(training=self.model.training))
        self._scheduler.iteration_begins()
        if len(self.iterations) - self._converted > CONVERTED_AT_ONCE:
            self._convert_losses(keep=1)

    def end_iteration(self, loss: Any, backward_error: str | None = None) -> None:
        """The loss of the current iteration; kept as a tensor for now, because reading it would make a GPU wait."""
        current = self.iterations[-1]
        current.loss = _detached(loss) if isinstance(loss, torch.Tensor) else loss if loss is None else float(loss)
        current.backward_error = backward_error
        current.training = self.model.training

    def merge_iterations(self) -> None:
        """All iterations so far were parts of one."""
        self.iterations = [
            _Iteration(
                step=len(self.steps) - 1 if self.steps else None,
                steps=sum(i.steps for i in self.iterations),
                training=self.model.training,
            )
        ]
        self._converted = 0
        for step in self.steps:
            step.iteration = None if step.iteration is None else 0

    def had_backward_in_this_step(self) -> bool:
        """Whether an optimizer's step is under way in which an iteration has begun already."""
        return self._inside_step and len(self.iterations) > self._iterations_before_step

    def _convert_losses(self, keep: int = 0) -> None:
        end = len(self.iterations) - keep
        for iteration in self.iterations[self._converted : end]:
            if isinstance(iteration.loss, torch.Tensor):
                iteration.loss = float(iteration.loss)
        self._converted = max(self._converted, end)
        for step in self.steps[-2 * CONVERTED_AT_ONCE :]:
            if isinstance(step.unclipped, torch.Tensor):
                step.unclipped = float(step.unclipped)

    # ------------------------------------------------------------------ hooks
    def _concerns_model(self, optimizer: TorchOptimizer) -> bool:
        if optimizer in self.optimizers:
            return True
        return any(id(p) in self._by_id for g in optimizer.param_groups for p in g["params"])

    def _before_step(self, optimizer: TorchOptimizer, args: Any, kwargs: Any) -> None:
        loop_calls.resume()  # an earlier step that raised
        if not any(callable(given) for given in (*args, *kwargs.values())):
            loop_calls.pause()
        self._begin_step(optimizer)

    def _begin_step(self, optimizer: TorchOptimizer) -> None:
        if self._inside_step:
            return  # nested: an optimizer whose step() calls that of another
        if not self._concerns_model(optimizer):
            self.optimizers.step_elsewhere(optimizer)
            return
        self._inside_step = True
        self._iterations_before_step = len(self.iterations)
        if self.optimizers.adopt(optimizer):
            self._adopted(optimizer)
        if (scale := _scale_of(optimizer)) is not None:
            self.scaled_step(scale)
        self._sampled.values(self._before)
        if not torch.equal(self._before, self._after):
            self._writes.update(self._before, self._after, self._start, steps=len(self.steps))
            self._averages.update(self._before, self._after)

    def _after_step(self, optimizer: TorchOptimizer, *_: Any) -> None:
        loop_calls.pause()  # somebody may have subscribed since
        try:
            if self._inside_step and self._concerns_model(optimizer):
                self._inside_step = False
                with torch.no_grad():
                    self._record(optimizer)
        finally:
            loop_calls.resume()

    def _adopted(self, optimizer: TorchOptimizer) -> None:
        """It held its tensors from the start, unless another adopted one has stepped twice already."""
        number = len(self.steps)
        held = self._map_groups(optimizer, 0 if number < len(self.optimizers.all) else number)
        places = [place for place, w in enumerate(self._live) if id(w.parameter) in held]
        for place in places:  # steps of other optimizers were counted as long as none held it
            self._live[place].steps = self._live[place].without_gradient = 0
        self._gradients.forget(places)

    def _record(self, optimizer: TorchOptimizer) -> None:
        number = len(self.steps)
        watched = optimizer in self.optimizers
        self._other_steps += not watched
        lrs = tuple(lr_of(g) for g in optimizer.param_groups)
        held = self._map_groups(optimizer, number)
        self._replacements.stepped(optimizer, held.keys() & self._by_id.keys())
        if watched:
            self._scheduler.optimizer_steps(optimizer, first=number == 0 and len(self.iterations) == 1)
            for index, lr in enumerate(lrs):
                self._rates.setdefault((self.optimizers.place(optimizer), index), GroupRates()).add(lr)
        norms = self._gradient_norms(lrs, held, watched)
        if (scale := _scale_of(optimizer)) is not None:
            norms = torch.where(norms > 0, norms / scale.to(norms), norms)
        norm = self._gradients.update(number, norms)
        self._record_motion(number, optimizer, lrs, held)
        iteration = None
        if self.iterations:
            iteration = len(self.iterations) - 1
            self.iterations[-1].step = number
            self.iterations[-1].steps += 1
        in_force = self.optimizers.lrs() if watched else lrs
        self.steps.append(_Step(iteration, in_force, norm, self.unclipped, self.model.training, watched))
        self.unclipped = None
        if len(self.steps) % CONVERTED_AT_ONCE == 0:
            for step in self.steps[-CONVERTED_AT_ONCE:]:
                step.norm = float(step.norm)

    def _record_motion(
        self, number: int, optimizer: TorchOptimizer, lrs: tuple[float, ...], held: dict[int, int]
    ) -> None:
        """What the step did to the sampled elements."""
        t = self._sampled
        t.values(self._after)
        self._note_elements_with_gradient(number)
        update = self._after - self._before
        decay = self._decay.at_step(optimizer, lrs, held, self._before)
        by_gradient = update if decay is None else update - decay
        if decay is not None:
            self._by_decay += decay
        self._by_gradient += by_gradient
        by_gradient_norms = t.norms(by_gradient)
        self._max_update = torch.maximum(self._max_update, torch.nan_to_num(by_gradient_norms))
        if number % self._every == 0:
            displacement = t.norms(self._after - self._start)
            moved = by_gradient_norms if decay is None else t.norms(update)
            self._rows.append(torch.stack([self._gradients.shown, moved, displacement]))
            self._recorded.append(number)
            if len(self._rows) >= SERIES:
                self._rows, self._recorded, self._every = self._rows[::2], self._recorded[::2], 2 * self._every
        if number == self._next_histogram:
            self._add_histograms(number)
            growth = GROWTH if len(self._live) <= MANY_TENSORS else GROWTH_OF_MANY
            self._next_histogram = max(number + 1, math.ceil(growth * number))

    def _note_elements_with_gradient(self, number: int) -> None:
        """Which sampled elements had a gradient at some step. Tensors of which all had one are read no more; which they are is found out
        at steps that are powers of two, for a GPU must be waited for."""
        if not self._incomplete:
            return
        self._sampled.gradients(self._grads, self._incomplete)
        self._had_gradient |= self._grads != 0  # true for NaN, as it should be
        if number & (number - 1) == 0:
            complete = self._sampled.all_of(self._had_gradient)
            self._incomplete = [place for place in self._incomplete if not complete[place]]

    def _gradient_norms(self, lrs: tuple[float, ...], held: dict[int, int], watched: bool) -> torch.Tensor:
        """L2 norm of each gradient that this step concerns; `NO_GRADIENT` or `NOT_CONCERNED` in place of the others."""
        places, gradients, others = list[int](), list[torch.Tensor](), list[int]()
        elsewhere = self._in_other_optimizers | self.optimizers.held() if watched else set()
        for place, w in enumerate(self._live):
            group = held.get(id(w.parameter))
            if group is None and (not watched or id(w.parameter) in elsewhere):
                others.append(place)
                continue
            w.steps += 1
            if group is not None:
                w.lr_sum += lrs[group]
                w.lr_peak = max(w.lr_peak, lrs[group])
            grad = w.parameter.grad
            if grad is None:
                w.without_gradient += 1
            else:
                places.append(place)
                gradients.append(grad)
        norms = read_norms([self._live[p] for p in places], gradients, self._sampled.device, self.clipped_norms)
        if len(places) == len(self._live):
            return torch.stack(norms)
        out = torch.full((len(self._live),), NO_GRADIENT, dtype=torch.float32, device=self._sampled.device)
        if places:
            out[torch.tensor(places, device=out.device)] = torch.stack(norms)
        if others:
            out[torch.tensor(others, device=out.device)] = NOT_CONCERNED
        return out

    def _map_groups(self, optimizer: TorchOptimizer, number: int) -> dict[int, int]:
        """Id of each tensor that this optimizer holds -> index of its group; noted of the watched optimizer's tensors."""
        held: dict[int, int] = {}
        entries: dict[int, int] = {}
        for index, group in enumerate(optimizer.param_groups):
            for p in group["params"]:
                held.setdefault(id(p), index)
                entries[id(p)] = entries.get(id(p), 0) + 1
        if optimizer not in self.optimizers:
            self._in_other_optimizers |= held.keys()
            return held
        place = self.optimizers.place(optimizer)
        for w in self._watched:
            index = held.get(id(w.parameter), -1)
            if index >= 0:
                w.first_step = number if w.first_step is None else w.first_step
                w.group = place, index
                w.entries = entries[id(w.parameter)]
        return held

    def _add_histograms(self, number: int, *, exact: bool = False) -> None:
        values = self._start if number < 0 else self._after
        whole = {
            place: w.values.reshape(-1).float() for place, w in enumerate(self._live) if exact and w.part == "head"
        }
        found = histograms_of(number, values, self._sampled, [w.trainable for w in self._live], whole)
        for w, histogram in zip(self._live, found, strict=True):
            if histogram is not None:
                w.histograms.append(histogram)

    # ------------------------------------------------------------------ the end
    def finish(self) -> dict[str, Any]:
        """The fields of a `Trace` that this recorder knows."""
        self._convert_losses()
        self.optimizers.adopt_the_only_one()
        t = self._sampled
        after_last_step, final = self._after, t.values(t.zeros())
        counted = self._writes.not_masked(after_last_step)
        if not torch.equal(final, after_last_step):
            self._writes.after_the_last_step(final, after_last_step)
            self._averages.update(final, after_last_step)
        if self.steps:
            self._after = final
            self._replace_last_histograms(len(self.steps) - 1)
        tensors = tensor_records(
            self.model,
            self._watched,
            t,
            vectors={
                "start": self._start,
                "final": final,
                "after_last_step": after_last_step,
                "had_gradient": self._had_gradient,
                "by_gradient": self._by_gradient,
                "by_decay": self._by_decay,
                "counted": counted,
            },
            gradients=self._gradients,
            max_update=self._max_update,
            writes=self._writes,
            averages=self._averages,
            rows=self._rows,
            steps=len(self.steps),
            optimizers=self.optimizers,
            in_other_optimizers=self._in_other_optimizers,
        )
        return {
            "head": self.head,
            "optimizer": optimizer_record(
                self.optimizers,
                self._live,
                self._by_id.keys(),
                self._rates,
                self._scheduler,
                other_steps=self._other_steps,
                rebuilt=self._replacements.count,
            ),
            "iterations": tuple(
                Iteration(plain(i.loss), i.step, i.steps, i.training, i.backward_error) for i in self.iterations
            ),
            "steps": tuple(
                Step(s.iteration, s.lrs, short(float(s.norm)), plain(s.unclipped), s.training, s.by_watched_optimizer)
                for s in self.steps
            ),
            "recorded": tuple(self._recorded),
            "tensors": tensors,
            "buffers": self._buffers.record(self._watched),
        }

    def notes(self) -> list[str]:
        """What of the model was not compared."""
        return self._buffers.notes()

    def _replace_last_histograms(self, last: int) -> None:
        """The histograms of the last step are exact."""
        for w in self._watched:
            if w.histograms and w.histograms[-1].step == last:
                w.histograms.pop()
        self._add_histograms(last, exact=True)


def _detached(loss: torch.Tensor) -> torch.Tensor | None:
    """The loss without its graph; None: it is spread over the ranks."""
    here = value_here(loss)
    return None if here is None else here.detach()


def _scale_of(optimizer: TorchOptimizer) -> torch.Tensor | None:
    """The factor by which a fused optimizer divides the gradients at this step, set by a GradScaler; None: it does not."""
    scale = getattr(optimizer, "grad_scale", None)
    return scale.detach() if isinstance(scale, torch.Tensor) else None
