"""What changes the weights between optimizer steps."""

from __future__ import annotations

import torch

from ..instruments.sampled_elements import SampledElements

#: A write that undoes this share of the displacement since the last one is a reset. Lookahead undoes half at most, a moving average
#: with a decay of 0.9 or more nearly all.
RESET = 0.7
#: Before the first step there is no displacement to undo. A write of at least this share of the values' norm replaces them.
REPLACED = 0.5


class ExternalWrites:
    """Running numbers of the writes between steps, one element a tensor in each vector; costs nothing while there are none."""

    def __init__(self, sampled: SampledElements) -> None:
        n, device = len(sampled.counts), sampled.device
        self.sampled = sampled
        self.squares = torch.zeros(n, dtype=torch.float64, device=device)
        self.largest = torch.zeros(n, dtype=torch.float32, device=device)
        self.count = torch.zeros(n, dtype=torch.float32, device=device)
        self.resets = torch.zeros(n, dtype=torch.float32, device=device)
        #: Values of each tensor after it was last written to; before that, its initial values.
        self._last_written: torch.Tensor | None = None

    def update(self, values: torch.Tensor, before: torch.Tensor, start: torch.Tensor, *, first: bool) -> None:
        """The weights were ``before`` when the last step ended, and are ``values`` when the next one begins.

        :param start: the values before the run.  :param first: no step has been taken yet.
        """
        t = self.sampled
        write = torch.nan_to_num(values - before)
        norms = t.norms(write)
        self.squares += norms.double().square()
        self.largest = torch.maximum(self.largest, norms.to(self.largest.dtype))
        self.count += norms > 0
        if self._last_written is None:
            self._last_written = start.clone()
        if first:
            self.resets += norms > REPLACED * t.norms(torch.nan_to_num(start)).clamp_min(1e-30)
        else:
            displacement = torch.nan_to_num(before - self._last_written)
            displacement *= self._not_masked(values)
            undone = -_sums(t, write * displacement)
            self.resets += undone > RESET * _sums(t, displacement * displacement).clamp_min(1e-30)
        for place, now, written in zip(t.split(self._last_written), t.split(values), (norms > 0).tolist(), strict=True):
            if written:
                place.copy_(now)

    def _not_masked(self, values: torch.Tensor) -> torch.Tensor:
        """Elements that are not zero: a pruned weight or a padding row is set to zero again after each step. In a tensor of zeros, all."""
        nonzero = values != 0
        for piece in self.sampled.split(nonzero):
            if not piece.any():
                piece.fill_(True)
        return nonzero

    def not_masked(self, values: torch.Tensor) -> torch.Tensor:
        """Elements that are not zero, and that the last write did not set to zero."""
        nonzero = values != 0
        return nonzero if self._last_written is None else nonzero & self._not_masked(self._last_written)

    def after_the_last_step(self, final: torch.Tensor, before: torch.Tensor) -> None:
        """A write after the last step undoes nothing of the training: only its size is recorded."""
        self.squares += self.sampled.norms(torch.nan_to_num(final - before)).double().square()


def share_retained(
    after: torch.Tensor, start: torch.Tensor, updates: torch.Tensor, counted: torch.Tensor
) -> float | None:
    """Share of the summed updates that is still present in the values; None: there were no updates.

    :param counted: which elements count, see `ExternalWrites.not_masked`.
    """
    update = updates[counted].double()
    total = float((update * update).sum())
    if not total > 0:
        return None
    return float(((after - start)[counted].double() * update).sum()) / total


def _sums(t: SampledElements, flat: torch.Tensor) -> torch.Tensor:
    return torch.stack([piece.sum() for piece in t.split(flat)])
