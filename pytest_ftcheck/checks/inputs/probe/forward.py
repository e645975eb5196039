"""Forward passes of a few rows in evaluation mode: their outputs, what entered the head, what the base received."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ....core.effect import Effect
from ....instruments.base_model import (
    BaseModel,
    Call,
    effect,
    find_base_models,
    output_types,
    precision_of,
    recorded_calls,
    recorded_inputs,
)
from ....instruments.parameter_roles import in_part
from ....instruments.probe import ProbeContext
from ....instruments.tokens import Tokens

#: A change, or a difference between rows, of fewer roundings than this is none: see `Effect.ulps`.
ROUNDINGS = 64


@dataclass(frozen=True)
class Sample:
    """The batch that is measured on, and the rows of it that are compared."""

    batch: Any
    #: Those of the whole batch; None: it has none.
    tokens: Tokens | None
    #: Rows in the batch.
    count: int
    rows: list[int]


@dataclass(frozen=True)
class Pass:
    """One forward pass: outputs, as one line of numbers a row; what entered the head; the call of the base."""

    logits: torch.Tensor
    features: torch.Tensor | None
    call: Call | None


class OtherRowCount(ValueError):
    """The model gives more or fewer outputs than there are rows."""

    def __init__(self, outputs: int) -> None:
        super().__init__("the model does not give one output a row")
        self.outputs = outputs


class Forward:
    """The model's forward passes, and effects on their outputs."""

    def __init__(self, context: ProbeContext) -> None:
        self.model, self.reader = context.model, context.reader
        #: The base, as `first_pass` found it; None: there is none.
        self.base: BaseModel | None = None
        #: Which of its calls in a pass is that of these tokens: where there are two texts, one has other ids.
        self._call_number = 0
        #: Relative spacing of numbers in the coarsest floating-point type that is involved.
        self.precision = 0.0
        self._head_entry = _first_module(context.model, context.head)

    def first_pass(self, batch: Any, tokens: Tokens | None) -> Pass:
        """A pass that finds the base: the outermost of the modules that could be it, and is called."""
        candidates = find_base_models(self.model) if tokens is not None else []
        with contextlib.ExitStack() as stack:
            types = stack.enter_context(output_types(self.model))
            ids = None if tokens is None else tokens.ids
            calls_of = [(c, stack.enter_context(recorded_calls(c, ids))) for c in candidates]
            found = self.run(batch, tokens)
        self.precision = max(precision_of(self.model), *(torch.finfo(t).eps for t in types), 0.0)
        for candidate, calls in calls_of:
            if calls:
                self.base = candidate
                self._call_number = next((i for i, c in enumerate(calls) if _has_ids(c, ids)), 0)
                return dataclasses.replace(found, call=calls[self._call_number])
        return found

    def run(self, batch: Any, tokens: Tokens | None, keep: torch.Tensor | None = None) -> Pass:
        """A pass of this batch; ``keep`` are the columns of ``tokens`` that it still has."""
        ids = None if tokens is None else tokens.ids
        with recorded_calls(self.base, ids) as calls, recorded_inputs(self._head_entry) as entered:
            logits = self.reader.logits(batch)
        if logits is None:
            raise ValueError("this model gives no logits")
        features = entered[0] if entered and entered[0].dim() == 2 and len(entered[0]) == len(logits) else None
        call = calls[self._call_number] if len(calls) > self._call_number else None
        return Pass(by_row(logits, tokens, keep), features, call)

    def effect(
        self, first: torch.Tensor | None, second: torch.Tensor | None, reference: torch.Tensor | None = None
    ) -> Effect | None:
        """How far ``second`` is from ``first``, beside the spread of ``reference`` (``first``) over its rows; None: not comparable."""
        if first is None or second is None:
            return None
        return effect(first, second, reference, self.precision)

    def between_rows(self, values: torch.Tensor | None) -> Effect | None:
        """How far rows are from their mean."""
        return None if values is None else self.effect(values, values.mean(0, keepdim=True).expand_as(values))


def by_row(values: torch.Tensor, tokens: Tokens | None, keep: torch.Tensor | None = None) -> torch.Tensor:
    """Outputs as ``(rows, numbers)``; of those that stand for tokens, zeros at padding and at columns that were not kept."""
    if tokens is not None and values.dim() >= 3:
        real = tokens.real if keep is None else tokens.real[:, keep]
        if values.dim() == 3 and values.shape[:2] != real.shape == (len(values), values.shape[2]):
            values = values.transpose(1, 2)  # classes that are the positions of the row
        if values.shape[:2] == real.shape:
            values = values * real.reshape(*real.shape, *[1] * (values.dim() - 2))
            if keep is not None:
                full = values.new_zeros(len(values), tokens.width, *values.shape[2:])
                full[:, keep] = values
                values = full
        elif keep is not None and values.shape[:2] == tokens.real.shape:  # of another text, which was not cut
            values = values * tokens.real.reshape(*tokens.real.shape, *[1] * (values.dim() - 2))
    if tokens is not None and len(values) != len(tokens.ids):
        raise OtherRowCount(len(values))
    return values.reshape(len(values), -1)


def _has_ids(call: Call, ids: torch.Tensor | None) -> bool:
    """Whether the base got exactly these token ids."""
    given = call.arguments.get("input_ids")
    if ids is None or not isinstance(given, torch.Tensor):
        return False
    return given.shape == ids.shape and given.device == ids.device and bool((given == ids).all())


def rows_equal(between_rows: Effect) -> bool:
    """Whether rows differ by no more than rounding."""
    return between_rows.spread <= ROUNDINGS * between_rows.precision * between_rows.scale


def _first_module(model: nn.Module, head: tuple[str, ...]) -> nn.Module | None:
    """The first module of the head."""
    return next((m for n, m in model.named_modules() if n and in_part(n, head)), None)
