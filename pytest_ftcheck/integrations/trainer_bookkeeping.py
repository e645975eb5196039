"""What a trainer notes of its own run in its attributes: counters, sums, lists of metrics for the log."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

#: Attributes of a trainer that hold its data: what is in them is not looked at.
DATA = frozenset({"train_dataset", "eval_dataset"})
#: A longer container is not searched, and of a longer list only what was appended is taken away.
MOST_ITEMS = 256
#: A larger tensor is no counter.
MOST_ELEMENTS = 1024


@contextlib.contextmanager
def bookkeeping_kept(trainer: Any) -> Iterator[None]:
    """The trainer's attributes, the plain containers in them at any depth, and small tensors in these are as before after the block.

    >>> class Trainer:
    ...     metrics = None
    >>> trainer = Trainer()
    >>> trainer.metrics = {"train": {"entropy": [0.5]}}
    >>> with bookkeeping_kept(trainer):
    ...     trainer.metrics["train"]["entropy"].append(0.4)
    ...     trainer.seen = 64
    >>> vars(trainer)
    {'metrics': {'train': {'entropy': [0.5]}}}
    """
    containers, tensors = _found(trainer)
    try:
        yield
    finally:
        for container, items in containers:
            _put_back(container, items)
        with torch.no_grad():
            for tensor, values in tensors:
                tensor.copy_(values)


def _found(trainer: Any) -> tuple[list[tuple[Any, Any]], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Containers with copies of them (of a long list its length), and tensors with copies of their values."""
    containers: list[tuple[Any, Any]] = []
    tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
    known, left = set(), [vars(trainer)]
    while left:
        value = left.pop()
        if id(value) in known:
            continue
        known.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.numel() <= MOST_ELEMENTS and value.is_leaf and value.device.type != "meta":
                tensors.append((value, value.detach().clone()))
        elif isinstance(value, (list, deque)) and len(value) > MOST_ITEMS:
            containers.append((value, len(value)))
        elif isinstance(value, (dict, list, set, deque)) and len(value) <= MOST_ITEMS:
            containers.append((value, type(value)(value) if type(value) in (list, set) else value.copy()))
            if isinstance(value, dict):
                left += [v for k, v in value.items() if value is not vars(trainer) or k not in DATA]
            elif not isinstance(value, set):
                left += value
    return containers, tensors


def _put_back(container: Any, items: Any) -> None:
    if isinstance(items, int):
        while len(container) > items:
            container.pop()
    elif isinstance(container, (dict, set)):
        if (
            isinstance(container, set)
            or container.keys() != items.keys()
            or any(container[k] is not items[k] for k in items)
        ):
            container.clear()
            container.update(items)
    else:
        container.clear()
        container.extend(items)
