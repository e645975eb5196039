"""``finetune``: one short fine-tune, watched, undone, and returned as a `Trace`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import nn

from ..checks.probes import PROBE_CLASSES, chosen_probes
from ..core import events
from ..core.formatting import describe_type
from ..core.intent import Intent
from ..core.observations import Descent, Metric, Reading, Tensor
from ..core.recipe import OPTIMIZERS, Recipe
from ..core.trace import Trace
from ..instruments.batches import (
    MOST,
    Batches,
    Forward,
    LossFn,
    Reader,
    device_of,
    in_words,
    row_count,
    split,
    to_device,
)
from ..instruments.environment import data_hash, environment, share
from ..instruments.fixed_batch import BATCHES, DESCENTS, FixedProbe, MetricProbe, small_gradients
from ..instruments.metrics import MetricFn
from ..instruments.parameter_roles import find_head
from ..instruments.probe import ProbeContext, ProbeRunner, allowance, tokens_of
from ..instruments.sampled_elements import gradient_norm
from ..instruments.setup import (
    Undo,
    check_callables,
    expects_metric,
    needs_closure,
    resolve_model,
    resolve_optimizer,
    resolve_recipe,
    resolve_scheduler,
)
from ..instruments.snapshots import LoaderSnapshot, preserved_globals, quiet, seed_everything
from ..seeds.runs import Runs
from ..seeds.sprt import Seeds
from .build_trace import assemble, is_cut, measurements_of
from .recorder import Recorder
from .seeds import several

StepFn = Callable[[Any, Any, Any, Any], Any]
#: A run whose loss is NaN or infinite this many times in a row is over.
HOPELESS = 3
#: Models with fewer parameters are trained on one thread.
SMALL = 1_000_000
#: Of models with more parameters the dear probes are made as seldom as they can be.
LARGE = 20_000_000
#: So many same-batch descents without an exception settle the sign test: 1 in 256 by luck.
SETTLED = 8


@overload
def finetune(
    model: nn.Module | Callable[[], nn.Module],
    batches: Iterable[Any],
    recipe: Recipe | None = None,
    *,
    optimizer: torch.optim.Optimizer | Callable[[Any], torch.optim.Optimizer] | str | None = None,
    scheduler: Any = None,
    loss_fn: LossFn | None = None,
    forward: Forward | None = None,
    step: StepFn | None = None,
    head: str | Sequence[str] | None = None,
    metrics: Mapping[str, MetricFn] | None = None,
    eval_batches: Iterable[Any] | None = None,
    evaluate: Callable[[Any], float] | None = None,
    intent: Intent | None = None,
    probes: Sequence[str] | None = None,
    seeds: None = None,
    **recipe_fields: Any,
) -> Trace: ...
@overload
def finetune(
    model: nn.Module | Callable[[], nn.Module],
    batches: Iterable[Any],
    recipe: Recipe | None = None,
    *,
    seeds: Seeds,
    **arguments: Any,
) -> Runs: ...
def finetune(
    model: nn.Module | Callable[[], nn.Module],
    batches: Iterable[Any],
    recipe: Recipe | None = None,
    *,
    optimizer: torch.optim.Optimizer | Callable[[Any], torch.optim.Optimizer] | str | None = None,
    scheduler: Any = None,
    loss_fn: LossFn | None = None,
    forward: Forward | None = None,
    step: StepFn | None = None,
    head: str | Sequence[str] | None = None,
    metrics: Mapping[str, MetricFn] | None = None,
    eval_batches: Iterable[Any] | None = None,
    evaluate: Callable[[Any], float] | None = None,
    intent: Intent | None = None,
    probes: Sequence[str] | None = None,
    seeds: Seeds | None = None,
    **recipe_fields: Any,
) -> Trace | Runs:
    """Run one short fine-tune and return what happened; the model, the optimizer and all random states are as before.

    :param model: a module (trained in place, then restored bit for bit), or a function without arguments that makes one (called
        under the recipe's seed).
    :param batches: a list, a DataLoader or any re-iterable; a batch is a mapping with ``labels``, or ``(inputs, labels)``, where the
        inputs may be a mapping (keywords), a tensor, or a tuple (handed over as one argument if the model takes it so).
    :param recipe: how to fine-tune; single fields can be given as keywords: ``finetune(model, batches, lr=1e-4, steps=50)``.
    :param optimizer: yours, an instance over this module's parameters or ``callable(model) -> optimizer``; it is used as it is.
        A name such as ``"sgd"`` is the recipe's field.
    :param scheduler: yours, or ``callable(optimizer) -> scheduler``; stepped after every optimizer step.
    :param loss_fn: ``(model, batch) -> loss`` or ``(loss, logits)``. Default: the model's own loss, else cross-entropy for integer
        labels, binary cross-entropy with logits for multi-hot labels, mean squared error for floats.
    :param forward: ``(model, batch) -> logits``, where the model's output cannot be read.
    :param step: ``(model, batch, optimizer, scheduler) -> loss``: your own loop body, watched and not touched. Mode, ``zero_grad``,
        clipping, accumulation and scheduler are then yours, too.
    :param head: prefix, or prefixes, of the head's parameter names; default: found by the usual names, else behind the base model.
    :param metrics: name -> ``(logits, labels) -> float``, greater is better. Default for classification: accuracy,
        macro precision and recall; for regression: R squared.
    :param eval_batches: held-out batches for the metrics; default: the rows of the loss probe.
    :param evaluate: your own metric, ``(model) -> float``, recorded before and after.
    :param intent: what you mean the run to be (`Intent`); what our own recipe decides is filled in.
    :param probes: which measurements to make beside the training: any of ``loss``, ``descent``, ``noise``, ``metrics``, ``data``,
        ``modes``, ``loss_shape``, ``reference``, ``inputs``, ``head_state``, ``counterfactuals``. Default: all that fit into about the
        cost of the training itself; what was left out is said in ``Trace.skipped``. Named ones are made whatever they cost.
        ``overfit`` and ``permuted`` train again, and are made only when named.
    :param seeds: the same fine-tune under several seeds, from the recipe's on: a number >= 3, or ``"auto"`` for as many as the checks
        need to decide. Gives `Runs`, which every check takes in place of a trace; ``max_seconds`` is then the limit of all together.
    :raises ValueError, TypeError: bad input, before any training. What your own code raises passes through, with the partial
        trace as attribute ``ftcheck_trace`` of the exception, everything restored.

    >>> from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
    >>> trace = finetune(tiny_distilbert, toy_batches(), lr=1e-3, steps=5)
    >>> len(trace.steps), trace.reading.inputs, trace.head
    (5, 'one tuple of 3', ('classifier',))
    """
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer={optimizer!r}: expected one of {', '.join(OPTIMIZERS)}, an optimizer, or a callable"
            )
        recipe_fields["optimizer"], optimizer = optimizer, None
    recipe = resolve_recipe(recipe, recipe_fields, optimizer, scheduler)
    check_callables(loss_fn=loss_fn, forward=forward, step=step, evaluate=evaluate, **_named("metrics", metrics))
    if intent is not None and not isinstance(intent, Intent):
        raise TypeError(f"intent is {describe_type(intent)}: expected a pytest_ftcheck.Intent")
    wanted = chosen_probes(probes)
    arguments: dict[str, Any] = {
        "optimizer": optimizer,
        "scheduler": scheduler,
        "loss_fn": loss_fn,
        "forward": forward,
        "step": step,
        "head": head,
        "metrics": metrics,
        "eval_batches": eval_batches,
        "evaluate": evaluate,
        "intent": intent,
    }
    if seeds is not None:
        return several(finetune, seeds, model, batches, recipe, probes=probes, **arguments)
    undo = Undo()
    with preserved_globals(), torch.inference_mode(False), torch.enable_grad():
        undo.keep(LoaderSnapshot(batches))
        undo.keep(LoaderSnapshot(eval_batches))
        try:
            seed_everything(recipe.seed)
            run = _Run(
                model=resolve_model(model, optimizer, recipe, undo),
                batches=batches,
                recipe=recipe,
                probes=wanted,
                everything=probes is not None,
                undo=undo,
                **arguments,
            )
            trace = run.go()
        finally:
            undo.restore()
    if told := events.current():
        told.traced(trace)
    events.keep(
        trace,
        events.Again(
            data=lambda: data_hash(run.batches.known),
            seeds=lambda count: several(finetune, count, model, batches, recipe, probes=probes, **arguments),
        ),
    )
    return trace


def _named(argument: str, callables: Mapping[str, Any] | None) -> dict[str, Any]:
    if callables is not None and not isinstance(callables, Mapping):
        raise TypeError(
            f"{argument} is {describe_type(callables)}: expected a mapping name -> callable(logits, labels)"
        )
    for name in callables or ():
        if not isinstance(name, str):
            raise TypeError(f"{argument} has the key {name!r}: expected the metric's name, a string")
    return {f"{argument}[{name!r}]": fn for name, fn in (callables or {}).items()}


class _Run:
    """One fine-tune: checks and preparations when made, training in :meth:`go`."""

    def __init__(
        self,
        *,
        model: nn.Module,
        batches: Any,
        recipe: Recipe,
        optimizer: Any,
        scheduler: Any,
        loss_fn: LossFn | None,
        forward: Forward | None,
        step: StepFn | None,
        head: str | Sequence[str] | None,
        metrics: Mapping[str, MetricFn] | None,
        eval_batches: Any,
        evaluate: Callable[[Any], float] | None,
        intent: Intent | None,
        probes: tuple[str, ...],
        everything: bool,
        undo: Undo,
    ) -> None:
        self.began = time.perf_counter()
        self.model, self.recipe, self.step_fn, self.evaluate, self.probes = (
            model,
            recipe,
            step,
            evaluate,
            probes,
        )
        self.notes: list[str] = list(recipe.warnings()) if optimizer is None and scheduler is None else []
        self.batches = Batches(batches, recipe.steps)
        _limit_threads(model, recipe)
        self.large = sum(p.numel() for p in model.parameters()) >= LARGE
        self.device = device_of(model)
        self.head = find_head(model, head)
        self.intent = intent
        if intent is not None:
            intent.check_names([n for n, _ in model.named_parameters(remove_duplicate=False)])
        if optimizer is None and scheduler is None and step is None:
            self.intent = (intent or Intent()).filled(recipe)
        self.reader = self._reader(loss_fn, forward)
        held_out = None if eval_batches is None else _held_out(eval_batches)
        self._check_labels(held_out)
        self.optimizer = resolve_optimizer(model, optimizer, recipe, undo)
        self.scheduler = resolve_scheduler(
            self.optimizer, scheduler, recipe, own_optimizer=optimizer is None, undo=undo
        )
        if step is None:
            # only in our own loop: with the user's, the mode the model comes in is part of what is judged
            asleep = [m for m in model.modules() if not m.training and _all_frozen(m)]
            model.train()
            for (
                module
            ) in asleep:  # a frozen module that came in eval mode stays in it: its running statistics are frozen, too
                module.eval()
        self.probe: FixedProbe | None = None
        self.metrics: MetricProbe | None = None
        self.evaluated: float | None = None
        self.training_seconds = 0.0
        self.stopped: str | None = None
        self.noise: dict[str, float | None] = {}
        self._prepare_probes(held_out, metrics)
        self.probe_runner = self._prepare_runner(held_out, everything)
        self.scaler = torch.amp.GradScaler("cuda") if self._needs_scaler() else None
        self._plateau = self.scheduler is not None and step is None and expects_metric(self.scheduler)
        self._closure = step is None and needs_closure(self.optimizer)
        self.recorder = Recorder(model, self.optimizer, self.head, self.scheduler)

    # ------------------------------------------------------------------ before
    def _reader(self, loss_fn: LossFn | None, forward: Forward | None) -> Reader | None:
        with quiet(self.model, weights=True):
            try:
                return Reader(self.model, self.batches.known[0], loss_fn=loss_fn, forward=forward)
            except (ValueError, TypeError) as error:
                if self.step_fn is None or loss_fn is not None or forward is not None:
                    raise
                self.notes.append(f"no probes: with step= the batches need not be readable, and they are not ({error})")
                return None

    def _check_labels(self, held_out: list[Any] | None) -> None:
        if self.reader is None or self.step_fn is not None:
            return
        for i, batch in enumerate(self.batches.known):
            self.reader.check_labels(batch, i)
        labelled = isinstance(split(self.batches.known[0])[1], torch.Tensor)
        for i, batch in enumerate(held_out or ()):
            if labelled and not isinstance(split(batch)[1], torch.Tensor):
                raise ValueError(
                    f"eval_batches[{i}]: {in_words(batch)} has no labels: expected batches like the training's"
                )
            self.reader.check_labels(batch, i, "eval_batches")

    def _prepare_probes(self, held_out: list[Any] | None, metrics: Mapping[str, MetricFn] | None) -> None:
        if self.reader is not None:
            rows = self.batches.known[:BATCHES]
            self.notes += self.reader.notes
            if "loss" in self.probes:
                source = f"the first {len(rows)} training batches" if len(rows) > 1 else "the first training batch"
                self.probe = FixedProbe(self.model, self.reader, rows, source, self.recipe.steps)
                self.probe.look(0)
            if "metrics" in self.probes:
                name = "training rows" if held_out is None else "held-out rows"
                self.metrics = MetricProbe(self.model, self.reader, held_out or rows, name, metrics)
        if self.evaluate is not None:
            self.evaluated = self._evaluate()

    def _prepare_runner(self, held_out: list[Any] | None, everything: bool) -> ProbeRunner | None:
        kinds = [e for e in PROBE_CLASSES if e.name in self.probes]
        if self.reader is None or not kinds:
            return None
        first = to_device(self.batches.known[0], self.device)
        context = ProbeContext(
            model=self.model,
            reader=self.reader,
            probe=[to_device(b, self.device) for b in self.batches.known[:BATCHES]],
            batches=self.batches,
            held_out=held_out,
            head=self.head,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            recipe=self.recipe,
            intent=self.intent or Intent(),
            evaluate=self.evaluate,
            ours=self.step_fn is None,
            device=self.device,
            steps=self.recipe.steps,
        )
        rows = row_count(split(first)[0]) or 1
        budget = math.inf if everything else allowance(self.model, rows, tokens_of(first), self.recipe.steps)
        runner = ProbeRunner(context, kinds, budget)
        runner.before()
        return runner

    def _evaluate(self) -> float:
        assert self.evaluate is not None
        modes = [(m, m.training) for m in self.model.modules()]
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        with preserved_globals():
            try:
                value: Any = self.evaluate(self.model)
                if not isinstance(value, (int, float)) and not hasattr(value, "item"):
                    raise TypeError(f"evaluate(model) returned {describe_type(value)}: expected a number")
                try:
                    return float(value)
                except (TypeError, ValueError, RuntimeError) as error:
                    raise TypeError(f"evaluate(model) returned {value!r}: expected a number") from error
            finally:
                for p, flag in flags:  # a train() of the model's own that freezes layers may be called by nobody else
                    if p.requires_grad != flag:
                        p.requires_grad_(flag)
                # with the user's loop, too: this call is ours, and must neither put to sleep nor wake what trains
                for module, mode in modes:
                    module.training = mode

    def _needs_scaler(self) -> bool:
        return self.step_fn is None and self.recipe.autocast == "float16" and self.device.type == "cuda"

    # ------------------------------------------------------------------ the run
    def go(self) -> Trace:
        """Train, measure, and put it all into a trace; on an exception the partial trace travels with it."""
        self.recorder.attach()
        told = events.current()
        try:
            self._train(told)
            self.recorder.detach()
            return self._trace(partial=False)
        except BaseException as error:
            self.recorder.detach()
            self.stopped = f"{type(error).__name__}: {str(error).strip()[:200]}"
            with contextlib.suppress(Exception):
                error.ftcheck_trace = self._trace(partial=True)  # type: ignore[attr-defined]
            raise
        finally:
            self.recorder.detach()
            if self.probe_runner is not None:
                self.probe_runner.close()
            if told:
                told.progress(self.recipe.steps, self.recipe.steps, None)

    def _train(self, told: events.Listener | None) -> None:
        recorder, total = self.recorder, self.recipe.steps
        since_step: list[Any] = []
        bad = 0
        for i in range(total):
            batch = self.batches.take(i)
            if self.step_fn is None:
                batch = to_device(batch, self.device)
                if self.reader is not None and i >= len(self.batches.known):
                    self.reader.check_labels(batch, i)
            since_step = [*since_step, batch][-4:]
            before = self._before(since_step)
            if self.probe_runner is not None:
                self.probe_runner.iteration(i, batch)
            began = time.perf_counter()
            recorder.begin()
            done = len(recorder.steps)
            loss, broken = self._iterate(batch)
            recorder.tell(loss, broken)
            self.training_seconds += time.perf_counter() - began
            if len(recorder.steps) > done:
                self._after(before, since_step, len(recorder.steps) - 1)
                if self.probe_runner is not None:
                    self.probe_runner.stepped(len(recorder.steps) - 1)
                since_step = []
                if self.probe is not None and len(recorder.steps) in self.probe.when:
                    self.probe.look(len(recorder.steps))
            value = None if loss is None else float(loss)
            if told and i + 1 < total:
                told.progress(i + 1, total, value)
            bad = bad + 1 if value is not None and not math.isfinite(value) else 0
            if broken:
                self.stopped = f"backward cannot run: {broken}"
            elif bad >= HOPELESS:
                self.stopped = f"the loss was not finite {HOPELESS} times in a row"
            elif (
                self.recipe.max_seconds and time.perf_counter() - self.began > self.recipe.max_seconds and i + 1 < total
            ):
                self.stopped = f"max_seconds={self.recipe.max_seconds:g} reached after {i + 1} of {total} steps"
            if self.stopped:
                return

    def _before(self, batches: list[Any]) -> tuple[int, float | None] | None:
        if self.probe is None or "descent" not in self.probes or self._enough(self.probe.descents):
            return None
        # with accumulation a step comes from several batches: looked at anew with each, the last one counts
        return len(batches), self.probe.loss_of(batches)

    def _enough(self, descents: Sequence[Descent]) -> bool:
        """Whether the sign test needs no more steps; of a large model, for which each costs two thirds of a step, as few as settle it."""
        if len(descents) >= DESCENTS:
            return True
        return self.large and len(descents) >= SETTLED and all(d.after < d.before for d in descents)

    def _after(self, before: tuple[int, float | None] | None, batches: list[Any], step: int) -> None:
        if before is None or before[1] is None or self.probe is None:
            return
        if (after := self.probe.loss_of(batches)) is not None:
            self.probe.descents.append(Descent(step, before[1], after))

    def _iterate(self, batch: Any) -> tuple[Any, str | None]:
        """One iteration; the loss, and why backward could not run, if so."""
        try:
            if self.step_fn is not None:
                return _loss_value(self.step_fn(self.model, batch, self.optimizer, self.scheduler)), None
            return self._own_step(batch)
        except RuntimeError as error:
            if not is_cut(error):
                raise
            return None, self._where_cut(batch)

    def _own_step(self, batch: Any) -> tuple[Any, str | None]:
        assert self.reader is not None
        if self._closure:
            loss: Any = self.optimizer.step(lambda: self._backward(batch))  # type: ignore[arg-type, return-value]
            self._step_scheduler(loss)
            return loss, None
        loss = self._backward(batch)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.recipe.max_grad_norm is not None:
            self.recorder.unclipped = self._clip(self.recipe.max_grad_norm)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self._step_scheduler(loss)
        return loss, None

    def _step_scheduler(self, loss: Any) -> None:
        if self.scheduler is not None:
            self.scheduler.step(*([float(loss)] if self._plateau else []))

    def _clip(self, max_norm: float) -> torch.Tensor | None:
        """As ``clip_grad_norm_``, for sparse gradients too; gradients that are not finite stay as they are, so that it can be
        seen which are (clipping would multiply them all by NaN)."""
        grads = [p.grad for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
        if not grads:
            return None
        norms = [gradient_norm(g, 1).to(grads[0].device, torch.float32) for g in grads]
        total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        if torch.isfinite(total):
            share = torch.clamp(max_norm / (total + 1e-6), max=1.0)
            for grad in grads:
                grad.mul_(share.to(grad.device))
        return total

    def _backward(self, batch: Any) -> torch.Tensor:
        assert self.reader is not None
        self.model.zero_grad(set_to_none=True)
        kind = self.recipe.autocast
        precision = torch.autocast(self.device.type, getattr(torch, kind)) if kind else contextlib.nullcontext()
        with precision:
            # a loss_fn that ends in .item() gives a number: backward then says that it has no graph
            loss = torch.as_tensor(self.reader.training_loss(batch)[0])
        (self.scaler.scale(loss) if self.scaler is not None else loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _where_cut(self, batch: Any) -> str:
        """Where the graph ends: in the model or in the loss."""
        if not torch.is_grad_enabled():  # not inside the step only: it is left so
            return (
                "gradients are switched off: torch.set_grad_enabled(False), or a no_grad() or inference_mode() entered and never left, "
                "in an evaluation or a step before"
            )
        if self.reader is None:
            return "the loss has no graph"
        with quiet(self.model, grad=True), contextlib.suppress(Exception):
            logits = self.reader.logits(to_device(batch, self.device))
            if logits is not None and logits.requires_grad:
                return (
                    "the loss has no graph, though the model's logits have one: it is cut between logits and loss "
                    "(argmax, .detach(), .data, .item(), a tensor made anew, torch.no_grad())"
                )
            if logits is not None:
                return (
                    "the loss has no graph, for the model's logits have none: it is cut inside the model "
                    "(.detach(), .data, torch.no_grad(), numpy)"
                )
        return "the loss has no graph"

    # ------------------------------------------------------------------ after
    def _trace(self, *, partial: bool) -> Trace:
        fields = self.recorder.finish()
        metrics: tuple[Metric, ...] = ()
        if not partial:
            done = len(self.recorder.steps)
            if self.probe is not None:
                self.probe.look(done)
            if self.metrics is not None:
                metrics = self.metrics.record()
                self.notes += self.metrics.notes
            if self.evaluate is not None and self.evaluated is not None:
                last = self._evaluate()
                metrics += (Metric("evaluate", self.evaluated, last, 0, "the user's own"),)
                if self.probe_runner is not None:
                    self.probe_runner.context.evaluated = self.evaluated, last
            if "noise" in self.probes and self.reader is not None:
                self.noise = self._noise(fields["tensors"])
            if self.probe_runner is not None:
                self.probe_runner.context.tensors = fields["tensors"]
                self.probe_runner.after(self._late)
                self.notes += self.probe_runner.context.notes
        return assemble(
            "finetune",
            fields,
            **measurements_of(
                self.probe_runner,
                self.probes,
                "the batches could not be read" if self.reader is None else "not made",
                partial=partial,
            ),
            intent=self.intent.plain() if self.intent is not None else None,
            recipe=self.recipe,
            reading=self.reader.reading if self.reader else Reading("not read", "not read", "the user's step"),
            probe=self.probe.record() if self.probe is not None else None,
            metrics=metrics,
            noise=self.noise,
            environment=environment(self.model),
            seconds=time.perf_counter() - self.began,
            training_seconds=self.training_seconds,
            stopped=self.stopped,
            notes=tuple(self.notes),
        )

    def _late(self) -> bool:
        limit = self.recipe.max_seconds
        return limit is not None and time.perf_counter() - self.began > limit

    def _noise(self, tensors: Sequence[Tensor]) -> dict[str, float | None]:
        assert self.reader is not None
        batch = self.batches.known[0]
        if split(batch)[1] is None and self.reader.loss_fn is None:
            return {}
        return small_gradients(self.model, self.reader, batch, tensors)


def _all_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _held_out(source: Any) -> list[Any]:
    """All held-out batches; ``ValueError`` for a stream without an end."""
    batches = Batches(source, None, "eval_batches")
    kept = []
    for batch in batches.source:  # not list(): that could not be interrupted
        kept.append(batch)
        if len(kept) > MOST:
            raise ValueError(f"eval_batches: more than {MOST:,} batches; expected a held-out set of at most that many")
    return kept


def _limit_threads(model: nn.Module, recipe: Recipe) -> None:
    """Threads for this run; `preserved_globals` gives the others back."""
    wanted = recipe.threads
    if wanted is None:
        wanted = 1 if sum(p.numel() for p in model.parameters()) < SMALL else share()
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)


def _loss_value(value: Any) -> Any:
    """What a user's step returned, as a number or a scalar tensor; other things are taken for "not told"."""
    if isinstance(value, torch.Tensor):
        return value.detach() if value.numel() == 1 else value.detach().float().mean()
    if isinstance(value, (int, float)):
        return float(value)
    return None
