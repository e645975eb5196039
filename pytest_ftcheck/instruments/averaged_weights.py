"""Optimizers that keep the weights to evaluate apart from those that they train (schedule-free ones): evaluated as they ask."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer


@contextlib.contextmanager
def averaged_weights(optimizers: Iterable[Any]) -> Iterator[None]:
    """Inside, an optimizer that has ``train()`` and ``eval()`` and is in training has put in the weights to evaluate (Defazio et al. 2024,
    "The Road Less Scheduled", section 3: gradients are taken at y, evaluated is the average x). Afterwards every bit is as before.

    >>> with averaged_weights([torch.optim.SGD([torch.zeros(2)], lr=0.1)]):
    ...     pass
    """
    training = [o for o in optimizers if _trains(o)]
    kept = [(p, p.detach().clone()) for o in training for group in o.param_groups for p in group["params"]]
    groups = [(group, group["train_mode"]) for o in training for group in o.param_groups]
    with_state = [(o, set(o.state)) for o in training]
    try:
        for optimizer in training:
            optimizer.eval()
        yield
    finally:
        with torch.no_grad():
            for p, values in kept:
                p.data.copy_(values)
        for group, mode in groups:
            group["train_mode"] = mode
        for optimizer, before in with_state:  # looking for the state of a tensor makes one
            for p in [p for p in optimizer.state if p not in before]:
                del optimizer.state[p]


def start_training(optimizer: Any) -> None:
    """An optimizer that has ``train()`` and ``eval()`` refuses to step before ``train()``."""
    if _has_modes(optimizer) and not _trains(optimizer):
        optimizer.train()


def _has_modes(optimizer: Any) -> bool:
    named = all(callable(getattr(optimizer, n, None)) for n in ("train", "eval"))
    return isinstance(optimizer, Optimizer) and named


def _trains(optimizer: Any) -> bool:
    return (
        _has_modes(optimizer)
        and bool(optimizer.param_groups)
        and all(g.get("train_mode") for g in optimizer.param_groups)
    )
