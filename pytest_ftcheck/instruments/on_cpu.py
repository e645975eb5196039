"""Batches of ours are made on the CPU, as those of a DataLoader, whatever ``torch.set_default_device`` says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def on_cpu(make: Callable[P, T]) -> Callable[P, T]:
    """The function with the CPU as the default device: random numbers from a generator of the CPU are made nowhere else.

    >>> with torch.device("meta"):
    ...     on_cpu(torch.zeros)(1), torch.zeros(1)
    (tensor([0.]), tensor(..., device='meta', size=(1,)))
    """

    @functools.wraps(make)
    def made(*arguments: P.args, **options: P.kwargs) -> T:
        with torch.device("cpu"):
            return make(*arguments, **options)

    return made
