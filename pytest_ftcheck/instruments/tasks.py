"""The task that logits and labels show, and its standard loss, and the entropy of its class prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

#: The label that cross-entropy leaves out, by the convention of torch and transformers.
IGNORED = -100


def task_of(logits: torch.Tensor, labels: torch.Tensor, *, regression: bool = False) -> str | None:
    """``single_label``, ``multi_label``, ``regression`` or None (they do not fit).

    >>> task_of(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    'single_label'
    >>> task_of(torch.zeros(4, 3), torch.eye(4)[:, :3])
    'multi_label'
    >>> task_of(torch.zeros(4, 1), torch.rand(4))
    'regression'
    """
    whole = not labels.is_floating_point() and not labels.is_complex()
    flat = logits.shape[:-1] == labels.shape or logits.shape == labels.shape or logits.shape == (*labels.shape, 1)
    if logits.dim() >= 2 and logits.shape == labels.shape and logits.shape[-1] > 1:
        hot = bool(((labels == 0) | (labels == 1)).all())
        return "multi_label" if hot else None if whole else "regression"
    if not flat or labels.is_complex():
        return None
    if regression or not whole:
        return "regression" if logits.numel() == labels.numel() else None
    return "single_label"


def reference_loss(task: str | None, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The standard loss of a task, from logits and labels as :func:`task_of` read them."""
    if task == "multi_label":
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    if task == "regression":
        return F.mse_loss(logits.reshape(labels.shape), labels.to(logits.dtype))
    if logits.numel() == labels.numel():
        return F.binary_cross_entropy_with_logits(logits.reshape(labels.shape), labels.to(logits.dtype))
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long(), ignore_index=IGNORED)


def earlier(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Labels moved to the position so many before theirs; the last positions are ignored.

    >>> earlier(torch.tensor([[5, 6, 7]]), 1)
    tensor([[   6,    7, -100]])
    """
    moved = torch.full_like(labels, IGNORED)
    moved[:, : labels.shape[1] - count] = labels[:, count:]
    return moved


def prior_entropy(task: str | None, labels: Sequence[Any]) -> float | None:
    """Entropy of the label frequencies in nats: the loss of predicting the class prior for every row. None for other tasks.

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
