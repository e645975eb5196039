"""One class for each label: of a row, or of a place in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F  # noqa: N812

from ..tasks import IGNORED
from .form import Form, one_each, whole
from .interface import Example, TaskReader


class Classes(Form):
    """Whole numbers are classes; cross-entropy, or binary cross-entropy of one logit. -100 does not count."""

    name = "single_label"

    def matches(self, logits: torch.Tensor, labels: torch.Tensor, *, regression: bool) -> bool:
        """Whole numbers, one for each place."""
        return whole(labels) and not regression and one_each(logits, labels)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy."""
        if logits.numel() == labels.numel():
            return F.binary_cross_entropy_with_logits(logits.reshape(labels.shape), labels.to(logits.dtype))
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long(), ignore_index=IGNORED)

    def loss_in_words(self, logits: torch.Tensor, labels: torch.Tensor) -> str:
        """What `loss` computes."""
        one_logit = logits.numel() == labels.numel()
        return "binary cross-entropy of one logit" if one_logit else "cross-entropy of the logits"

    def prior_entropy(self, labels: Sequence[torch.Tensor]) -> float | None:
        """Entropy of the class frequencies."""
        flat = torch.cat([y.reshape(-1).cpu() for y in labels]).long()
        counts = torch.bincount(flat[flat != IGNORED]).double()
        p = counts[counts > 0] / counts.sum()
        return float(-(p * p.log()).sum()) if len(p) else None


class SingleLabel(TaskReader):
    """A class for each row."""

    name = "single label"
    labels_are = "a class for each row"

    def fits(self, example: Example) -> bool:
        """Whatever is read as classes."""
        return example.form == Classes.name
