"""`Form`: one of the four ways in which labels and logits are compared, which every check knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch


class Form(ABC):
    """A way of comparing labels with logits; the task readers of `single_label`, `multi_label`,
    `class_probabilities` and `regression` have one each."""

    name: str

    @abstractmethod
    def matches(self, logits: torch.Tensor, labels: torch.Tensor, *, regression: bool) -> bool:
        """Whether labels and logits, as they look, are compared so.

        :param regression: whole numbers are quantities and no classes.
        """

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The standard loss, a mean over the labels."""

    @abstractmethod
    def loss_in_words(self, logits: torch.Tensor, labels: torch.Tensor) -> str:
        """What `loss` computes of these."""

    def prior_entropy(self, labels: Sequence[torch.Tensor]) -> float | None:  # noqa: ARG002
        """Entropy of the label frequencies in nats: the loss of predicting the class prior for every row; None: there are no classes."""
        return None


def same_shape(logits: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether there is a label for each of several outputs."""
    return logits.dim() >= 2 and logits.shape == labels.shape and logits.shape[-1] > 1


def one_each(logits: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether there is one label for all outputs of a place, or for its only one."""
    return labels.shape in (logits.shape[:-1], logits.shape) and not same_shape(logits, labels)


def whole(labels: torch.Tensor) -> bool:
    """Whether labels are whole numbers, by their type."""
    return not labels.is_floating_point() and not labels.is_complex()
