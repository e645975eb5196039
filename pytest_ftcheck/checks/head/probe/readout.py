"""Does an alteration of the base make its features worse for this task? A linear layer is fitted on both, before the training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ....instruments.base_model import BaseModel
from ....instruments.batches import row_count, rows_of, split, to_device
from ....instruments.probe import ProbeContext
from ....instruments.row_hashes import RowReader, Rows, first_occurrences
from ....instruments.task_readers.class_probabilities import ONE_CLASS, most_probable
from ....instruments.uncompiled import compiled
from ....instruments.undisturbed import perturbed
from ....instruments.work import FREE
from ..readout_record import Readout
from .ablation import WIDEST, ridge
from .base_twin.twin import Twin
from .base_twin.values import relative_difference
from .head import first_rows
from .layers import linear_layers
from .named_checkpoint import stored_values
from .unit_flow import flow

#: Distinct rows that are judged, at most and at least: with 64 even a loss of a third of what the features say is rarely beyond chance.
MOST, LEAST = 256, 64
FOLDS = 5
#: Penalty of the fit, in mean squared lengths of a row. `benchmarks/readout.py`, MiniLM's features of 416 headlines in five classes: 0.64
#: of the rows are right at 0.01, 0.73 at 0.1, 0.78 at 1, 0.76 at 10.
STRENGTH = 1.0
#: Share of the operations that are free to all probes, and of the training, that the three passes may take. Only altered bases pay it.
SHARE_FREE, SHARE_TRAINING = 0.25, 0.4


def readout(context: ProbeContext, altered: Sequence[BaseModel]) -> Readout | None:
    """With the alterations and without them; None: there is no alteration, or it cannot be measured.

    :param altered: bases that do not compute what their class computes; ``context.edited`` names the edited parameters.
    """
    model, reader = context.model, context.reader
    layers = linear_layers(model, context.head)
    if not (altered or context.edited) or reader.task not in ONE_CLASS or not layers or compiled(model):
        return None
    batches = _batches(context)
    labels = torch.cat([most_probable(reader.task, split(b)[1])[1].reshape(-1) for b in batches]).long()
    chosen = _distinct(context, batches)
    if len(chosen) < LEAST or len(labels) != sum(map(rows_of, batches)) or bool((labels < 0).any()):
        return None
    as_it_is = _features(context, batches, layers)
    with contextlib.ExitStack() as stack:
        if context.edited:
            stack.enter_context(_with_stored_values(model, context.edited))
        for base in altered:
            stack.enter_context(_computing_its_class(base))
        restored = _features(context, batches, layers)
    if as_it_is is None or restored is None or as_it_is.shape != restored.shape or len(restored) != len(labels):
        return None
    return compared(restored[chosen], as_it_is[chosen], labels[chosen], _trained(context))


def compared(unaltered: torch.Tensor, altered: torch.Tensor, labels: torch.Tensor, trained: int) -> Readout | None:
    """Both features of the same rows ``[rows, features]``, and their labels; None: values that are not finite, or too many of them."""
    if unaltered.shape[1] > WIDEST or not bool(torch.isfinite(unaltered).all()):
        return None
    finite = torch.nan_to_num(altered.double(), posinf=0.0, neginf=0.0)  # nothing can be read off them
    right = [_predicted(x, labels) == labels for x in (unaltered.double(), finite)]
    return Readout(
        rows=len(labels),
        fitted=len(labels) - -(-len(labels) // FOLDS),
        trained=trained,
        baseline=float(torch.bincount(labels).max()) / len(labels),
        unaltered=float(right[0].double().mean()),
        altered=float(right[1].double().mean()),
        only_unaltered=int((right[0] & ~right[1]).sum()),
        only_altered=int((right[1] & ~right[0]).sum()),
        change=relative_difference(altered, unaltered),
    )


def _predicted(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """For each row, the class that a layer fitted on the other folds predicts."""
    classes = max(2, int(labels.max()) + 1)
    guess = torch.empty_like(labels)
    fold = torch.arange(len(labels), device=labels.device) % FOLDS
    for k in range(FOLDS):
        rest = fold != k
        guess[~rest] = ridge(x[rest], labels[rest], x[~rest], classes, STRENGTH)
    return guess


def _batches(context: ProbeContext) -> list[Any]:
    """Held-out rows, then training rows: before the training neither is known to the model."""
    rows = row_count(split(context.fixed_batches[0])[0]) or 1
    budget = SHARE_FREE * FREE / context.row_work + SHARE_TRAINING * 3 * rows * context.steps
    known = [*(context.held_out or ()), *context.batches.known]
    return [to_device(b, context.device) for b in first_rows(known, min(MOST, int(budget / 3)))]


def _trained(context: ProbeContext) -> int:
    return context.steps * (row_count(split(context.fixed_batches[0])[0]) or 1)


def _distinct(context: ProbeContext, batches: Sequence[Any]) -> torch.Tensor:
    """Places of rows that occur once, or for the first time."""
    rows, read = Rows(), RowReader(context.model, context.intent.pad_token_id)
    for batch in batches:
        read.read(batch, rows)
    count = sum(map(rows_of, batches))
    keys = rows.keys()
    places = first_occurrences(keys) if len(keys) == count else range(count)
    return torch.tensor([int(i) for i in places], device=context.device, dtype=torch.long)


def _features(context: ProbeContext, batches: Sequence[Any], layers: dict[str, nn.Module]) -> torch.Tensor | None:
    """What enters the head's first layer, dropout off."""
    found = flow(context.model, context.reader, batches, layers)
    return found.inputs[found.order[0]] if found.order else None


@contextlib.contextmanager
def _with_stored_values(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Inside, the parameters of these names have the checkpoint's values."""
    own = dict(model.named_parameters(remove_duplicate=False))
    with perturbed([own[n] for n in names]), torch.no_grad():
        for name, value in stored_values(model, names):
            own[name].data.copy_(value)
        yield


@contextlib.contextmanager
def _computing_its_class(base: BaseModel) -> Iterator[None]:
    """Inside, the base returns what its twin returns for what the model hands it, before and after all hooks of the user's."""
    twin, given = Twin(base.module), []

    def enter(_module: nn.Module, args: Any, kwargs: Any) -> None:
        given.append((args, kwargs))

    def leave(_module: nn.Module, _args: Any, _out: Any) -> Any:
        return _called(twin, *given.pop())

    handles = [base.module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)]
    try:
        handles.append(base.module.register_forward_hook(leave))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _called(twin: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    with torch.no_grad():
        return twin(tuple(args), dict(kwargs))
