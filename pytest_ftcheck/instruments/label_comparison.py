"""Whether a loss reads labels as numbers of classes, or only compares them with each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .global_state import seed_everything
from .tasks import IGNORED


def compares_only(loss: Callable[[torch.Tensor], Any], labels: torch.Tensor, classes: int) -> bool:
    """Whether a loss is the same to the bit when all classes are renumbered, and another one when two classes become one.

    So it is in metric learning: a pair of rows has the same label or not, and no output stands for a class. A loss of logits changes when
    classes are renumbered, and one that reads no labels at all does not change at all.

    :param loss: the loss of one batch with these labels; random states are seeded before each call.
    :param classes: labels are 0 to ``classes - 1``, or -100 for those to leave out.

    >>> z, y = torch.eye(4, 8), torch.tensor([0, 1, 0, 1])
    >>> def of_pairs(y): return ((z[:, None] - z).pow(2).sum(-1) * (y[:, None] == y)).mean()
    >>> def of_logits(y): return torch.nn.functional.cross_entropy(z, y)
    >>> compares_only(of_pairs, y, 8), compares_only(of_logits, y, 8), compares_only(lambda y: z.sum(), y, 8)
    (True, False, False)
    """
    values = _value(loss, labels), _value(loss, labels), _value(loss, _renumbered(labels, classes))
    if None in values or len(set(values)) > 1:
        return False
    return any(_value(loss, other) not in (None, values[0]) for other in _merged(labels))


def _value(loss: Callable[[torch.Tensor], Any], labels: torch.Tensor) -> float | None:
    """The loss; None: it cannot be computed for these labels."""
    seed_everything(0)
    try:
        return float(loss(labels))
    except Exception:  # noqa: BLE001 - the user's loss, given labels that are not the batch's, may raise anything
        return None


def _renumbered(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.where(labels == IGNORED, labels, (labels + 1) % classes)


def _merged(labels: torch.Tensor) -> Iterator[torch.Tensor]:
    """The labels with two classes made one: for one row, and for all rows."""
    present = torch.unique(labels[labels != IGNORED])
    if len(present) < 2:
        return
    kept, other = present[0], present[1]
    of_other = (labels == other).nonzero()[0]
    one = labels.clone()
    one[tuple(of_other)] = kept
    yield one
    yield torch.where(labels == other, kept, labels)
