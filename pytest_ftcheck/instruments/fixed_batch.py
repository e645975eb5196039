"""Forward-only probes on a fixed set of rows: what they measure is judged elsewhere."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.observations import Descent, Metric, ProbePoint, ProbeRows, Tensor
from .batches import IGNORED, Reader, device_of, row_count, split, take_rows, to_device
from .metrics import MetricFn, measure
from .snapshots import quiet

#: Batches of the probe, and steps whose own batch is evaluated before and after.
BATCHES = 2
DESCENTS = 20
#: Of a model with so many parameters, rounding noise is told from gradients on so many rows: a backward pass there is no small thing.
LARGE, FEW_ROWS = 20_000_000, 2


class FixedProbe:
    """The loss on fixed rows with dropout off, before, during and after the run."""

    def __init__(self, model: nn.Module, reader: Reader, batches: Sequence[Any], source: str, steps: int) -> None:
        self.model, self.reader, self.source = model, reader, source
        self.batches = [to_device(b, device_of(model)) for b in batches]
        self.rows = sum(_rows(b) for b in self.batches)
        self.points: list[ProbePoint] = []
        self.descents: list[Descent] = []
        self.skipped: str | None = None
        self.when = {round(steps * q) for q in (0.25, 0.5, 0.75)}

    def look(self, step: int) -> None:
        """Add a point."""
        if self.skipped:
            return
        try:
            loss, reference = self._evaluate(self.batches)
        except Exception as error:  # noqa: BLE001 - the user's model may do anything in eval mode
            self.skipped = f"{type(error).__name__}: {str(error).strip()[:200]}"
            return
        self.points = [p for p in self.points if p.step != step] + [ProbePoint(step, loss, reference)]

    def loss_of(self, batches: Sequence[Any]) -> float | None:
        """Loss of other batches, the same way; None if that failed."""
        if self.skipped:
            return None
        try:
            return self._evaluate([to_device(b, device_of(self.model)) for b in batches])[0]
        except Exception as error:  # noqa: BLE001
            self.skipped = f"{type(error).__name__}: {str(error).strip()[:200]}"
            return None

    def _evaluate(self, batches: Sequence[Any]) -> tuple[float, float | None]:
        total = reference = 0.0
        weight, known = 0, True
        with quiet(self.model):
            for batch in batches:
                loss, logits = self.reader.loss(batch)
                rows = max(1, _rows(batch))
                total, weight = total + float(loss) * rows, weight + rows
                labels = split(batch)[1]
                if logits is None and self.reader.task is not None:
                    logits = self.reader.logits(batch)
                if logits is None or self.reader.task is None or not isinstance(labels, torch.Tensor):
                    known = False
                else:
                    reference += float(self.reader.reference(logits.float(), labels)) * rows
        return total / weight, reference / weight if known else None

    def record(self) -> ProbeRows:
        """What was measured, as plain data."""
        return ProbeRows(
            rows=self.rows,
            source=self.source,
            points=tuple(self.points),
            descents=tuple(self.descents),
            prior_entropy=prior_entropy(self.reader.task, [split(b)[1] for b in self.batches]),
            skipped=self.skipped,
        )


def _rows(batch: Any) -> int:
    inputs, labels = split(batch)
    if isinstance(labels, torch.Tensor) and labels.dim():
        return len(labels)
    return row_count(inputs) or 1


def prior_entropy(task: str | None, labels: Sequence[Any]) -> float | None:
    """Entropy of the label frequencies in nats: what a model scores that knows the class prior and nothing else.

    >>> round(prior_entropy("single_label", [torch.tensor([0, 1, 0, 1])]), 4)
    0.6931
    """
    if task not in ("single_label", "multi_label") or not all(isinstance(y, torch.Tensor) for y in labels):
        return None
    if task == "single_label":
        flat = torch.cat([y.reshape(-1).cpu() for y in labels]).long()
        counts = torch.bincount(flat[flat != IGNORED]).double()
        p = counts[counts > 0] / counts.sum()
        return float(-(p * p.log()).sum()) if len(p) else None
    p = torch.cat([y.cpu().double() for y in labels]).mean(0).clamp(1e-12, 1 - 1e-12)
    return float(-(p * p.log() + (1 - p) * (1 - p).log()).mean())


def gather_logits(model: nn.Module, reader: Reader, batches: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Logits and labels of all rows, on the CPU, dropout off; None where they are not to be had."""
    outputs, targets = [], []
    with quiet(model):
        for batch in batches:
            moved = to_device(batch, device_of(model))
            logits, labels = reader.logits(moved), split(moved)[1]
            if logits is None or not isinstance(labels, torch.Tensor):
                return None
            outputs.append(logits.detach().float().cpu())
            targets.append(labels.detach().cpu())
    if len({o.shape[1:] for o in outputs}) > 1 and outputs[0].dim() > 2:  # tokens, padded to different widths
        outputs, targets = [o.reshape(-1, o.shape[-1]) for o in outputs], [t.reshape(-1) for t in targets]
    return torch.cat(outputs), torch.cat(targets)


