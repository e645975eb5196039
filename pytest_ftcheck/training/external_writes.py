"""What changed the weights when no optimizer was at work."""

from __future__ import annotations

import torch

from ..instruments.sampled_elements import Tracked

#: A write that takes back this share of the way made since the last one is a reset: Lookahead takes back a half at most, a running average
#: with a decay of 0.9 or more nearly all.
RESET = 0.7
#: Before the first step there is no way to take back: a write of at least this share of the values' norm replaces them.
REPLACED = 0.5


class Writes:
    """Running numbers of the writes between steps, one a tensor; costs nothing as long as there are none."""

    def __init__(self, tracked: Tracked) -> None:
        n, device = len(tracked.counts), tracked.device
        self.tracked = tracked
        self.squares = torch.zeros(n, dtype=torch.float64, device=device)
        self.largest = torch.zeros(n, dtype=torch.float32, device=device)
        self.count = torch.zeros(n, dtype=torch.float32, device=device)
        self.resets = torch.zeros(n, dtype=torch.float32, device=device)
        self._since: torch.Tensor | None = (
            None  # values of each tensor after it was last written to, at first as they began
        )

    def seen(self, values: torch.Tensor, before: torch.Tensor, start: torch.Tensor, *, first: bool) -> None:
        """The weights were ``before`` when the last step ended and are ``values`` now that the next one begins.

        :param start: the values before the run.  :param first: no step was taken yet.
        """
        t = self.tracked
        write = torch.nan_to_num(values - before)
        norms = t.norms(write)
        self.squares += norms.double().square()
        self.largest = torch.maximum(self.largest, norms.to(self.largest.dtype))
        self.count += norms > 0
        if self._since is None:
            self._since = start.clone()
        if first:
            self.resets += norms > REPLACED * t.norms(torch.nan_to_num(start)).clamp_min(1e-30)
        else:
            way = torch.nan_to_num(before - self._since)
            way *= self._alive(values)
            undone = -_sums(t, write * way)
            self.resets += undone > RESET * _sums(t, way * way).clamp_min(1e-30)
        for place, now, written in zip(t.split(self._since), t.split(values), (norms > 0).tolist(), strict=True):
            if written:
                place.copy_(now)

    def _alive(self, values: torch.Tensor) -> torch.Tensor:
        """Elements that are not zero: a pruning mask or a padding row is set to zero again after each step. Of a tensor that is zero
        throughout, all."""
        alive = values != 0
        for piece in self.tracked.split(alive):
            if not piece.any():
                piece.fill_(True)
        return alive

    def standing(self, values: torch.Tensor) -> torch.Tensor:
        """Elements that are not zero, and were not set to zero by the last write."""
        return (values != 0) if self._since is None else (values != 0) & self._alive(self._since)

    def after_the_last_step(self, final: torch.Tensor, before: torch.Tensor) -> None:
        """A write after the last step takes nothing from the training: only its size is kept."""
        self.squares += self.tracked.norms(torch.nan_to_num(final - before)).double().square()


def kept(after: torch.Tensor, start: torch.Tensor, updates: torch.Tensor, alive: torch.Tensor) -> float | None:
    """Share of the optimizer's work that is still there; None: it did nothing.

    :param alive: which elements count, see `Writes.standing`.
    """
    work = updates[alive].double()
    total = float((work * work).sum())
    if not total > 0:
        return None
    return float(((after - start)[alive].double() * work).sum()) / total


def _sums(t: Tracked, flat: torch.Tensor) -> torch.Tensor:
    return torch.stack([piece.sum() for piece in t.split(flat)])
