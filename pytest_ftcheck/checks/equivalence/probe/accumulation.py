"""The gradient of one batch, and that of the same rows in micro-batches, accumulated."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ....core.formatting import first_line_of
from ....instruments.batches import rows_of, split, take_rows, tensors_in
from ....instruments.global_state import seed_everything
from ....instruments.model_outputs import as_loss
from ....instruments.probe import LeftOut, Probe, ProbeContext
from ....instruments.tasks import IGNORED
from ....instruments.undisturbed import quiet, undisturbed
from ..record import Accumulated, Accumulation, rounding_limit
from .module_state import ModuleState

#: Micro-batches, where `Intent.accumulation` declares no number.
MICRO_BATCHES = 4
#: Passes over all rows, at most: both gradients, rounding, one after another, with fixed statistics, and what finds the reason.
PASSES = 10
#: A module mixes rows if an output for the same rows changes by this share of its size (float32 rounds at 1e-7).
MIXED = 1e-4


class AccumulationProbe(Probe):
    """Computes the gradient of a batch at once, and in micro-batches."""

    name = "accumulation"
    order = 92
    default = False

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.batch = context.fixed_batches[0]
        count = rows_of(self.batch)
        if count < 2:
            raise LeftOut("the batch has a single row, which cannot be divided into micro-batches")
        if any(t.dim() and len(t) != count for t in tensors_in(self.batch)):
            raise LeftOut("a tensor of the batch has another length than its rows, so the batch cannot be divided")
        parts = min(count, context.intent.accumulation or MICRO_BATCHES)
        parts = max(parts, 2)
        #: Row numbers of each micro-batch: neighbours, as in a DataLoader with a smaller batch size.
        self.places = [list(range(count * i // parts, count * (i + 1) // parts)) for i in range(parts)]
        self.micro = [take_rows(self.batch, rows) for rows in self.places]
        self.parameters = [p for p in context.model.parameters() if p.requires_grad]
        #: Up to here a difference may be rounding; see `rounding_limit`.
        self.limit = math.nan
        self.accumulation: Accumulation | None = None

    def cost(self) -> float:
        """Forward and backward of all rows, several times."""
        return 3.0 * rows_of(self.batch) * PASSES

    def before(self) -> None:
        """Keep what the model holds outside its weights: states of earlier batches must not be taken for an effect of this one."""
        self.start = ModuleState(self.context.model)

    def after(self) -> None:
        """Measure with the weights at the end of the run: rows that a new head cannot yet distinguish would hide a difference."""
        model = self.context.model
        statistics = self._keeping_statistics()
        whole, parts = self._gradient(self.batch, statistics), self._each(statistics)
        length = _length(whole)
        rounding = self._rounding(whole, statistics) / length if length else math.nan
        self.limit = rounding_limit(rounding)
        accumulated = self._accumulated(whole, parts)
        in_turn, raised = self._in_turn(whole, statistics)
        fixed: Accumulated | None = None
        mixes: tuple[str | None, str] = (None, "")
        if statistics and not self._agrees(accumulated):
            fixed = self._accumulated(self._gradient(self.batch, []), self._each([]))
        if not self._agrees(fixed or accumulated):
            mixes = self._mixes_rows()
        carried: tuple[str, ...] = ()
        if self._agrees(accumulated) and not self._agrees(in_turn):
            carried = self._carried(whole, statistics)
        self.accumulation = Accumulation(
            rows=tuple(len(rows) for rows in self.places),
            labels=tuple(self._counts(0)),
            gradient=length,
            rounding=rounding,
            accumulated=accumulated,
            in_turn=in_turn,
            in_turn_raised=raised,
            statistics=tuple(name for name, module in model.named_modules() if module in statistics),
            fixed_statistics=fixed,
            mixes_rows=mixes[0],
            mixes_rows_class=mixes[1],
            carried=carried,
        )

    def _rounding(self, whole: Sequence[torch.Tensor], statistics: Sequence[nn.Module]) -> float:
        """The largest difference of the same gradient with the rows in another order."""
        count = rows_of(self.batch)
        orders = [range(count - 1, -1, -1), [*range(count // 2, count), *range(count // 2)]]
        others = [self._gradient(take_rows(self.batch, order), statistics) for order in orders]
        return max(_length([a - b for a, b in zip(whole, other, strict=True)]) for other in others)

    def _agrees(self, accumulated: Accumulated) -> bool:
        return accumulated.averaged[1] <= self.limit

    def record(self) -> Accumulation | None:
        """What was measured."""
        return self.accumulation

    # ------------------------------------------------------------------ gradients
    @contextlib.contextmanager
    def _mode(self, statistics: Sequence[nn.Module]) -> Iterator[None]:
        """Dropout off, these modules in training mode, buffers and attributes as the run began; all is restored afterwards."""
        with quiet(self.context.model, grad=True), torch.backends.cudnn.flags(enabled=False):
            # cudnn's RNNs have no gradients in evaluation mode
            self.start.put_back()
            for module in statistics:
                module.training = True
            seed_everything(0)
            yield

    def _gradient(self, batch: Any, statistics: Sequence[nn.Module]) -> list[torch.Tensor]:
        with self._mode(statistics):
            return self._computed(batch)

    def _computed(self, batch: Any) -> list[torch.Tensor]:
        loss = as_loss(self.context.reader.loss(batch)[0])
        if not loss.requires_grad:
            raise LeftOut("the loss has no graph, so there is no gradient")
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g.detach().to_dense() if g.is_sparse else g.detach()
            for p, g in zip(self.parameters, found, strict=True)
        ]

    def _each(self, statistics: Sequence[nn.Module]) -> list[list[torch.Tensor]]:
        """The gradient of each micro-batch, every time from the same state of the model."""
        return [self._gradient(batch, statistics) for batch in self.micro]

    def _in_turn(
        self, whole: Sequence[torch.Tensor], statistics: Sequence[nn.Module], put_back: Sequence[str] = ()
    ) -> tuple[Accumulated, str]:
        """The gradient of each micro-batch, one after another; ``put_back`` names what is put back in between."""
        with self._mode(statistics):
            state = ModuleState(self.context.model)
            parts: list[list[torch.Tensor]] = []
            for batch in self.micro:
                try:
                    parts.append(self._computed(batch))
                except RuntimeError as error:
                    if not parts:
                        raise
                    return Accumulated({"rows": math.inf}, (), math.inf), first_line_of(error, 160)
                state.put_back(put_back)
        return self._accumulated(whole, parts), ""

    # ------------------------------------------------------------------ comparison
    def _accumulated(self, whole: Sequence[torch.Tensor], parts: Sequence[Sequence[torch.Tensor]]) -> Accumulated:
        """All errors from the products of the gradients with each other, so that no further gradient is kept."""
        every = [whole, *parts]
        products = torch.tensor([[_product(a, b) for b in every] for a in every], dtype=torch.float64, device="cpu")
        square = float(products[0, 0])

        def error(weights: Sequence[float]) -> float:
            signed = torch.tensor([-1.0, *weights], dtype=torch.float64, device="cpu")
            return math.sqrt(max(0.0, float(signed @ products @ signed)) / square) if square > 0 else math.nan

        counts = {"rows": [len(rows) for rows in self.places], "labels": self._counts(0)}
        counts["shifted labels"] = self._counts(1)
        errors = {
            name: error([c / sum(found) for c in found]) for name, found in counts.items() if found and sum(found)
        }
        errors["sum"] = error([1.0] * len(parts))
        if not bool(torch.isfinite(products).all()):
            return Accumulated(dict.fromkeys(errors, math.nan), (), math.nan)
        fit = torch.linalg.lstsq(products[1:, 1:], products[1:, 0], driver="gelsd").solution.tolist()
        return Accumulated(errors, tuple(fit), error(fit))

    def _counts(self, first: int) -> list[int]:
        """Labels that count in each micro-batch, from this column on; empty where they cannot be read, or have no columns."""
        counts = []
        for batch in self.micro:
            labels = split(batch)[1]
            if not isinstance(labels, torch.Tensor) or not labels.dim() or (first and labels.dim() < 2):
                return []
            labels = labels[:, first:] if first else labels
            whole_numbers = not labels.is_floating_point()
            counts.append(int((labels != IGNORED).sum()) if whole_numbers else labels.numel())
        return counts

    # ------------------------------------------------------------------ the reason
    def _keeping_statistics(self) -> list[nn.Module]:
        """Modules in training mode whose buffers a pass of the training changes."""
        model = self.context.model
        with undisturbed(model):
            self.start.put_back()
            before = ModuleState(model)
            with torch.no_grad():
                self.context.reader.loss(self.batch)
            changed = set(before.changed())
        return [
            module
            for prefix, module in model.named_modules()
            if module.training and any(f"{prefix}.{key}".lstrip(".") in changed for key in module._buffers)
        ]

    def _mixes_rows(self) -> tuple[str | None, str]:
        """The first module whose output for the rows of the first micro-batch depends on the others; its class."""
        large, small = self._outputs(self.batch), self._outputs(self.micro[0])
        count, few = sum(len(rows) for rows in self.places), len(self.places[0])
        for (name, kind, whole), (other, _, part) in zip(large, small, strict=False):
            if name != other:
                return None, ""
            if any(_differ(a, b, count, few) for a, b in zip(whole, part, strict=False)):
                return name, kind
        return None, ""

    def _outputs(self, batch: Any) -> list[tuple[str, str, list[torch.Tensor]]]:
        """What every module but the model itself returns, in order of computation: name, class, tensors."""
        found: list[tuple[str, str, list[torch.Tensor]]] = []
        handles = []
        for name, module in self.context.model.named_modules():
            if not name:
                continue

            def note(m: nn.Module, _: Any, output: Any, name: str = name) -> None:
                found.append((name, type(m).__name__, [t.detach() for t in tensors_in(output)]))

            handles.append(module.register_forward_hook(note))
        try:
            with self._mode([]), torch.no_grad():
                self.context.reader.loss(batch)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _carried(self, whole: Sequence[torch.Tensor], statistics: Sequence[nn.Module]) -> tuple[str, ...]:
        """What has to be put back after each micro-batch, so that they add up to the large batch's gradient."""
        with self._mode(statistics):
            state = ModuleState(self.context.model)
            with torch.no_grad():
                self.context.reader.loss(self.micro[0])
            changed = state.changed()
        if not changed or not self._agrees(self._in_turn(whole, statistics, changed)[0]):
            return ()
        needed = []
        for name in changed:
            others = [other for other in changed if other != name]
            if not self._agrees(self._in_turn(whole, statistics, others)[0]):
                needed.append(name)
        return tuple(needed or changed)


def _product(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    return math.fsum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def _length(gradient: Sequence[torch.Tensor]) -> float:
    return math.sqrt(_product(gradient, gradient))


def _differ(large: torch.Tensor, small: torch.Tensor, rows: int, few: int) -> bool:
    """Whether two outputs differ for the rows that both have; False where the rows cannot be found in them."""
    if large.dim() != small.dim() or not large.is_floating_point() or not small.numel():
        return False
    sizes = [(i, a, b) for i, (a, b) in enumerate(zip(large.shape, small.shape, strict=True)) if a != b]
    if len(sizes) != 1 or sizes[0][1] * few != sizes[0][2] * rows:
        return False
    dimension, _, length = sizes[0]
    same_rows = large.narrow(dimension, 0, length).double()
    size = float(same_rows.square().mean().sqrt())
    return float((same_rows - small.double()).abs().max()) > MIXED * size
