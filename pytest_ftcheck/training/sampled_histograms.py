"""Histograms of the values of all tensors at one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..core.observations import Histogram
from ..instruments.sampled_elements import SampledElements
from ..instruments.tensor_statistics import histogram_between, histogram_of


def histograms_of(
    step: int,
    flat: torch.Tensor,
    sampled: SampledElements,
    wanted: Sequence[bool],
    whole: Mapping[int, torch.Tensor],
) -> list[Histogram | None]:
    """One histogram a tensor, as `histogram_of` makes it; None where none is wanted, or no value is finite.

    :param flat: the sampled elements of all tensors.  :param whole: place of a tensor -> all its values, to be used instead.
    """
    finite = bool(torch.isfinite(flat).all())
    low, high = sampled.extremes(flat) if finite else ([], [])  # of thousands of tensors at once
    pieces = sampled.split(flat.cpu())
    found: list[Histogram | None] = []
    for place, piece in enumerate(pieces):
        if not wanted[place]:
            found.append(None)
        elif place in whole or not finite:
            found.append(histogram_of(step, whole.get(place, piece)))
        else:
            found.append(histogram_between(step, piece, low[place], high[place]))
    return found
