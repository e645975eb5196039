"""Which small gradients are rounding noise: a gradient computed twice, in ways that are equal but for rounding."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..core.observations import Tensor
from .batches import device_of, rows_of, take_rows, to_device
from .reader import Reader
from .undisturbed import quiet

#: A model with at least ``LARGE`` parameters computes the gradients on ``FEW_ROWS`` rows: its backward pass is expensive.
LARGE, FEW_ROWS = 20_000_000, 2


def noise_of_small_gradients(
    model: nn.Module, reader: Reader, batch: Any, tensors: Sequence[Tensor]
) -> dict[str, float | None]:
    """:func:`rounding_noise` of the tensors whose gradient is small compared with the largest; larger ones cannot be noise."""
    largest = max((t.gradients.max_norm for t in tensors), default=0.0)
    now = dict(model.named_parameters())
    small = [
        t.name for t in tensors if t.trainable_last and t.name in now and 0 < t.gradients.max_norm < 1e-4 * largest
    ]
    if not small:
        return {}
    if sum(p.numel() for p in now.values()) >= LARGE:
        batch = _first_rows(batch)
    return dict(zip(small, rounding_noise(model, reader, batch, [now[n] for n in small]), strict=True))


def rounding_noise(
    model: nn.Module, reader: Reader, batch: Any, parameters: Sequence[nn.Parameter]
) -> list[float | None]:
    """Relative difference between the gradients of ``loss`` and of ``3 * loss / 3``, dropout off, one number a parameter.

    The two are equal in exact arithmetic; rounding noise differs by 0.38 or more, real gradients by 2.4e-4 or
    less, whatever their size (benchmarks/architectures.py). None where it could not be measured.
    """
    if not parameters:
        return []
    batch = to_device(batch, device_of(model))
    with quiet(model, grad=True):
        try:
            loss = reader.loss(batch)[0]
            one = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
            three = torch.autograd.grad(3 * loss, parameters, allow_unused=True)
        except Exception:  # noqa: BLE001 - no graph, or a model that cannot run backward in eval mode
            return [None] * len(parameters)
    out: list[float | None] = []
    for a, b in zip(one, three, strict=True):
        size = 0.0 if a is None else float(torch.linalg.vector_norm(a.float()))
        if a is None or b is None or size == 0 or not math.isfinite(size):
            out.append(None)
        else:
            out.append(float(torch.linalg.vector_norm(a.double() - b.double() / 3)) / size)
    return out


def _first_rows(batch: Any) -> Any:
    """The first rows of a batch; the whole batch where its rows cannot be separated."""
    rows = rows_of(batch)
    if rows <= FEW_ROWS:
        return batch
    with contextlib.suppress(Exception):
        few = take_rows(batch, range(FEW_ROWS))
        return few if rows_of(few) == FEW_ROWS else batch
    return batch
