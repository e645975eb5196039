"""Frozen parameters that follow trainable ones: teachers and target networks that are moving averages of the student."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..instruments.sampled_elements import SampledElements
from .watched_parameters import WatchedParameter

#: Share of a write (squared norm) that may not point to the trainable parameter: an angle of 3 degrees. A write in a random direction is
#: nearly at a right angle.
NOT_TOWARDS = 2.5e-3
#: The same where rounding of the values explains the rest: half of the write at most.
ROUNDED = 0.5


class MovingAverages:
    """For each frozen parameter, the trainable one of its shape that each write takes it a fraction of the way to."""

    def __init__(self, sampled: SampledElements, live: Sequence[WatchedParameter]) -> None:
        self._sampled, self._live = sampled, live
        self._frozen = [place for place, w in enumerate(live) if not w.trainable and w.shard is None]
        #: By place of a frozen parameter: the place of the trainable one; None: some write went elsewhere.
        self._source: dict[int, int | None] = {}

    def update(self, values: torch.Tensor, before: torch.Tensor) -> None:
        """The weights were ``before`` when the last step ended, and are ``values`` now."""
        if not self._frozen:
            return
        t = self._sampled
        write = values - before
        norms, was, moved = t.norms(write).tolist(), t.split(before), t.split(write)
        for place in self._frozen:
            if norms[place] == 0 or (place in self._source and self._source[place] is None):
                continue
            known = self._source.get(place)
            candidates = range(len(self._live)) if known is None else (known,)
            leads = (c for c in candidates if self._leads(place, c, was[place], moved[place]))
            self._source[place] = next(leads, None)

    def _leads(self, place: int, candidate: int, was: torch.Tensor, moved: torch.Tensor) -> bool:
        """Whether the write took a parameter a fraction of the way to a trainable one, as that is now."""
        own, other = self._live[place].parameter, self._live[candidate].parameter
        if not other.requires_grad or other.shape != own.shape or other.device != own.device:
            return False
        there = self._sampled.values_like(candidate, place)
        if there is None:
            return False
        way, moved = there.to(was.device).double() - was.double(), moved.double()
        square, length = float(moved.square().sum()), float(way.square().sum())
        share = float((moved * way).sum()) / length if length > 0 else 0.0
        rest = float((moved - share * way).square().sum())
        rounding = torch.finfo(own.dtype).eps ** 2 * float(was.double().square().sum())
        return 0 < share <= 1.001 and rest <= min(NOT_TOWARDS * square + rounding, ROUNDED * square)

    def name(self, place: int | None) -> str | None:
        """The trainable parameter that this one is an average of; None: it is none."""
        source = self._source.get(place) if place is not None else None
        return None if source is None else self._live[source].name
