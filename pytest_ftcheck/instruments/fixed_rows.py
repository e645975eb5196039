"""The loss and the metrics on fixed rows, with dropout off: before, during and after a run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from ..core.formatting import text_of
from ..core.observations import Descent, Metric, ProbeLoss, ProbeLossPoint
from .batches import device_of, rows_of, split, to_device
from .field_metrics import measure_field
from .metrics import MOST_TAKEN, MetricFn, measure
from .reader import Reader
from .recall import Recall
from .task_readers.class_probabilities import most_probable
from .task_readers.registered import prior_entropy
from .tasks import IGNORED
from .undisturbed import quiet

#: Training batches whose rows are evaluated.
BATCHES = 2
#: Numbers of all outputs up to which rows are made as wide as the widest: 200 MB.
MOST_CELLS = 50_000_000
#: Steps whose own batch is evaluated just before and just after them.
DESCENTS = 20
#: Where a pass is costly: this many descents without an exception settle the sign test: 1 in 128 by chance, less than the test's 1 in 100.
#: Each is more than the loss's rounding, as the test counts it.
SETTLED, ROUNDING = 7, 1e-6
#: There, after `FIRST` of them, the first point of the run is waited for, if it comes within `WAIT` steps. Where the loss on the fixed rows
#: is down by `CLEAR` at a point (twice the limit of `loss_decreases`, which then passes whatever the descents are), no descent and no point
#: before the end adds anything.
FIRST, WAIT, CLEAR = 1, 5, 0.10
#: Rows of those that the metrics are taken on for which the values before the head are kept: as many as the ablations are measured on.
KEPT_ROWS = 64


class LossTracker:
    """The loss on fixed rows with dropout off, before, during and after the run.

    :param sparing: no more passes than decide.
    """

    def __init__(
        self,
        model: nn.Module,
        reader: Reader,
        batches: Sequence[Any],
        source: str,
        steps: int,
        recall: Recall | None = None,
        *,
        sparing: bool = False,
    ) -> None:
        self.model, self.reader, self.source, self._recall = model, reader, source, recall
        self._sparing = sparing
        self.batches = [to_device(b, device_of(model)) for b in batches]
        self.rows = sum(rows_of(b) for b in self.batches)
        self.points: list[ProbeLossPoint] = []
        self.descents: list[Descent] = []
        self.skipped: str | None = None
        self._guessed: list[
            tuple[torch.Tensor, torch.Tensor]
        ] = []  # at the last point: predicted classes and labels of each batch
        #: Numbers of steps after which the rows may be evaluated.
        self.when = {round(steps * q) for q in (0.25, 0.5, 0.75)}

    def wants_point(self, steps: int) -> bool:
        """Whether the fixed rows are to be evaluated after so many optimizer steps of a run that goes on."""
        return steps in self.when and not (self._sparing and self._clearly_down())

    def wants_descent(self, steps: int) -> bool:
        """Whether the step after so many is to be evaluated on its own batch."""
        if len(self.descents) >= DESCENTS or not self._sparing:
            return len(self.descents) < DESCENTS
        clear = sum(d.before - d.after > ROUNDING * abs(d.before) for d in self.descents)
        exceptions = any(d.after - d.before > ROUNDING * abs(d.before) for d in self.descents)  # a rate of 0 is none
        if clear >= SETTLED and not exceptions:
            return False
        waits = clear >= FIRST and not exceptions and steps < min(self.when) <= WAIT
        return not waits and not self._clearly_down()

    def _clearly_down(self) -> bool:
        """Whether the loss on the fixed rows, and the standard loss, were clearly lower at some point than at first."""

        def down(first: float | None, now: float | None) -> bool:
            return first is None or now is None or now < first - CLEAR * abs(first)

        return any(
            down(self.points[0].loss, p.loss) and down(self.points[0].reference, p.reference) for p in self.points[1:]
        )

    def evaluate(self, step: int) -> None:
        """Evaluate the fixed rows after so many optimizer steps."""
        if self.skipped:
            return
        try:
            loss, reference = self._mean_loss(self.batches, reference=True)
        except Exception as error:  # noqa: BLE001 - the user's model may do anything in eval mode
            self.skipped = f"{type(error).__name__}: {text_of(error).strip()[:200]}"
            return
        self.points = [p for p in self.points if p.step != step] + [ProbeLossPoint(step, loss, reference)]

    def loss_of(self, batches: Sequence[Any]) -> float | None:
        """Loss of other batches, evaluated the same way; None if that failed."""
        if self.skipped:
            return None
        try:
            return self._mean_loss([to_device(b, device_of(self.model)) for b in batches], reference=False)[0]
        except Exception as error:  # noqa: BLE001
            self.skipped = f"{type(error).__name__}: {text_of(error).strip()[:200]}"
            return None

    def _mean_loss(self, batches: Sequence[Any], *, reference: bool) -> tuple[float, float | None]:
        """Their mean loss, and that of the standard loss: it may need a second forward pass, so it is None unless asked for."""
        total = standard = 0.0
        weight, known = 0, reference
        guessed: list[tuple[torch.Tensor, torch.Tensor]] = []
        recalling = contextlib.nullcontext() if self._recall is None else self._recall.recalling()
        given: tuple[torch.Tensor, torch.Tensor | None] | None = None
        with quiet(self.model), recalling:
            for batch in batches:
                loss, logits = self.reader.loss(batch)
                given = (loss, logits) if given is None else given
                rows = max(1, rows_of(batch))
                total, weight = total + float(loss) * rows, weight + rows
                if not known:
                    continue
                labels = split(batch)[1]
                if logits is None and self.reader.task is not None:
                    logits = self.reader.logits(batch)
                if logits is None or self.reader.task is None or not isinstance(labels, torch.Tensor):
                    known = False
                else:
                    standard += float(self.reader.reference(logits.float(), labels)) * rows
                    task, classes = most_probable(self.reader.task, labels)
                    if task == "single_label" and logits.dim() == 2 and classes.dim() == 1:
                        guessed.append((logits.argmax(1).cpu(), classes.cpu()))
        if reference:
            self._guessed = guessed
        if self._recall is not None and given is not None:
            self._recall.check(batches[0], *given)
        return total / weight, standard / weight if known else None

    def _prior_entropy(self) -> float | None:
        labels = [split(b)[1] for b in self.batches]
        if not all(isinstance(y, torch.Tensor) for y in labels):
            return None
        return prior_entropy(self.reader.task, [self.reader.targets(y) for y in labels])

    def record(self) -> ProbeLoss:
        """The measured losses, as plain data."""
        return ProbeLoss(
            rows=self.rows,
            source=self.source,
            points=tuple(self.points),
            descents=tuple(self.descents),
            prior_entropy=self._prior_entropy(),
            skipped=self.skipped,
            right=self._right(),
        )

    def _right(self) -> tuple[tuple[int, int], ...]:
        """Of each class, the rows and those of them that are predicted as it."""
        if self.skipped or len(self._guessed) != len(self.batches):
            return ()
        guess, label = (torch.cat(each) for each in zip(*self._guessed, strict=True))
        classes = int(label.max()) + 1 if len(label) and not label.is_floating_point() else 0
        if not 0 < classes <= MOST_TAKEN:
            return ()
        counted = label >= 0
        rows = torch.bincount(label[counted], minlength=classes)
        hits = torch.bincount(label[counted & (guess == label)], minlength=classes)
        return tuple(zip(rows.tolist(), hits.tolist(), strict=True))


class MetricTracker:
    """Metrics on the same rows before and after the run."""

    def __init__(
        self,
        model: nn.Module,
        reader: Reader,
        batches: Sequence[Any],
        source: str,
        custom: Mapping[str, MetricFn] | None,
        recall: Recall | None = None,
    ) -> None:
        self.model, self.reader, self.batches = model, reader, batches
        self.source, self.custom, self._recall = source, custom, recall
        self.notes: list[str] = []
        self.first = self._gather()

    def _gather(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        try:
            return gather_logits(self.model, self.reader, self.batches, self._recall)
        except BatchRefused as refused:
            # without held-out batches, it is a batch of the training that no metric is taken on
            of = f"eval_batches[{refused.number}]: " if self.source == "held-out rows" else ""
            self.notes.append(f"metrics skipped: {of}{refused}")
            return None
        except Exception as error:  # noqa: BLE001 - no metric is worth breaking the run for
            self.notes.append(f"metrics skipped: {type(error).__name__}: {text_of(error).strip()[:200]}")
            return None

    def record(self) -> tuple[Metric, ...]:
        """Metrics now beside those at the start."""
        last = self._gather() if self.first is not None else None
        if self.first is None or last is None:
            if self.custom and not self.notes:
                self.notes.append("metrics skipped: no logits or labels could be read")
            return ()
        try:
            with np.errstate(all="ignore"):  # a diverged run has NaN among its scores
                found = measure(self.reader.task, self.first[0], last[0], last[1], self.source, self.custom)
                return found if self.custom is not None else (*found, *self._of_field(self.first[0], *last))
        except ValueError as error:
            self.notes.append(f"metrics skipped: {error}")
            return ()

    def _of_field(self, first: torch.Tensor, last: torch.Tensor, labels: torch.Tensor) -> tuple[Metric, ...]:
        lower = self.reader.task_reader.lower_is_better if self.reader.task_reader is not None else ()
        found: list[Metric] = []
        for name, score in self.reader.field_metrics.items():
            try:
                found += measure_field({name: score}, lower, (first, last), labels, self.source)
            except ValueError as error:
                self.notes.append(f"a metric is left out: {error}")
        return tuple(found)


class BatchRefused(Exception):
    """The model raised an exception at one of the batches, whose number it is."""

    def __init__(self, number: int, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {text_of(error).strip()[:200]}")
        self.number, self.error = number, error


def gather_logits(
    model: nn.Module, reader: Reader, batches: Sequence[Any], recall: Recall | None = None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Logits and labels of all rows, on the CPU, dropout off; None where the model gives none.

    :param recall: keeps what stands before the head of the first rows, which later measurements are of.
    :raises BatchRefused: the model cannot be called with one of them.
    """
    outputs, targets = [], []
    rows = 0
    with quiet(model):
        for number, batch in enumerate(batches):
            moved = to_device(batch, device_of(model))
            with contextlib.nullcontext() if recall is None or rows >= KEPT_ROWS else recall.recalling():
                try:
                    logits, labels = reader.logits(moved), split(moved)[1]
                except Exception as error:
                    raise BatchRefused(number, error) from error
            rows += rows_of(moved)
            if logits is None or not isinstance(labels, torch.Tensor):
                return None
            outputs.append(logits.detach().float().cpu())
            targets.append(reader.targets(labels.detach().cpu()))
    return joined(outputs, targets)


