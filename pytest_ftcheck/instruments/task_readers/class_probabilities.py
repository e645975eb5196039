"""A probability for each class: a teacher's outputs, mixed or smoothed labels, the shares of several annotators' votes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F  # noqa: N812

from .form import Form, same_shape, whole
from .interface import Example, TaskReader

#: What a row's probabilities may miss 1 by: rounded in a text (0.333), or, where that is more, by a rounding of their type for each class.
ROUNDED = 1e-3
#: The forms in which a row has one class: as its label, or as the most probable one.
ONE_CLASS = ("single_label", "class_probabilities")


class Probabilities(Form):
    """Floats from 0 to 1, one for each class, 1 in all; cross-entropy, as torch computes it with class probabilities."""

    name = "class_probabilities"

    def matches(self, logits: torch.Tensor, labels: torch.Tensor, *, regression: bool) -> bool:  # noqa: ARG002
        """A distribution over the outputs in each row. Nothing but 0 and 1 are tags, which come first."""
        return same_shape(logits, labels) and are_class_probabilities(labels)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy: the divergence from the labels (Kullback and Leibler), and their own entropy."""
        classes = logits.shape[-1]
        return F.cross_entropy(logits.reshape(-1, classes), labels.reshape(-1, classes).to(logits.dtype))

    def loss_in_words(self, logits: torch.Tensor, labels: torch.Tensor) -> str:  # noqa: ARG002
        """What `loss` computes."""
        return "cross-entropy of the logits with class probabilities"

    def prior_entropy(self, labels: Sequence[torch.Tensor]) -> float | None:
        """Entropy of the mean distribution: what predicting it for every row costs."""
        p = torch.cat([y.detach().cpu().double().reshape(-1, y.shape[-1]) for y in labels]).mean(0)
        return float(-torch.xlogy(p, p).sum())


class ClassProbabilities(TaskReader):
    """A distribution over the classes for each row."""

    name = "class probabilities"
    labels_are = "a probability of each class, for each row"

    def fits(self, example: Example) -> bool:
        """Whatever is read as class probabilities."""
        return example.form == Probabilities.name


def are_class_probabilities(labels: torch.Tensor) -> bool:
    """Whether each row is a distribution over its columns.

    >>> are_class_probabilities(torch.tensor([[0.9, 0.1], [0.25, 0.75]])), are_class_probabilities(torch.tensor([[0.9, 0.3]]))
    (True, False)
    """
    if whole(labels) or labels.is_complex() or labels.dim() < 2 or not labels.numel():
        return False
    rounding = max(ROUNDED, labels.shape[-1] * torch.finfo(labels.dtype).eps)
    y = labels.detach().double()
    return bool((y >= 0).all()) and bool(((y.sum(-1) - 1).abs() <= rounding).all())


def most_probable(task: str | None, labels: torch.Tensor) -> tuple[str | None, torch.Tensor]:
    """The task and its labels; class probabilities as the most probable class, which is a label of the task of single labels.

    >>> most_probable("class_probabilities", torch.tensor([[0.9, 0.1], [0.25, 0.75]]))
    ('single_label', tensor([0, 1]))
    """
    return ("single_label", labels.argmax(-1)) if task == Probabilities.name else (task, labels)