class MetricProbe:
    """Metrics on the same rows before and after the run."""

    def __init__(
        self,
        model: nn.Module,
        reader: Reader,
        batches: Sequence[Any],
        source: str,
        custom: Mapping[str, MetricFn] | None,
    ) -> None:
        self.model, self.reader, self.batches, self.source, self.custom = (
            model,
            reader,
            batches,
            source,
            custom,
        )
        self.notes: list[str] = []
        self.first = self._gather()

    def _gather(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        try:
            return gather_logits(self.model, self.reader, self.batches)
        except Exception as error:  # noqa: BLE001 - no metric is worth breaking the run for
            self.notes.append(f"metrics skipped: {type(error).__name__}: {str(error).strip()[:200]}")
            return None

    def record(self) -> tuple[Metric, ...]:
        """Metrics now beside those at the start."""
        last = self._gather() if self.first is not None else None
        if self.first is None or last is None:
            return ()
        try:
            with np.errstate(all="ignore"):  # of a run that has diverged some scores are no numbers
                return measure(self.reader.task, self.first[0], last[0], last[1], self.source, self.custom)
        except ValueError as error:
            self.notes.append(f"metrics skipped: {error}")
            return ()


def rounding_noise(
    model: nn.Module, reader: Reader, batch: Any, parameters: Sequence[nn.Parameter]
) -> list[float | None]:
    """Relative difference between the gradients of ``loss`` and of ``3 * loss / 3``, dropout off, a number a parameter.

    The two are equal in exact arithmetic; rounding noise differs by 0.38 or more, real gradients by 2.4e-4 or
    less, whatever their size (benchmarks/architectures.py). None where it could not be measured.
    """
    if not parameters:
        return []
    batch = to_device(batch, device_of(model))
    with quiet(model, grad=True):
        try:
            one = torch.autograd.grad(reader.loss(batch)[0], parameters, allow_unused=True)
            three = torch.autograd.grad(3 * reader.loss(batch)[0], parameters, allow_unused=True)
        except Exception:  # noqa: BLE001 - no graph, or a model that cannot run backward in eval mode
            return [None] * len(parameters)
    out: list[float | None] = []
    for a, b in zip(one, three, strict=True):
        size = 0.0 if a is None else float(torch.linalg.vector_norm(a.float()))
        if a is None or b is None or size == 0 or not math.isfinite(size):
            out.append(None)
        else:
            out.append(float(torch.linalg.vector_norm(a.double() - b.double() / 3)) / size)
    return out


def small_gradients(model: nn.Module, reader: Reader, batch: Any, tensors: Sequence[Tensor]) -> dict[str, float | None]:
    """:func:`rounding_noise` of the tensors whose gradient is small beside the largest; the others are real beyond doubt."""
    largest = max((t.gradients.max_norm for t in tensors), default=0.0)
    now = dict(model.named_parameters())
    small = [
        t.name for t in tensors if t.trainable_last and t.name in now and 0 < t.gradients.max_norm < 1e-4 * largest
    ]
    if not small:
        return {}
    if sum(p.numel() for p in now.values()) >= LARGE:
        batch = _few(batch)
    return dict(zip(small, rounding_noise(model, reader, batch, [now[n] for n in small]), strict=True))


def _few(batch: Any) -> Any:
    """The first rows of a batch; all, where they cannot be taken apart."""
    rows = _rows(batch)
    if rows <= FEW_ROWS:
        return batch
    with contextlib.suppress(Exception):
        few = take_rows(batch, range(FEW_ROWS))
        return few if _rows(few) == FEW_ROWS else batch
    return batch