def joined(outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs and labels of several batches as one. Rows of a narrower batch get tokens whose labels do not count; where that would
    fill the memory, there is one line a label instead.

    >>> outputs, labels = joined([torch.zeros(2, 5, 3), torch.zeros(2, 4, 3)], [torch.zeros(2, 5), torch.zeros(2, 4)])
    >>> outputs.shape, labels[2].tolist()
    (torch.Size([4, 5, 3]), [0.0, 0.0, 0.0, 0.0, -100.0])

    Where the classes are the positions of a row, positions that a shorter row does not have cannot be chosen:

    >>> joined([torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)], [torch.zeros(1, 2), torch.zeros(1, 2)])[0][0, 0]
    tensor([0., 0., 0., -inf])
    """
    shapes = {o.shape[1:] for o in outputs}
    if len(shapes) > 1 and all(len(shape) == 2 for shape in shapes):
        tokens, classes = (max(shape[i] for shape in shapes) for i in range(2))
        if len({shape[1] for shape in shapes}) > 1:  # elsewhere a class that is never predicted
            outputs = [F.pad(o, (0, classes - o.shape[-1]), value=-torch.inf) for o in outputs]
        if tokens * classes * sum(map(len, outputs)) > MOST_CELLS:
            return torch.cat([o.flatten(0, 1) for o in outputs]), torch.cat([t.flatten() for t in targets])
        outputs = [F.pad(o, (0, 0, 0, tokens - o.shape[1])) for o in outputs]
        targets = [F.pad(t, (0, tokens - t.shape[1]), value=IGNORED) if t.dim() == 2 else t for t in targets]
    return torch.cat(list(outputs)), torch.cat(list(targets))
