"""The norms that ``clip_grad_norm_`` takes of large gradients, which the optimizer finds times one factor: they need not be read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..instruments.loop_calls import LoopCallListener
from ..instruments.sampled_elements import is_plain

#: Elements of a gradient that are compared with what they were times the factor.
ELEMENTS = 8
CPU = torch.device("cpu")


@dataclass
class _Measured:
    """A gradient when its norm was taken, and what it was multiplied by afterwards."""

    norm: torch.Tensor
    version: int
    shape: torch.Size
    sample: torch.Tensor
    factor: torch.Tensor | None = None


class ClippedNorms(LoopCallListener):
    """Notes what ``clip_grad_norm_`` measures and multiplies by; no gradient is kept.

    :param least: gradients of fewer elements are left alone.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._measured: dict[int, _Measured] = {}  # by where the gradient is in memory
        self._open: list[int] = []  # those whose factor is not known as yet

    def gradients_measured(self, gradients: Sequence[torch.Tensor], norms: Sequence[torch.Tensor]) -> None:
        """Notes the norms."""
        large = [(g, norm) for g, norm in zip(gradients, norms, strict=True) if self._concerns(g)]
        if not large:
            return
        samples = _samples([g for g, _ in large])
        for (g, norm), sample in zip(large, samples, strict=True):
            self._measured[g.data_ptr()] = _Measured(norm, g._version, g.shape, sample)
            self._open.append(g.data_ptr())

    def gradients_clipped(self, factor: torch.Tensor) -> None:
        """Notes the factor."""
        for key in self._open:
            self._measured[key].factor = factor
        self._open = []

    def take(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """The norm of each gradient as the optimizer finds it; None: it must be read. What was noted is forgotten.

        Known is the norm of a gradient that was written to once since it was measured, and of which some elements are what they were times
        the factor.
        """
        measured, self._measured, self._open = self._measured, {}, []
        found: list[torch.Tensor | None] = [None] * len(gradients)
        candidates = []
        for place, g in enumerate(gradients):
            was = measured.get(g.data_ptr()) if self._concerns(g) else None
            if was is not None and was.factor is not None and g._version == was.version + 1 and g.shape == was.shape:
                candidates.append((place, g, was, was.factor))
        if candidates:
            now = _samples([g for _, g, _, _ in candidates])
            expected = torch.stack([was.sample * factor.to(was.sample) for _, _, was, factor in candidates])
            same = ((now == expected) | (now.isnan() & expected.isnan())).all(1).tolist()
            for (place, _, was, factor), as_expected in zip(candidates, same, strict=True):
                if as_expected:
                    found[place] = was.norm * factor
        return found

    def _concerns(self, g: torch.Tensor) -> bool:
        """Half precision is left alone: so is the norm that was taken of it."""
        return is_plain(g, CPU) and g.numel() > self._least and g.is_contiguous()


def _samples(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """A few elements of each, side by side."""
    return torch.stack([g.as_strided((ELEMENTS,), (g.numel() // ELEMENTS,)) for g in gradients])
