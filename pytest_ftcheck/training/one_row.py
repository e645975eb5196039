"""A batch of one row under BatchNorm: a frequent mistake with the last batch of an epoch."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.formatting import text_of
from ..instruments.batches import rows_of


def one_row_error(error: ValueError, model: nn.Module, batch: Any, where: str) -> str | None:
    """What to say where BatchNorm refused a batch of one row while training; None: that is not what was raised.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> batch = (torch.zeros(1, 2), torch.zeros(1))
    >>> one_row_error(ValueError("Expected more than 1 value per channel"), model, batch, "batches[3]")[:67]
    'batches[3] has one row, and BatchNorm (1) cannot take the mean and '
    """
    norms = [name for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
    if "more than 1 value per channel" not in text_of(error) or not norms or rows_of(batch) != 1:
        return None
    return (
        f"{where} has one row, and BatchNorm ({norms[0]}) cannot take the mean and variance of one row while training: leave out the "
        "last batch of an epoch where it is smaller, DataLoader(..., drop_last=True)"
    )
