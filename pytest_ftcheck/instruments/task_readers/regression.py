"""Numbers that are to be predicted."""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

from .form import Form, one_each, same_shape, whole
from .interface import Example, TaskReader


class Numbers(Form):
    """Floats, one for each output; mean squared error."""

    name = "regression"

    def matches(self, logits: torch.Tensor, labels: torch.Tensor, *, regression: bool) -> bool:
        """As many labels as outputs, and floats, unless it is known that they are quantities."""
        if same_shape(logits, labels):
            return not whole(labels) and not bool(((labels == 0) | (labels == 1)).all())
        if not one_each(logits, labels) or labels.is_complex() or logits.numel() != labels.numel():
            return False
        return regression or not whole(labels)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean squared error."""
        return F.mse_loss(logits.reshape(labels.shape), labels.to(logits.dtype))

    def loss_in_words(self, logits: torch.Tensor, labels: torch.Tensor) -> str:  # noqa: ARG002
        """What `loss` computes."""
        return "mean squared error"


class Regression(TaskReader):
    """A number for each row."""

    name = "regression"
    labels_are = "numbers, for each row"

    def fits(self, example: Example) -> bool:
        """Whatever is read as numbers."""
        return example.form == Numbers.name
