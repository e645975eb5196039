"""Labels flattened to the rows of the logits, and converted back to the form of the batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from ....instruments.batches import split, with_labels
from ....instruments.probe import ProbeContext
from ....instruments.tasks import IGNORED
from ..record import OF_NO_LABELS

#: What nearly certain class probabilities give to all classes together: their logarithm is finite, and cross-entropy's gradient is that of
#: one label to a cosine of 1 - 1e-6 at logits of spread 1.5.
CLEAR = 1e-3
#: Why there are none.
OF_EMBEDDINGS = "the outputs are embeddings, and no logits"


@dataclasses.dataclass(frozen=True)
class Targets:
    """Labels, flat: one row of ``y`` for each row of logits."""

    kind: str
    #: Classes (single, binary: long), tags or numbers (float), in the shape of flat logits' rows.
    y: torch.Tensor
    #: Rows that count (label not ignored).
    keep: torch.Tensor
    #: In the form of the batch, each at the position of the logits that it is compared with.
    labels: torch.Tensor
    shape: torch.Size
    outputs: int
    #: As the batch has them, and how many positions later than in ``labels``.
    of_batch: torch.Tensor
    shift: int = 0
    #: What a row's label gives to all classes together, where labels are class probabilities.
    smoothing: float = 0.0

    def flat(self, z: torch.Tensor) -> torch.Tensor:
        """Logits or their gradient, one row a label."""
        return z.reshape(-1, self.outputs) if self.kind != "binary" and self.outputs > 1 else z.reshape(-1)

    def sign(self, y: torch.Tensor) -> torch.Tensor:
        """+1 where the logit should be high, -1 where low, flat."""
        if self.kind == "single":
            return 2.0 * F.one_hot(y.clamp(min=0), self.outputs).float() - 1
        return 2.0 * y.float() - 1

    def wrong(self) -> torch.Tensor:
        """A wrong answer for each label: the flipped tags; a class far from its own, for classes with an order may forgive the next one."""
        if self.kind == "single":
            return (self.y + max(1, self.outputs // 2)) % self.outputs
        return 1 - self.y

    def as_labels(self, y: torch.Tensor) -> torch.Tensor:
        """Flat classes in the form in which the batch has its labels; ignored ones stay."""
        if self.kind == "single" and self.labels.shape == self.shape and self.labels.is_floating_point():
            hot = F.one_hot(y, self.outputs).to(self.labels.dtype).reshape(self.labels.shape)
            return torch.lerp(hot, torch.full_like(hot, 1 / self.outputs), self.smoothing) if self.smoothing else hot
        new = y.to(self.labels.dtype).reshape(self.labels.shape)
        if self.kind in ("single", "binary") and not bool(self.keep.all()):
            new = torch.where(self.keep.reshape(self.labels.shape), new, self.labels)
        if not self.shift:
            return new
        return torch.cat([self.of_batch[:, : self.shift], new[:, : -self.shift]], dim=1)


def targets_of(context: ProbeContext, batch: Any, logits: torch.Tensor) -> Targets | str:
    """How labels and logits belong together; a reason, if they do not."""
    of_batch, task = split(batch)[1], context.reader.task
    if context.reader.embeddings:
        return OF_EMBEDDINGS
    if context.reader.self_supervised:
        return OF_NO_LABELS
    if not isinstance(of_batch, torch.Tensor) or task is None:
        return "labels and logits could not be matched"
    labels = context.reader.targets(of_batch)
    outputs = logits.shape[-1] if logits.dim() > 1 else 1
    if task == "single_label" and (logits.numel() == labels.numel() or outputs == 1):
        kind, y = "binary", labels.reshape(-1).long()
    elif task == "single_label":
        kind, y = "single", labels.reshape(-1).long()
    elif task == "class_probabilities":
        kind, y = "single", labels.argmax(-1).reshape(-1)
    elif task == "multi_label":
        kind, y = "tags", labels.reshape(-1, outputs).float()
        if context.intent.task != "multi_label" and _one_hot_everywhere(context):
            kind, y = "single", labels.reshape(-1, outputs).argmax(-1)
    else:
        kind = "regression"
        y = labels.float().reshape(-1, outputs) if outputs > 1 else labels.float().reshape(-1)
    keep = y != IGNORED if kind in ("single", "binary") else torch.ones(len(y), dtype=torch.bool, device=y.device)
    top = 2 if kind == "binary" else outputs
    if kind in ("single", "binary") and (not bool(keep.any()) or int(y[keep].min()) < 0 or int(y[keep].max()) >= top):
        return f"a label lies outside 0 to {top - 1}: the loss must interpret them in its own way"
    if math.prod(logits.shape) != len(y) * (1 if y.dim() == 1 and kind != "single" else outputs):
        return f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} could not be matched"
    smoothing = CLEAR if task == "class_probabilities" else 0.0
    return Targets(kind, y, keep, labels, logits.shape, outputs, of_batch, context.reader.shift, smoothing)


def with_clear_labels(batch: Any, target: Targets) -> Any:
    """The batch, with labels that are class probabilities made nearly certain of the most probable class.

    What a loss does with them is then read as of one label a row.
    """
    return with_labels(batch, target.as_labels(target.y)) if target.smoothing else batch


def _one_hot_everywhere(context: ProbeContext) -> bool:
    rows = [split(b)[1] for b in context.batches.known[:8]]
    return all(isinstance(y, torch.Tensor) and bool((y.float().sum(-1) == 1).all()) for y in rows)


def zero_weight_rows(batch: Any, rows: int) -> torch.Tensor:
    """Rows for which a vector in the batch (sample weights, a mask) is zero."""
    zero = torch.zeros(rows, dtype=torch.bool, device="cpu")
    inputs, _ = split(batch)
    values = (
        inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (tuple, list)) else [inputs]
    )
    for v in values:
        if isinstance(v, torch.Tensor) and v.numel() == rows:
            v = v.reshape(-1).cpu()
            if v.is_floating_point() or bool(((v == 0) | (v == 1)).all()):
                zero |= v == 0
    return zero
