"""Tags that are on or off."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F  # noqa: N812

from .form import Form, same_shape
from .interface import Example, TaskReader


class Tags(Form):
    """Labels that are 0 or 1, one for each of several outputs; binary cross-entropy."""

    name = "multi_label"

    def matches(self, logits: torch.Tensor, labels: torch.Tensor, *, regression: bool) -> bool:  # noqa: ARG002
        """Nothing but 0 and 1 in the shape of the logits."""
        return same_shape(logits, labels) and bool(((labels == 0) | (labels == 1)).all())

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy, a mean over all tags."""
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))

    def loss_in_words(self, logits: torch.Tensor, labels: torch.Tensor) -> str:  # noqa: ARG002
        """What `loss` computes."""
        return "binary cross-entropy of the logits, one a tag"

    def prior_entropy(self, labels: Sequence[torch.Tensor]) -> float | None:
        """Entropy of the tags' frequencies, a mean over the tags."""
        p = torch.cat([y.cpu().double() for y in labels]).mean(0).clamp(1e-12, 1 - 1e-12)
        return float(-(p * p.log() + (1 - p) * (1 - p).log()).mean())


class MultiLabel(TaskReader):
    """Tags, on or off, for each row."""

    name = "multi label"
    labels_are = "tags that are on or off, for each row"

    def fits(self, example: Example) -> bool:
        """Whatever is read as tags."""
        return example.form == Tags.name
