"""``finetune``: one short fine-tune, watched, undone, and returned as a `Trace`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import nn

from ..checks.probes import chosen_probes
from ..core import arguments as check
from ..core import events
from ..core.formatting import as_given
from ..core.intent import Intent
from ..core.recipe import OPTIMIZERS, Recipe
from ..core.trace import Trace
from ..instruments.draws import draws_differ
from ..instruments.environment import data_hash
from ..instruments.given import listable
from ..instruments.global_state import GlobalHooks, GlobalState, seed_everything
from ..instruments.inference import InferenceMode
from ..instruments.loop_calls import FunctionModes
from ..instruments.nested_state import NestedState
from ..instruments.snapshots import LoaderSnapshot, ModelSnapshot
from ..instruments.undo import Undo
from ..integrations.trainer_run import ProcessState
from ..seeds.executors import ExecutorOrFactory
from ..seeds.runs import DRAWN_TWICE, Runs
from ..seeds.sprt import Seeds
from .finetune_arguments import FinetuneArguments, OwnArguments
from .repeatable import keep_repeatable, within_a_trace
from .resolve import resolve_model, resolve_recipe
from .run import FinetuneRun
from .seeds import finetune_seeds, read_once
from .trainer_run import TrainerRun, check_arguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def finetune(
    model: nn.Module | Callable[[], Any],
    batches: Iterable[Any] | None = None,
    recipe: Recipe | None = None,
    *,
    seeds: None = None,
    **arguments: Unpack[FinetuneArguments],
) -> Trace: ...
@overload
def finetune(
    model: nn.Module | Callable[[], Any],
    batches: Iterable[Any] | None = None,
    recipe: Recipe | None = None,
    *,
    seeds: Seeds,
    executor: ExecutorOrFactory | None = None,
    **arguments: Unpack[FinetuneArguments],
) -> Runs: ...
def finetune(
    model: nn.Module | Callable[[], Any],
    batches: Iterable[Any] | None = None,
    recipe: Recipe | None = None,
    *,
    seeds: Seeds | None = None,
    executor: ExecutorOrFactory | None = None,
    **arguments: Unpack[FinetuneArguments],
) -> Trace | Runs:
    """Run one short fine-tune and return what happened; the model, the optimizer and all random states are as before.

    :param model: a module (trained in place, then restored bit for bit), or a function without arguments that makes one (called
        under the recipe's seed). Without ``batches``: a function without arguments that makes a ``transformers.Trainer``, which decides
        optimizer, schedule, batches and loss. It is stopped after ``steps`` optimizer steps; nothing is saved, evaluated or reported.
    :param batches: a list, a DataLoader or any re-iterable; a batch is a mapping with ``labels``, or ``(inputs, labels)``, where the
        inputs may be a mapping (keywords), a tensor, or a tuple (passed as one argument if the model takes it so).
    :param recipe: how to fine-tune; single fields can be given as keywords: ``finetune(model, batches, lr=1e-4, steps=50)``.
    :param seeds: the same fine-tune under several seeds, from the recipe's on: a number >= 3, or ``"auto"`` for as many as the checks
        need to decide. Returns `Runs`, which every check takes in place of a trace; ``max_seconds`` is then the limit of all together.
    :param executor: where the seeds are trained: an object with ``submit(fn, *args)``, such as a ``ProcessPoolExecutor`` with spawned
        processes, or a function that makes one. A worker computes with ``threads`` threads, by default one; the results are those of a run
        here with as many, bit for bit. The model may be a function, batches a list or a DataLoader; all that is given has to be picklable
        by cloudpickle (``pip install 'pytest-ftcheck[executor]'``).
    :param arguments: any of the following, and the fields of `Recipe`.
    :param optimizer: yours, an instance over this module's parameters or ``callable(model) -> optimizer``; it is used as it is,
        and gradients are clipped only if you give ``max_grad_norm``. A name such as ``"sgd"`` is the recipe's field.
    :param scheduler: yours, or ``callable(optimizer) -> scheduler``; stepped after every optimizer step.
    :param loss_fn: ``(model, batch) -> loss`` or ``(loss, logits)``. Default: the model's own loss, else cross-entropy for integer
        labels, binary cross-entropy with logits for multi-hot labels, mean squared error for floats.
    :param forward: ``(model, batch) -> logits``, where the model's output cannot be read.
    :param step: ``(model, batch, optimizer, scheduler) -> loss``: your own loop body, watched and not changed. Mode, ``zero_grad``,
        clipping, accumulation and scheduler are then yours, too.
    :param head: prefix, or prefixes, of the head's parameter names; default: found by the usual names, else behind the base model.
    :param metrics: name -> ``(logits, labels) -> float``, greater is better. Default for classification: accuracy,
        macro precision and recall; for regression: R squared.
    :param eval_batches: held-out batches for the metrics; default: the first training batches.
    :param evaluate: your own metric, ``(model) -> float``, recorded before and after.
    :param intent: what you expect of the run (`Intent`); what the recipe decides is filled in.
    :param probes: which measurements to take besides the training: any of ``loss``, ``descent``, ``noise``, ``metrics``, ``data``,
        ``modes``, ``loss_shape``, ``reference``, ``inputs``, ``head_state``, ``counterfactuals``, ``loop``. Default: all that fit into
        about the cost of the training itself; ``Trace.skipped`` says what was left out. Named ones run whatever they cost.
        ``overfit``, ``permuted``, ``accumulation``, ``autocast`` and ``resume`` train or compute again, and run only when named.
    :param checkpoint: your own functions ``(save, load)``, each ``(path, model, optimizer, scheduler)``, which the probe ``resume`` calls
        with a path in a temporary folder; ``load`` gets objects as they were before the first step. Default: the ``state_dict`` of each.
    :raises ValueError, TypeError: bad input, before any training. An exception of your own code passes through, with the partial
        trace as its attribute ``ftcheck_trace``, and everything restored.

    >>> from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
    >>> trace = finetune(tiny_distilbert, toy_batches(), lr=1e-3, steps=5)
    >>> len(trace.steps), trace.reading.inputs, trace.head
    (5, 'one tuple of 3', ('classifier',))
    """
    own, fields = _separated(arguments)
    recipe = resolve_recipe(recipe, fields, own.get("optimizer"), own.get("scheduler"))
    _check_callables(own)
    check.instance("intent", own.get("intent"), Intent, "a pytest_ftcheck.Intent", optional=True)
    probes = chosen_probes(own.get("probes"))
    if batches is None:
        check_arguments(model, recipe, {**fields, **own})
    if seeds is not None:
        return finetune_seeds(finetune, seeds, model, batches, recipe, own, executor)
    if executor is not None:
        raise ValueError(
            f"executor, of type {type(executor).__name__}, is given without seeds=: expected seeds='auto' or a number >= 3, whose runs it "
            "computes"
        )
    if isinstance(model, nn.Module):
        listable(model)
    undo = Undo()
    nested = NestedState(model) if isinstance(model, nn.Module) else None

    def train() -> tuple[FinetuneRun | TrainerRun, Trace]:
        undo.keep(GlobalState(), GlobalHooks(), FunctionModes())
        with InferenceMode(False), torch.enable_grad():
            if batches is None:
                undo.keep(ProcessState())
                seed_everything(recipe.seed)
                by_trainer = TrainerRun(model, recipe, own, undo)
                return by_trainer, by_trainer.run()
            undo.keep(LoaderSnapshot(batches), LoaderSnapshot(own.get("eval_batches")))
            seed_everything(recipe.seed)
            module = resolve_model(model, own.get("optimizer"), recipe, undo)
            undo.keep(*_modules_among(own, undo.parameters))
            run = FinetuneRun(module, batches, recipe, own, probes, undo)
            return run, run.run()

    run, trace = undo.after(train)
    notes = [nested.note() if nested is not None else None, DRAWN_TWICE if draws_differ(batches, recipe.seed) else None]
    if any(notes):
        trace = dataclasses.replace(trace, notes=(*trace.notes, *filter(None, notes)))
    if listener := events.current():
        listener.traced(trace)
    events.run_ended(
        trace,
        events.Rerun(
            data=lambda: data_hash(run.known),
            seeds=lambda count: finetune_seeds(finetune, count, model, batches, recipe, own),
            evaluation=lambda: data_hash(run.evaluation_rows) if run.evaluation_rows else None,
        ),
    )
    measured: dict[str, Trace] = {}

    def remeasure(probe: str) -> Trace:
        if probe not in measured:
            with events.listening(None), events.repeating(), within_a_trace():
                again = cast("OwnArguments", {**own, "probes": (probe,)})
                measured[probe] = finetune(model, batches, recipe, **again)
        return measured[probe]

    def lengthen(steps: int, max_seconds: float) -> Trace:
        longer = dataclasses.replace(recipe, steps=steps, max_seconds=max_seconds)
        with events.listening(events.ProgressOnly(events.current())), events.repeating(), within_a_trace():
            return finetune(model, batches, longer, **own)

    # a scheduler of the user's is made for its number of steps
    fixed = own.get("scheduler") is not None or read_once(batches) or read_once(own.get("eval_batches"))
    fixed = fixed or (isinstance(run, TrainerRun) and run.steps_of_its_own <= recipe.steps)
    keep_repeatable(trace, remeasure, None if fixed else lengthen, holds_model=isinstance(model, nn.Module))
    return trace


def _modules_among(own: OwnArguments, known: set[int]) -> list[ModelSnapshot]:
    """Snapshots of the user's callables that are modules, or methods of one: a loss with weights of its own."""
    callables = [own.get(name) for name in ("loss_fn", "forward", "step", "evaluate")]
    found = {id(m): m for f in callables for m in (f, getattr(f, "__self__", None)) if isinstance(m, nn.Module)}
    return [ModelSnapshot(module, known=known) for module in found.values()]


def _separated(arguments: FinetuneArguments) -> tuple[OwnArguments, dict[str, Any]]:
    """The arguments of ``finetune`` itself, and the fields of the recipe; an optimizer's name is one of these.

    :raises ValueError: no optimizer has that name.
    """
    given: dict[str, Any] = dict(arguments)
    own = {name: given.pop(name) for name in OwnArguments.__annotations__ if name in given}
    if isinstance(own.get("optimizer"), str):
        name = own.pop("optimizer")
        if name not in OPTIMIZERS:
            raise ValueError(
                f"optimizer={as_given(name)}: expected one of {', '.join(OPTIMIZERS)}, an optimizer, or a callable"
            )
        given["optimizer"] = name
    return cast("OwnArguments", own), given


def _check_callables(own: OwnArguments) -> None:
    given, expected = own.get("metrics"), "a mapping name -> callable(logits, labels)"
    metrics = {} if given is None else check.mapping("metrics", given, expected)
    checkpoint = own.get("checkpoint")
    if checkpoint is not None and not (isinstance(checkpoint, (tuple, list)) and len(checkpoint) == 2):
        raise TypeError(f"checkpoint={as_given(checkpoint)}: expected two functions, (save, load)")
    save, load = checkpoint or (None, None)
    check.callables(
        loss_fn=own.get("loss_fn"),
        forward=own.get("forward"),
        step=own.get("step"),
        evaluate=own.get("evaluate"),
        **{"checkpoint[0]": save, "checkpoint[1]": load},
        **{f"metrics[{name!r}]": metric for name, metric in metrics.items()},
    )
