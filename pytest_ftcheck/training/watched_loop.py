"""One training loop that somebody else runs, watched from its first iteration to its last step."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from ..checks.probes import chosen_probes, probes_to_run
from ..core import arguments, events
from ..core.formatting import describe_type, plural, text_of
from ..core.intent import Intent
from ..core.observations import Metric, Optimizer, Reading
from ..core.recipe import Recipe
from ..core.trace import Trace
from ..instruments.averaged_weights import averaged_weights
from ..instruments.batches import Batches, check_readable, device_of, row_count, split, to_device
from ..instruments.environment import environment
from ..instruments.fixed_rows import LossTracker, MetricTracker
from ..instruments.given import module as checked_module
from ..instruments.global_state import GlobalHooks, GlobalState
from ..instruments.hooks import ModelHooks
from ..instruments.loop_calls import FunctionModes, subscribe, unsubscribe
from ..instruments.other_processes import refusals
from ..instruments.parameter_roles import find_head_if_any, head_notes
from ..instruments.probe import ModelContext, ProbeContext, ProbeRunner
from ..instruments.reader import LossFn, Reader
from ..instruments.rounding_noise import noise_of_small_gradients
from ..instruments.sharded_tensors import NO_PASSES, has_shards
from ..instruments.undisturbed import quiet
from ..instruments.undo import Restorable, Undo
from ..instruments.work import allowance, tokens_of
from ..instruments.wrapped_models import unwrapped, without_wrappers
from .build_trace import build_trace, measured_fields
from .loop_losses import LoopLosses
from .loss_graph import differs_from, has_no_graph
from .recorder import Recorder
from .resolve import check_parameters
from .sharded_models import refuse_flat_parameters, shard_notes
from .watched_optimizers import as_one

T = TypeVar("T")
#: Steps of a loop whose length is not known: its loss is evaluated at the start and the end only.
ENDLESS = 2**31


class WatchedLoop:
    """A loop between :meth:`begin` and :meth:`end`; the arguments are those of `watch`.

    :param optimizers: those that train the model; empty: adopted when they first step.
    :param notes: further notes for the trace.
    :raises ValueError, TypeError: bad input.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        *,
        scheduler: Any = None,
        head: str | Sequence[str] | None = None,
        probe_batch: Any = None,
        loss_fn: LossFn | None = None,
        intent: Intent | None = None,
        probes: Sequence[str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        checked_module("model", model)
        arguments.callables(loss_fn=loss_fn)
        for optimizer in optimizers:
            arguments.instance("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
        if loss_fn is not None and probe_batch is None:
            raise ValueError("loss_fn is given without probe_batch: it would never be called; pass both or neither")
        chosen = chosen_probes(probes)
        if probes is not None and probe_batch is None:
            raise ValueError(
                "probes is given without probe_batch: there is nothing to measure on; pass both or neither"
            )
        if isinstance(scheduler, type) or (scheduler is not None and not callable(getattr(scheduler, "step", None))):
            given = f"the class {scheduler.__name__}" if isinstance(scheduler, type) else describe_type(scheduler)
            raise TypeError(f"scheduler is {given}: expected a learning-rate scheduler")
        model, head = unwrapped(model), without_wrappers(model, head)
        refuse_flat_parameters(model)
        check_parameters(model)
        arguments.instance("intent", intent, Intent, "a pytest_ftcheck.Intent", optional=True)
        self._head = find_head_if_any(model, head)
        if intent is not None:
            intent = intent.for_model([n for n, _ in model.named_parameters(remove_duplicate=False)], self._head)
        self._intent, self._scheduler = intent, scheduler
        self._probes, self._everything = chosen, probes is not None
        self._probe_runner: ProbeRunner | None = None
        self._model, self._optimizers = model, tuple(optimizers)
        self._notes = [*notes, *head_notes(model, self._head)]
        if scheduler is not None:
            self._notes.append(f"scheduler: {type(scheduler).__name__}")
        self._probe_batch, self._loss_fn = probe_batch, loss_fn
        self._reader: Reader | None = None
        #: Why nothing is measured on rows; None: it is.
        self._no_rows: str | None = "watch has no probe_batch"
        self._loss_tracker: LossTracker | None = None
        self._metric_tracker: MetricTracker | None = None
        self._notes += shard_notes(model)
        if probe_batch is not None:
            self._read(probe_batch)
        self._recorder: Recorder | None = None
        self._losses: LoopLosses | None = None
        self._began = 0.0
        self._ended = self._listening = False
        self._trace: Trace | None = None
        self._before: tuple[Restorable, ...] = ()

    def _read(self, probe_batch: Any) -> None:
        """Find out how the model reads the batch; or why that takes the other ranks, and so is not done."""
        if has_shards(self._model):
            self._no_rows = NO_PASSES
        else:
            with refusals() as refused:
                try:
                    check_readable("probe_batch", [probe_batch])
                    with quiet(self._model, weights=True):
                        reader = Reader(
                            self._model,
                            probe_batch,
                            loss_fn=self._loss_fn,
                            embeddings=self._intent is not None and self._intent.task == "embedding",
                            argument="probe_batch",
                            zero_or_one_are_classes=self._intent is None or self._intent.task != "regression",
                        )
                        reader.check_labels(probe_batch, 0, "probe_batch")
                except Exception:
                    if not refused:
                        raise
                    self._no_rows = refused[0]
                else:
                    self._reader, self._no_rows = reader, None
                    self._notes += reader.notes
        if self._no_rows is not None:
            self._notes.append(f"nothing was measured on rows: {self._no_rows}")

    # ------------------------------------------------------------------ begin and end
    def begin(self) -> None:
        """Measure the model as it is, and watch from now on. If it raises, nothing is watched, and no hook is left."""
        if self._recorder is not None:
            raise RuntimeError("this watch has been used already: create a new one for another loop")
        self._before = (GlobalState(), GlobalHooks(), FunctionModes(), ModelHooks(self._model), _Unwatched(self))
        try:
            Undo().after(self._begin)  # which ends blocks of ours that an interrupt left open
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Watch no more, and measure nothing: hooks, random states and switches are as they were before :meth:`begin`."""
        Undo(*self._before).after(lambda: None)

    def _begin(self) -> None:
        self._began = time.perf_counter()
        if self._reader is not None:
            batches = [self._probe_batch]
            self._loss_tracker = LossTracker(self._model, self._reader, batches, "probe_batch", ENDLESS)
            self._loss_tracker.evaluate(0)
            self._metric_tracker = MetricTracker(self._model, self._reader, batches, "probe rows", None)
            self._probe_runner = self._make_probe_runner(self._reader)
        else:
            self._probe_runner = self._make_model_probe_runner()
        self._probe_runner.before()
        self._recorder = Recorder(self._model, self._optimizers, self._head, self._scheduler)
        self._losses = LoopLosses(self._recorder)
        self._recorder.attach()
        subscribe(self._losses)
        if self._recorder.clipped_norms is not None:
            subscribe(self._recorder.clipped_norms)
        self._listening = True
        self._probe_runner.loop_begins()

    def end(self, error: BaseException | None = None) -> None:
        """The last step was taken, or ``error`` was raised: measure the model, and watch no more. May be called twice.

        An error gets the trace as its attribute ``ftcheck_trace``.
        """
        if self._recorder is None:
            return
        if self._ended:
            if error is not None:
                _attach(self._trace, error)
            return
        Undo(_Unwatched(self)).after(lambda: self._end(error))

    def _end(self, error: BaseException | None) -> None:
        self._ended = True
        self._detach()
        self._measure_at_end(error)

    def unwatch(self) -> None:
        """Remove every hook; may be called at any time, and again."""
        self._detach()
        self._close()

    def _detach(self) -> None:
        if self._losses is not None:
            unsubscribe(self._losses)
        if self._recorder is not None:
            if self._recorder.clipped_norms is not None:
                unsubscribe(self._recorder.clipped_norms)
            self._recorder.detach()
        if self._probe_runner is not None and self._listening:
            self._listening = False
            self._probe_runner.loop_ends()

    def _close(self) -> None:
        if self._probe_runner is not None:
            self._probe_runner.close()

    def _measure_at_end(self, error: BaseException | None) -> None:
        recorder = self._recorder
        assert recorder is not None
        if error is not None:
            if has_no_graph(error) and recorder.iterations:
                recorder.iterations[-1].backward_error = "the loss has no graph"
            with contextlib.suppress(Exception):
                self._trace = self._measure(f"{type(error).__name__}: {text_of(error).strip()[:200]}")
                _attach(self._trace, error)
            return
        self._trace = self._measure(None)
        if listener := events.current():
            listener.traced(self._trace)
        events.run_ended(self._trace, None)

    # ------------------------------------------------------------------ during the loop
    def loss(self, loss: T) -> T:
        """Record the loss of one batch, and return it, see `watch.loss`."""
        if self._losses is None:
            raise RuntimeError("w.loss() outside the with block")
        if isinstance(loss, torch.Tensor):
            if loss.is_nested:
                raise ValueError("loss is a nested tensor: expected one number; take its mean over the rows")
            if loss.numel() != 1:
                raise ValueError(
                    f"loss has shape {tuple(loss.shape)}: expected one number; take its mean over the rows"
                )
        elif not isinstance(loss, (int, float)):
            raise TypeError(f"loss is {describe_type(loss)}: expected a scalar tensor or a number")
        elif isinstance(loss, int) and not isinstance(loss, bool):
            arguments.whole("loss", loss)
        self._losses.told(loss)
        return loss

    @property
    def began(self) -> bool:
        """Whether :meth:`begin` was called."""
        return self._recorder is not None

    @property
    def trace(self) -> Trace:
        """What happened; available after the end."""
        if self._trace is None:
            raise RuntimeError("the trace is ready after the with block")
        self._trace = events.merged_over_ranks(self._trace)
        return self._trace

    # ------------------------------------------------------------------ probes
    def _make_probe_runner(self, reader: Reader) -> ProbeRunner:
        device = device_of(self._model)
        batch = to_device(self._probe_batch, device)
        context = ProbeContext(
            model=self._model,
            reader=reader,
            fixed_batches=[batch],
            batches=Batches([self._probe_batch], 1, "probe_batch"),
            held_out=None,
            head=self._head,
            optimizer=as_one(self._optimizers),
            scheduler=self._scheduler,
            recipe=Recipe(),
            intent=self._intent or Intent(),
            user_metric=None,
            recipe_loop=False,
            device=device,
        )
        kinds = [kind for kind in probes_to_run(self._probes, without_batches=False, own_calls=True) if kind.watchable]
        rows = row_count(split(batch)[0]) or 1
        # the length of the loop is not known: the budget is that of a short one
        budget = allowance(self._model, rows, tokens_of(batch), Recipe().steps, reader.outputs)
        return ProbeRunner(context, kinds, math.inf if self._everything else budget)

    def _make_model_probe_runner(self) -> ProbeRunner:
        """Without a probe batch, structure and stored values are measured all the same, and the loop's own calls are observed."""
        context = ModelContext(
            model=self._model,
            head=self._head,
            optimizer=as_one(self._optimizers),
            intent=self._intent or Intent(),
        )
        return ProbeRunner(context, probes_to_run((), without_batches=True, own_calls=True), math.inf)

    # ------------------------------------------------------------------ the trace
    def _measure(self, stopped: str | None) -> Trace:
        recorder = self._recorder
        assert recorder is not None
        seconds = time.perf_counter() - self._began
        fields = recorder.finish()
        self._notes += [*_notes_on(fields["optimizer"]), *recorder.notes()]
        metrics: tuple[Metric, ...] = ()
        noise: dict[str, float | None] = {}
        if stopped is None:
            with averaged_weights(recorder.optimizers.innermost()):
                metrics, noise = self._measure_rows(recorder, fields)
        return build_trace(
            "watch",
            fields,
            **self._measured(partial=stopped is not None),
            intent=self._intent.plain() if self._intent is not None else None,
            recipe=None,
            reading=self._reader.reading if self._reader else Reading("not read", "not read", "the user's loop"),
            probe_loss=self._loss_tracker.record() if self._loss_tracker is not None else None,
            metrics=metrics,
            noise=noise,
            environment=environment(self._model),
            seconds=seconds,
            training_seconds=seconds,
            stopped=stopped,
            notes=tuple(self._notes),
        )

    def _measure_rows(
        self, recorder: Recorder, fields: dict[str, Any]
    ) -> tuple[tuple[Metric, ...], dict[str, float | None]]:
        """The loss of the probe batch, its metrics, the rounding noise of small gradients; and the probes' last moment."""
        metrics: tuple[Metric, ...] = ()
        noise: dict[str, float | None] = {}
        if self._loss_tracker is not None and self._reader is not None:
            self._loss_tracker.evaluate(len(recorder.steps))
            if self._metric_tracker is not None:
                metrics = self._metric_tracker.record()
                self._notes += self._metric_tracker.notes
            noise = noise_of_small_gradients(self._model, self._reader, self._probe_batch, fields["tensors"])
        if self._probe_runner is not None:
            self._probe_runner.context.optimizer = as_one(recorder.optimizers.all)
            self._probe_runner.context.tensors = fields["tensors"]
            self._probe_runner.after()
            self._notes += self._probe_runner.context.notes
        return metrics, noise

    def _measured(self, *, partial: bool) -> dict[str, Any]:
        """What the probes measured; not the loss function where the graph shows that the loop uses another one."""
        measured = measured_fields(self._probe_runner, self._probes, self._no_rows, partial=partial)
        if self._reader is None and self._probe_batch is not None and not has_shards(self._model):
            # a loss_fn that calls no collective would have it measured
            measured["lacking"] = {name: "loss_fn" for name, why in measured["skipped"].items() if why == self._no_rows}
        nodes = self._losses.nodes if self._losses is not None else frozenset[str]()
        other = differs_from(self._reader.reading.loss, nodes) if self._reader else None
        if other is not None and measured["measurements"].pop("loss_shape", None) is not None:
            measured["skipped"]["loss_shape"] = other
            measured["lacking"] = {"loss_shape": "loss_fn"}
            self._notes.append(other)
        return measured


def _notes_on(optimizer: Optimizer) -> list[str]:
    """What it holds beside the model's tensors is not watched."""
    outside = sum(group.not_in_model for group in optimizer.groups)
    if not outside:
        return []
    verb = "is" if outside == 1 else "are"
    return [
        f"{optimizer.name} also holds {plural(outside, 'tensor')} that {verb} not in the model (a loss module's, for example): not watched"
    ]


def _attach(trace: Trace | None, error: BaseException) -> None:
    with contextlib.suppress(Exception):
        error.ftcheck_trace = trace  # type: ignore[attr-defined]


class _Unwatched:
    """A loop that is not watched (any more)."""

    def __init__(self, loop: WatchedLoop) -> None:
        self._loop = loop

    def restore(self) -> None:
        """Remove every hook."""
        self._loop.unwatch()
