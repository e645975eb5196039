"""The probe that passes rows through the head: the layers that are called, the live units, and whether saving keeps them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ....core.formatting import first_line_of, named_error
from ....instruments.batches import split, take_rows
from ....instruments.probe import Probe, ProbeContext
from ....instruments.task_readers.class_probabilities import ONE_CLASS
from ....instruments.task_readers.registered import prior_entropy
from ....instruments.uncompiled import compiled
from ....instruments.work import COSTLY
from ..record import Head, Hidden, Layer, Reload
from .layers import describe_layer, linear_layers
from .reload import reload, unsaved
from .unit_flow import Flow, activation, flow, unit_state, variation

T = TypeVar("T")

#: Rows whose units are measured, and rows whose logits are compared after reloading ...
ROWS, RELOADED = 64, 8
#: ... and the same where a row is costly.
FEW_ROWS, FEW_RELOADED = 16, 2


class HeadProbe(Probe):
    """Pass rows through the head: the layers that are called, the live units, and whether saving keeps them."""

    name = "head_state"
    order = 60

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        costly = context.row_work > COSTLY
        self.batches = first_rows(context.fixed_batches, FEW_ROWS if costly else ROWS)
        self.rows = sum(rows_of(b) for b in self.batches)
        self.reloaded = FEW_RELOADED if costly else RELOADED
        self.skipped: dict[str, str] = {}
        self.layers: tuple[Layer, ...] = ()
        self.first: Flow | None = None
        self.hidden: tuple[Hidden, ...] = ()
        self.logit_spread: float | None = None
        self.loss_over_chance: float | None = None
        self.features: tuple[float, float | None] | None = None
        self.reload: Reload | None = None
        self.buffers: dict[str, torch.Tensor] = {}

    def cost(self) -> float:
        """Units before and after, unless what stands before the head is recalled; logits before and after reloading, and twice with a
        graph."""
        context = self.context
        whole = all(any(b is f for f in context.fixed_batches) for b in self.batches)
        passes = 3 if context.head_costs_little else 5  # what stands before the head is recalled where none is needed
        return 2 * self.rows * (context.head_share if whole else 1.0) + passes * self.reloaded

    # ------------------------------------------------------------------ before
    def before(self) -> None:
        """The layers that are called, and the units."""
        context = self.context
        kept = {n: b for n, b in context.model.named_buffers() if b.is_floating_point()} | unsaved(context.model)
        self.buffers = {n: b.detach().clone() for n, b in kept.items()}
        modules = linear_layers(context.model, context.head)
        if not modules:
            self.skipped["units"] = "the head has no linear layers"
            return
        first = self.first = self._try("units", self._flow)
        if first is None:
            return
        self.layers = self._try("layers", lambda: self._layers(first)) or ()
        if first.logits is not None:
            self._measure_logits(first.logits)

    def _flow(self) -> Flow:
        model = self.context.model
        if compiled(model):
            raise ValueError("a compiled model would be compiled again")
        with self.context.recalling():
            return flow(model, self.context.reader, self.batches, linear_layers(model, self.context.head))

    def _layers(self, first: Flow) -> tuple[Layer, ...]:
        modules = linear_layers(self.context.model, self.context.head)
        # a layer that is not called is not judged (the original that PEFT keeps beside its copy)
        order, feeds = first.order, dict(first.pairs())
        return tuple(describe_layer(n, modules[n], modules.get(feeds.get(n, "")), last=n == order[-1]) for n in order)

    def _measure_logits(self, logits: torch.Tensor) -> None:
        task = self.context.reader.task
        if task not in ONE_CLASS or logits.shape[-1] < 2 or logits.dim() != 2:
            return
        self.logit_spread = float(((logits - logits.mean(1, keepdim=True)) ** 2).mean()) ** 0.5
        labels = [split(b)[1] for b in self.batches]
        chance = prior_entropy(task, labels)
        if chance and all(isinstance(y, torch.Tensor) for y in labels):
            self.loss_over_chance = float(self.context.reader.reference(logits, torch.cat(labels))) / chance

    # ------------------------------------------------------------------ after
    def after(self) -> None:
        """The units again, and saving."""
        if self.first is not None:
            self.hidden = self._try("units", lambda: self._hidden(self._flow())) or ()
        self.first = None
        context = self.context
        batch = take_rows(self.batches[0], range(min(self.reloaded, rows_of(self.batches[0]))))
        self.reload = self._try(
            "reload",
            lambda: reload(
                context.model,
                context.reader,
                batch,
                context.head,
                context.optimizer,
                self.buffers,
                context.recalling,
            ),
        )

    def _hidden(self, last: Flow) -> tuple[Hidden, ...]:
        first = self.first
        assert first is not None
        if not first.order:
            return ()
        name = first.order[0]
        self.features = (
            variation(first.inputs[name]),
            variation(last.inputs[name]) if name in last.inputs else None,
        )
        found = []
        for a, b in first.pairs():
            before, after = first.outputs[a], first.inputs[b]
            later = (a, b) in last.pairs()
            # after the run the values are further from zero, where all activations are similar
            kind = activation(last.outputs[a], last.inputs[b]) if later else activation(before, after)
            found.append(
                Hidden(
                    name=a,
                    following=b,
                    units=before.shape[1],
                    activation=kind,
                    first=unit_state(before, after, kind),
                    last=unit_state(last.outputs[a], last.inputs[b], kind) if later else None,
                )
            )
        return tuple(found)

    def _try(self, what: str, call: Callable[[], T]) -> T | None:
        """One measurement that fails does not prevent the others."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - the reason goes into the record
            own = type(error) is ValueError  # ours: it says what is missing
            self.skipped[what] = first_line_of(error) if own else f"it raised {named_error(error)}"
            return None

    def record(self) -> Head | None:
        """What was measured."""
        return Head(
            rows=self.rows,
            layers=self.layers,
            hidden=self.hidden,
            features=self.features,
            logit_spread=_finite(self.logit_spread),
            loss_over_chance=_finite(self.loss_over_chance),
            reload=self.reload,
            skipped=self.skipped or None,
        )


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def rows_of(batch: Any) -> int:
    """Rows of a batch."""
    inputs, labels = split(batch)
    if isinstance(labels, torch.Tensor) and labels.dim():
        return len(labels)
    values = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, (tuple, list)) else [inputs]
    return next((len(v) for v in values if isinstance(v, torch.Tensor) and v.dim()), 1)


def first_rows(batches: Any, rows: int) -> list[Any]:
    """The first ``rows`` rows of some batches, as batches."""
    found, left = [], rows
    for batch in batches:
        if left <= 0:
            break
        count = rows_of(batch)
        found.append(batch if count <= left else take_rows(batch, range(left)))
        left -= count
    return found
