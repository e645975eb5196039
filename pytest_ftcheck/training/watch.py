"""``watch``: the user's own loop, watched and not changed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import nn

from ..checks.probes import chosen_probes, probes_to_run
from ..core import arguments, events
from ..core.formatting import describe_type
from ..core.intent import Intent
from ..core.observations import Metric, Reading
from ..core.recipe import Recipe
from ..core.trace import Trace
from ..instruments.batches import Batches, device_of, row_count, split, to_device
from ..instruments.environment import environment
from ..instruments.fixed_rows import LossTracker, MetricTracker
from ..instruments.parameter_roles import find_head, head_notes
from ..instruments.probe import ModelContext, ProbeContext, ProbeRunner, allowance, tokens_of
from ..instruments.reader import LossFn, Reader
from ..instruments.rounding_noise import noise_of_small_gradients
from ..instruments.snapshots import quiet
from .build_trace import build_trace, measured_fields
from .loss_graph import differs_from, has_no_graph, nodes_near
from .recorder import Recorder
from .resolve import check_parameters

T = TypeVar("T")
#: Steps of a loop whose length is not known: its loss is evaluated at the start and the end only.
ENDLESS = 2**31


class watch:  # noqa: N801 - a context manager that reads as a verb
    """Watch your own training loop: ``with watch(model, optimizer) as w: ...``, then ``w.trace``.

    Nothing is patched, trained or restored: hooks on ``optimizer.step()`` read gradients and weights. Accumulation, clipping,
    GradScaler and autocast, closures, several groups, groups added midway, shared parameters and sparse gradients all work.

    :param model: the module being trained.
    :param optimizer: the ``torch.optim.Optimizer`` (or Accelerate's wrapper) that trains it.
    :param scheduler: your scheduler: whether it drives this optimizer, and steps after it. Learning rates are read off the optimizer.
    :param head: prefix, or prefixes, of the head's parameter names; default: found by the usual names.
    :param probe_batch: a batch to evaluate with dropout off when the block begins and ends; needs readable labels or ``loss_fn``.
    :param loss_fn: ``(model, batch) -> loss`` for the probe batch, where its loss cannot be read by default.
    :param intent: what you expect of the run (`Intent`).
    :param probes: which probes to run on the probe batch, names as for `finetune`; default: all that can run in a loop of yours.
    :raises ValueError, TypeError: bad input, before the block begins.

    >>> from pytest_ftcheck import tiny_distilbert, toy_batches
    >>> model, batches = tiny_distilbert(), toy_batches()
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> with watch(model, optimizer) as w:
    ...     for inputs, labels in batches[:4]:
    ...         optimizer.zero_grad()
    ...         w.loss(torch.nn.functional.cross_entropy(model(inputs), labels)).backward()
    ...         optimizer.step()
    >>> len(w.trace.steps), w.trace.tensor("classifier.0.weight").motion.share_changed
    (4, 1.0)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        scheduler: Any = None,
        head: str | Sequence[str] | None = None,
        probe_batch: Any = None,
        loss_fn: LossFn | None = None,
        intent: Intent | None = None,
        probes: Sequence[str] | None = None,
    ) -> None:
        arguments.instance("model", model, nn.Module, "a torch.nn.Module")
        arguments.instance("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
        arguments.callables(loss_fn=loss_fn)
        if loss_fn is not None and probe_batch is None:
            raise ValueError("loss_fn is given without probe_batch: it would never be called; pass both or neither")
        chosen = chosen_probes(probes)
        if probes is not None and probe_batch is None:
            raise ValueError(
                "probes is given without probe_batch: there is nothing to measure on; pass both or neither"
            )
        if scheduler is not None and not callable(getattr(scheduler, "step", None)):
            raise TypeError(f"scheduler is {describe_type(scheduler)}: expected a learning-rate scheduler")
        check_parameters(model)
        arguments.instance("intent", intent, Intent, "a pytest_ftcheck.Intent", optional=True)
        self._head = find_head(model, head)
        if intent is not None:
            intent = intent.for_model([n for n, _ in model.named_parameters(remove_duplicate=False)], self._head)
        self._intent, self._scheduler = intent, scheduler
        self._probes, self._everything = chosen, probes is not None
        self._probe_runner: ProbeRunner | None = None
        self._model, self._optimizer = model, optimizer
        self._notes = list(head_notes(model, self._head))
        if scheduler is not None:
            self._notes.append(f"scheduler: {type(scheduler).__name__}")
        self._probe_batch, self._loss_fn = probe_batch, loss_fn
        self._reader: Reader | None = None
        self._loss_tracker: LossTracker | None = None
        self._metric_tracker: MetricTracker | None = None
        self._loss_nodes: frozenset[str] = frozenset()
        if probe_batch is not None:
            with quiet(model, weights=True):
                self._reader = Reader(model, probe_batch, loss_fn=loss_fn, argument="probe_batch")
                self._reader.check_labels(probe_batch, 0, "probe_batch")
            self._notes += self._reader.notes
        self._recorder: Recorder | None = None
        self._began = 0.0
        self._trace: Trace | None = None

    def __enter__(self) -> watch:
        if self._recorder is not None:
            raise RuntimeError("this watch has been used already: create a new one for another loop")
        self._began = time.perf_counter()
        if self._reader is not None:
            batches = [self._probe_batch]
            self._loss_tracker = LossTracker(self._model, self._reader, batches, "probe_batch", ENDLESS)
            self._loss_tracker.evaluate(0)
            self._metric_tracker = MetricTracker(self._model, self._reader, batches, "probe rows", None)
            self._probe_runner = self._make_probe_runner(self._reader)
        else:
            self._probe_runner = self._make_model_probe_runner()
        self._recorder = Recorder(self._model, self._optimizer, self._head, self._scheduler)
        self._recorder.attach()
        if self._probe_runner is not None:
            self._probe_runner.loop_begins()
        return self

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
            optimizer=self._optimizer,
            scheduler=self._scheduler,
            recipe=Recipe(),
            intent=self._intent or Intent(),
            user_metric=None,
            recipe_loop=False,
            device=device,
        )
        kinds = [kind for kind in probes_to_run(self._probes, without_batches=False) if kind.watchable]
        rows = row_count(split(batch)[0]) or 1
        # the length of the loop is not known: the budget is that of a short one
        budget = math.inf if self._everything else allowance(self._model, rows, tokens_of(batch), Recipe().steps)
        runner = ProbeRunner(context, kinds, budget)
        runner.before()
        return runner

    def _make_model_probe_runner(self) -> ProbeRunner:
        """Without a probe batch, structure and stored values are measured all the same."""
        context = ModelContext(
            model=self._model, head=self._head, optimizer=self._optimizer, intent=self._intent or Intent()
        )
        runner = ProbeRunner(context, probes_to_run((), without_batches=True), math.inf)
        runner.before()
        return runner

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._recorder is not None
        if self._probe_runner is not None:
            self._probe_runner.loop_ends()
        self._recorder.detach()
        try:
            self._end(error)
        finally:
            if self._probe_runner is not None:
                self._probe_runner.close()

    def _end(self, error: BaseException | None) -> None:
        recorder = self._recorder
        assert recorder is not None
        if error is not None:
            if has_no_graph(error) and recorder.iterations:
                recorder.iterations[-1].backward_error = "the loss has no graph"
            with contextlib.suppress(Exception):
                self._trace = self._measure(f"{type(error).__name__}: {str(error).strip()[:200]}")
                error.ftcheck_trace = self._trace  # type: ignore[attr-defined]
            return
        self._trace = self._measure(None)
        if listener := events.current():
            listener.traced(self._trace)
        events.run_ended(self._trace, None)

    def loss(self, loss: T) -> T:
        """Record the loss of one batch, and return it: ``w.loss(loss).backward()``.

        :raises ValueError: a tensor of more than one element.
        """
        if self._recorder is None:
            raise RuntimeError("w.loss() outside the with block")
        if isinstance(loss, torch.Tensor):
            if loss.numel() != 1:
                raise ValueError(
                    f"loss has shape {tuple(loss.shape)}: expected one number; take its mean over the rows"
                )
        elif not isinstance(loss, (int, float)):
            raise TypeError(f"loss is {describe_type(loss)}: expected a scalar tensor or a number")
        self._recorder.begin_iteration()
        self._recorder.end_iteration(loss)
        self._loss_nodes = self._loss_nodes or nodes_near(loss)
        return loss

    @property
    def trace(self) -> Trace:
        """What happened; available after the block."""
        if self._trace is None:
            raise RuntimeError("the trace is ready after the with block")
        return self._trace

    def _measure(self, stopped: str | None) -> Trace:
        recorder = self._recorder
        assert recorder is not None
        seconds = time.perf_counter() - self._began
        fields = recorder.finish()
        metrics: tuple[Metric, ...] = ()
        noise: dict[str, float | None] = {}
        if stopped is None and self._loss_tracker is not None and self._reader is not None:
            self._loss_tracker.evaluate(len(recorder.steps))
            if self._metric_tracker is not None:
                metrics = self._metric_tracker.record()
                self._notes += self._metric_tracker.notes
            noise = noise_of_small_gradients(self._model, self._reader, self._probe_batch, fields["tensors"])
        if stopped is None and self._probe_runner is not None:
            self._probe_runner.context.tensors = fields["tensors"]
            self._probe_runner.after()
            self._notes += self._probe_runner.context.notes
        return build_trace(
            "watch",
            fields,
            **self._measured(partial=stopped is not None),
            intent=self._intent.plain() if self._intent is not None else None,
            recipe=None,
            reading=self._reader.reading if self._reader else Reading("not read", "not read", "the user's loop"),
            probe=self._loss_tracker.record() if self._loss_tracker is not None else None,
            metrics=metrics,
            noise=noise,
            environment=environment(self._model),
            seconds=seconds,
            training_seconds=seconds,
            stopped=stopped,
            notes=tuple(self._notes),
        )

    def _measured(self, *, partial: bool) -> dict[str, Any]:
        """What the probes measured; not the loss function where the graph shows that the loop uses another one."""
        without_batches = "watch has no probe_batch" if self._reader is None else None
        measured = measured_fields(self._probe_runner, self._probes, without_batches, partial=partial)
        other = differs_from(self._reader.reading.loss, self._loss_nodes) if self._reader else None
        if other is not None and measured["measurements"].pop("loss_shape", None) is not None:
            measured["skipped"]["loss_shape"] = other
            self._notes.append(other)
        return measured
