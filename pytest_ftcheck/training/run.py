"""One fine-tune: checked and prepared when it is made, trained and measured by `FinetuneRun.run`."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..checks.probes import probes_to_run
from ..core import events
from ..core.arguments import call
from ..core.formatting import describe_type, first_line_of, text_of
from ..core.intent import Intent
from ..core.observations import Descent, Metric, Reading, Tensor
from ..core.recipe import Recipe
from ..core.trace import Trace
from ..instruments.averaged_weights import averaged_weights
from ..instruments.batches import MOST, Batches, device_of, fresh, in_words, row_count, split, to_device
from ..instruments.environment import environment, thread_share
from ..instruments.fixed_rows import BATCHES, LossTracker, MetricTracker
from ..instruments.global_state import preserved_globals
from ..instruments.metrics import MetricFn
from ..instruments.parameter_roles import find_head, find_head_if_any, head_notes
from ..instruments.probe import ModelContext, ProbeContext, ProbeRunner
from ..instruments.reader import Reader
from ..instruments.recall import Recall
from ..instruments.rounding_noise import noise_of_small_gradients
from ..instruments.snapshots import BatchFlags
from ..instruments.undisturbed import quiet
from ..instruments.undo import Undo
from ..instruments.work import allowance, call_work, row_work, tokens_of
from .build_trace import build_trace, measured_fields
from .finetune_arguments import OwnArguments
from .one_row import one_row_error
from .recorder import Recorder
from .resolve import resolve_optimizer, resolve_scheduler
from .training_step import TrainingStep

#: A run ends when its loss was NaN or infinite this many times in a row.
MOST_NONFINITE = 3
#: Models with fewer parameters are trained on one thread.
ONE_THREAD = 1_000_000
#: With at least this many parameters, or floating-point operations of a batch, the loss before and after single steps is measured as
#: rarely as the sign test allows.
LARGE, DEAR = 20_000_000, 2e9
#: Batches since the last optimizer step that are kept, for the loss before and after it.
KEPT_BATCHES = 4


class FinetuneRun:
    """One fine-tune of a module. The order of its checks is that of their errors: batches, head, intent, labels, optimizer."""

    def __init__(
        self,
        model: nn.Module,
        batches: Any,
        recipe: Recipe,
        own: OwnArguments,
        probes: tuple[str, ...],
        undo: Undo,
    ) -> None:
        self._began = time.perf_counter()
        self._model, self._recipe, self._probes = model, recipe, probes
        self._user_step, self._user_metric = own.get("step"), own.get("evaluate")
        self._own_arguments = tuple(name for name in OwnArguments.__annotations__ if own.get(name) is not None)
        optimizer, scheduler = own.get("optimizer"), own.get("scheduler")
        by_recipe = optimizer is None and scheduler is None
        self._notes: list[str] = list(recipe.warnings()) if by_recipe else []
        self.batches = Batches(batches, recipe.steps)
        undo.keep(BatchFlags(self.batches.known))
        limit_threads(model, recipe)
        self._device = device_of(model)
        self._intent = own.get("intent")
        of_embeddings = self._intent is not None and self._intent.task == "embedding"
        self._head = (find_head_if_any if of_embeddings else find_head)(model, own.get("head"))
        self._notes += head_notes(model, self._head)
        if self._intent is not None:
            self._intent = self._intent.for_model(
                [n for n, _ in model.named_parameters(remove_duplicate=False)], self._head
            )
        if by_recipe and self._user_step is None:
            self._intent = (self._intent or Intent()).filled(recipe)
        self._reader = self._make_reader(own)
        self._large = self._is_large()
        eval_batches = own.get("eval_batches")
        held_out = None if eval_batches is None else _held_out(eval_batches)
        undo.keep(BatchFlags(held_out or ()))
        self._check_labels(held_out)
        self._optimizer = resolve_optimizer(model, optimizer, recipe, undo)
        self._scheduler = resolve_scheduler(
            self._optimizer, scheduler, recipe, own_optimizer=optimizer is None, undo=undo
        )
        if (
            self._user_step is None
        ):  # with the user's step, the mode in which the model comes is one of the things judged
            _train_mode(model)
        self._recall = None if self._reader is None else Recall(model, self._reader, self._head)
        self._loss_tracker: LossTracker | None = None
        self._metric_tracker: MetricTracker | None = None
        #: Batches that the metrics are taken on.
        self.evaluation_rows: list[Any] = []
        self._metric_at_start: float | None = None
        self._training_seconds = 0.0
        self._stopped: str | None = None
        self._track(held_out, own.get("metrics"))
        self._probe_runner = self._make_probe_runner(held_out, own, everything=own.get("probes") is not None)
        self._recorder = Recorder(model, [self._optimizer], self._head, self._scheduler)
        self._step = TrainingStep(
            model, self._reader, recipe, self._optimizer, self._scheduler, self._user_step, self._recorder
        )

    @property
    def known(self) -> list[Any]:
        """The batches that are known: all of a list, of others the first."""
        return self.batches.known

    # ------------------------------------------------------------------ before
    def _is_large(self) -> bool:
        if sum(p.numel() for p in self._model.parameters()) >= LARGE:
            return True
        first = self.batches.known[0]
        rows = row_count(split(first)[0]) or 1
        if self._reader is None:
            return False
        return rows * row_work(self._model, tokens_of(first), self._reader.outputs) + call_work(self._model) >= DEAR

    def _make_reader(self, own: OwnArguments) -> Reader | None:
        loss_fn, forward = own.get("loss_fn"), own.get("forward")
        with quiet(self._model, weights=True):
            try:
                return Reader(
                    self._model,
                    self.batches.known[0],
                    loss_fn=loss_fn,
                    forward=forward,
                    embeddings=self._intent is not None and self._intent.task == "embedding",
                )
            except (ValueError, TypeError) as error:
                if self._user_step is None or loss_fn is not None or forward is not None:
                    raise
                self._notes.append(
                    f"no probes ran: the batches cannot be read, and with step= they need not be ({text_of(error)})"
                )
                return None

    def _check_labels(self, held_out: list[Any] | None) -> None:
        if self._reader is None:
            return
        if self._user_step is not None:  # it may map the labels to others
            self._notes += self._labels_to_map()[:1]
            return
        for i, batch in enumerate(self.batches.known):
            self._reader.check_labels(batch, i)
        labelled = isinstance(split(self.batches.known[0])[1], torch.Tensor)
        for i, batch in enumerate(held_out or ()):
            if labelled and not isinstance(split(batch)[1], torch.Tensor):
                raise ValueError(
                    f"eval_batches[{i}]: {in_words(batch)} has no labels: expected batches like the training's"
                )
            self._reader.check_labels(batch, i, "eval_batches")

    def _labels_to_map(self) -> list[str]:
        """Remarks on labels that the head has no class for, where the user's own step takes the batches."""
        assert self._reader is not None
        return [
            f"batches[{i}]: label {label} of row {row} is outside the head's {self._reader.classes} classes; unless step= maps it "
            "to one, it is an error, and our own loss is not measured on these rows"
            for i, batch in enumerate(self.batches.known)
            for label, row in self._reader.labels_outside(split(batch)[1]).items()
        ]

    def _track(self, held_out: list[Any] | None, metrics: Mapping[str, MetricFn] | None) -> None:
        """Evaluate loss and metrics on fixed rows for the first time."""
        if self._recall is not None:
            self._recall.begin()
        if self._reader is not None:
            rows = self.batches.known[:BATCHES]
            self._notes += self._reader.notes
            if "loss" in self._probes:
                source = f"the first {len(rows)} training batches" if len(rows) > 1 else "the first training batch"
                self._loss_tracker = LossTracker(
                    self._model,
                    self._reader,
                    rows,
                    source,
                    self._recipe.steps,
                    self._recall,
                    sparing=self._large,
                )
                self._loss_tracker.evaluate(0)
            if "metrics" in self._probes:
                name = "training rows" if held_out is None else "held-out rows"
                self.evaluation_rows = held_out or rows
                self._metric_tracker = MetricTracker(
                    self._model, self._reader, held_out or rows, name, metrics, self._recall
                )
        if self._user_metric is not None:
            self._metric_at_start = self._evaluate_user_metric()

    def _make_probe_runner(self, held_out: list[Any] | None, own: OwnArguments, *, everything: bool) -> ProbeRunner:
        # a loss_fn of the user's calls the model itself, and perhaps not as our probes do
        own_calls = self._user_step is not None or own.get("loss_fn") is not None
        kinds = probes_to_run(self._probes, without_batches=self._reader is None, own_calls=own_calls)
        intent = self._intent or Intent()
        if self._reader is None:
            plain = ModelContext(model=self._model, head=self._head, optimizer=self._optimizer, intent=intent)
            runner = ProbeRunner(plain, kinds, math.inf)
            runner.before()
            return runner
        first = to_device(self.batches.known[0], self._device)
        context = ProbeContext(
            model=self._model,
            reader=self._reader,
            fixed_batches=[to_device(b, self._device) for b in self.batches.known[:BATCHES]],
            batches=self.batches,
            held_out=held_out,
            head=self._head,
            optimizer=self._optimizer,
            scheduler=self._scheduler,
            recipe=self._recipe,
            intent=intent,
            user_metric=self._user_metric,
            recipe_loop=self._user_step is None,
            device=self._device,
            checkpoint=own.get("checkpoint"),
            steps=self._recipe.steps,
            recall=self._recall,
        )
        rows = row_count(split(first)[0]) or 1
        budget = allowance(self._model, rows, tokens_of(first), self._recipe.steps, self._reader.outputs)
        runner = ProbeRunner(context, kinds, math.inf if everything else budget)
        runner.before()
        return runner

    def _evaluate_user_metric(self) -> float:
        assert self._user_metric is not None
        if self._recall is not None:
            self._recall.begin()  # the user's function may write into the weights
        modes = [(m, m.training) for m in self._model.modules()]
        flags = [(p, p.requires_grad) for p in self._model.parameters()]
        with preserved_globals():
            try:
                value: Any = call("evaluate", self._user_metric, (self._model,), "the model", "(model) -> float")
                if not isinstance(value, (int, float)) and not hasattr(value, "item"):
                    raise TypeError(f"evaluate(model) returned {describe_type(value)}: expected a number")
                try:
                    return float(value)
                except (TypeError, ValueError, RuntimeError) as error:
                    raise TypeError(f"evaluate(model) returned {value!r}: expected a number") from error
            finally:
                # this call is ours: a mode that it leaves behind, or a train() that freezes layers, must not change the training
                for p, flag in flags:
                    if p.requires_grad != flag:
                        p.requires_grad_(flag)
                for module, mode in modes:
                    module.training = mode

    # ------------------------------------------------------------------ the run
    def run(self) -> Trace:
        """Train, measure, and return the trace; an exception carries the partial trace as its attribute ``ftcheck_trace``."""
        self._recorder.attach()
        listener = events.current()
        try:
            self._train(listener)
            self._recorder.detach()
            return self._trace(partial=False)
        except BaseException as error:
            self._recorder.detach()
            self._stopped = f"{type(error).__name__}: {text_of(error).strip()[:200]}"
            with contextlib.suppress(Exception):
                error.ftcheck_trace = self._trace(partial=True)  # type: ignore[attr-defined]
            raise
        finally:
            self._recorder.detach()
            if self._recall is not None:
                self._recall.forget()
            if self._probe_runner is not None:
                self._probe_runner.close()
            if listener:
                listener.progress(self._recipe.steps, self._recipe.steps, None)

    def _train(self, listener: events.Listener | None) -> None:
        recorder, total = self._recorder, self._recipe.steps
        since_step: list[Any] = []
        nonfinite = 0
        for i in range(total):
            batch = self.batches.take(i)
            if self._user_step is None:
                batch = to_device(batch, self._device)
                if self._reader is not None and i >= len(self.batches.known):
                    self._reader.check_labels(batch, i)
            since_step = [*since_step, batch][-KEPT_BATCHES:]
            before = self._loss_before(since_step)
            if self._probe_runner is not None:
                self._probe_runner.iteration(i, batch)
            if self._recall is not None:
                self._recall.forget()
            began = time.perf_counter()
            recorder.begin_iteration()
            done = len(recorder.steps)
            loss, backward_error = self._run_step(batch, i)
            recorder.end_iteration(loss, backward_error)
            self._training_seconds += time.perf_counter() - began
            if self._probe_runner is not None:
                self._probe_runner.iterated(i)
            if len(recorder.steps) > done:
                self._loss_after(before, since_step, len(recorder.steps) - 1)
                if self._probe_runner is not None:
                    self._probe_runner.stepped(len(recorder.steps) - 1)
                since_step = []
                if self._loss_tracker is not None and self._loss_tracker.wants_point(len(recorder.steps)):
                    with averaged_weights(recorder.optimizers.innermost()):
                        self._loss_tracker.evaluate(len(recorder.steps))
            value = None if loss is None else float(loss)
            if listener and i + 1 < total:
                listener.progress(i + 1, total, value)
            nonfinite = nonfinite + 1 if value is not None and not math.isfinite(value) else 0
            self._stopped = self._reason_to_stop(i + 1, backward_error, nonfinite)
            if self._stopped:
                return

    def _run_step(self, batch: Any, number: int) -> tuple[Any, str | None]:
        """One step; a label outside the classes, which the user's own step cannot take either, is a ``ValueError`` that names it."""
        try:
            return self._step.run(fresh(batch) if self._user_step is not None else batch)
        except ValueError as error:
            one_row = one_row_error(error, self._model, batch, f"batches[{number}]")
            if one_row is None:
                raise
            if self._user_step is None:
                raise ValueError(one_row) from error
            if hasattr(error, "add_note"):  # python 3.11
                error.add_note(one_row)
            raise
        except (IndexError, RuntimeError) as error:
            text = first_line_of(error)
            if self._reader is None or self._user_step is None or "out of bounds" not in text:
                raise
            # a step may map the labels to others: only a label that its error names is at fault
            outside, classes = self._reader.labels_outside(split(batch)[1]), self._reader.classes
            named = [label for label in outside if re.search(rf"(?<![\w.-]){label}\b", text)]
            if not named or classes is None:
                raise
            raise ValueError(
                f"batches[{number}]: label {named[0]} of row {outside[named[0]]} is outside the head's {classes} classes: "
                f"expected 0 to {classes - 1} (step= raised {type(error).__name__}: {text})"
            ) from error

    def _reason_to_stop(self, done: int, backward_error: str | None, nonfinite: int) -> str | None:
        if backward_error:
            return f"backward cannot run: {backward_error}"
        if nonfinite >= MOST_NONFINITE:
            return f"the loss was not finite {MOST_NONFINITE} times in a row"
        if self._out_of_time() and done < self._recipe.steps:
            return f"max_seconds={self._recipe.max_seconds:g} reached after {done} of {self._recipe.steps} steps"
        return None

    def _out_of_time(self) -> bool:
        limit = self._recipe.max_seconds
        return limit is not None and time.perf_counter() - self._began > limit

    def _loss_before(self, batches: list[Any]) -> float | None:
        """The loss of the next step's batches; with accumulation measured anew with each batch, and the last time counts."""
        tracker = self._loss_tracker
        if tracker is None or "descent" not in self._probes or not tracker.wants_descent(len(self._recorder.steps)):
            return None
        return tracker.loss_of(batches)

    def _loss_after(self, before: float | None, batches: list[Any], step: int) -> None:
        if before is None or self._loss_tracker is None:
            return
        if (after := self._loss_tracker.loss_of(batches)) is not None:
            self._loss_tracker.descents.append(Descent(step, before, after))

    # ------------------------------------------------------------------ after
    def _trace(self, *, partial: bool) -> Trace:
        fields = self._recorder.finish()
        self._notes += self._recorder.notes()
        metrics: tuple[Metric, ...] = ()
        noise: dict[str, float | None] = {}
        if not partial:
            with averaged_weights(self._recorder.optimizers.innermost()):
                metrics, noise = self._measure_at_end(fields["tensors"])
        without_batches = "the batches could not be read" if self._reader is None else None
        return build_trace(
            "finetune",
            fields,
            **measured_fields(self._probe_runner, self._probes, without_batches, partial=partial),
            intent=self._intent.plain() if self._intent is not None else None,
            recipe=self._recipe,
            own_arguments=self._own_arguments,
            reading=self._reader.reading if self._reader else Reading("not read", "not read", "the user's step"),
            probe_loss=self._loss_tracker.record() if self._loss_tracker is not None else None,
            metrics=metrics,
            noise=noise,
            environment=environment(self._model),
            seconds=time.perf_counter() - self._began,
            training_seconds=self._training_seconds,
            stopped=self._stopped,
            notes=tuple(self._notes),
        )

    def _measure_at_end(self, tensors: Sequence[Tensor]) -> tuple[tuple[Metric, ...], dict[str, float | None]]:
        """The loss on fixed rows, the metrics, the rounding noise of small gradients; and the probes' last moment."""
        noise: dict[str, float | None] = {}
        if self._recall is not None:
            self._recall.begin()
        if self._loss_tracker is not None:
            self._loss_tracker.evaluate(len(self._recorder.steps))
        metrics = self._final_metrics()
        if "noise" in self._probes and self._reader is not None:
            noise = self._gradient_noise(self._reader, tensors)
        if self._probe_runner is not None:
            self._probe_runner.context.tensors = tuple(tensors)
            self._probe_runner.after(self._out_of_time)
            self._notes += self._probe_runner.context.notes
        return metrics, noise

    def _final_metrics(self) -> tuple[Metric, ...]:
        metrics: tuple[Metric, ...] = ()
        if self._metric_tracker is not None:
            metrics = self._metric_tracker.record()
            self._notes += self._metric_tracker.notes
        if self._metric_at_start is not None:
            last = self._evaluate_user_metric()
            metrics += (Metric("evaluate", self._metric_at_start, last, 0, "the user's own"),)
            context = self._probe_runner.context if self._probe_runner is not None else None
            if isinstance(context, ProbeContext):
                context.user_metric_values = self._metric_at_start, last
        return metrics

    def _gradient_noise(self, reader: Reader, tensors: Sequence[Tensor]) -> dict[str, float | None]:
        batch = self.batches.known[0]
        if split(batch)[1] is None and reader.loss_fn is None:
            return {}
        return noise_of_small_gradients(self._model, reader, batch, tensors)


def _train_mode(model: nn.Module) -> None:
    """Training mode, except frozen modules that came in eval mode: their running statistics are frozen, too."""
    frozen = [m for m in model.modules() if not m.training and _all_frozen(m)]
    model.train()
    for module in frozen:
        module.eval()


def _all_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _held_out(source: Any) -> list[Any]:
    """All held-out batches; ``ValueError`` for a stream without an end."""
    kept = []
    for batch in Batches(source, None, "eval_batches").source:  # not list(): that could not be interrupted
        kept.append(batch)
        if len(kept) > MOST:
            raise ValueError(f"eval_batches: more than {MOST:,} batches; expected a held-out set of at most that many")
    return kept


def limit_threads(model: nn.Module, recipe: Recipe) -> None:
    """Threads for this run; `preserved_globals` restores the previous number."""
    threads = recipe.threads
    if threads is None:
        threads = 1 if sum(p.numel() for p in model.parameters()) < ONE_THREAD else thread_share()
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
