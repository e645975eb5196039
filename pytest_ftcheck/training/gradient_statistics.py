"""Running numbers of the gradient norms of all sampled parameters, as vectors: no step waits for a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..core.observations import Gradients
from ..instruments.tensor_statistics import index_of
from .watched_parameters import WatchedParameter

#: In place of a norm: the tensor has no gradient; it is not this optimizer's, and the step does not concern it.
NO_GRADIENT, NOT_CONCERNED = -1.0, -2.0


class GradientStatistics:
    """One element a parameter in each vector.

    :param count: number of parameters.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        def filled(value: float) -> torch.Tensor:
            return torch.full((count,), value, dtype=torch.float32, device=device)

        self._zero, self._nonfinite = filled(0), filled(0)
        self._first_nonzero, self._first_nonfinite = filled(-1), filled(-1)
        self._max_norm, self._last_norm = filled(0), filled(0)
        #: The norms as the series shows them: at another optimizer's step those of the step before.
        self.shown = filled(NO_GRADIENT)

    def update(self, number: int, norms: torch.Tensor) -> torch.Tensor:
        """Take in the norms of one step; the norm of all gradients together.

        :param norms: L2 norms, `NO_GRADIENT` or `NOT_CONCERNED`.
        """
        finite = torch.isfinite(norms)
        present = norms >= 0  # False for NaN, too, which is a gradient all the same
        nonfinite = ~finite
        self._zero += norms == 0
        self._nonfinite += nonfinite
        nonzero = (norms > 0) | nonfinite
        self._first_nonzero = torch.where((self._first_nonzero < 0) & nonzero, number, self._first_nonzero)
        self._first_nonfinite = torch.where((self._first_nonfinite < 0) & nonfinite, number, self._first_nonfinite)
        self._max_norm = torch.where(present & finite, torch.maximum(self._max_norm, norms), self._max_norm)
        self._last_norm = torch.where(present | nonfinite, norms, self._last_norm)
        self.shown = torch.where(norms == NOT_CONCERNED, self.shown, norms)
        total: torch.Tensor = torch.linalg.vector_norm(torch.where(present | nonfinite, norms, 0.0))
        return total

    def forget(self, places: Sequence[int]) -> None:
        """What was counted of these parameters does not count."""
        for vector, empty in (
            (self._zero, 0.0),
            (self._nonfinite, 0.0),
            (self._first_nonzero, -1.0),
            (self._first_nonfinite, -1.0),
            (self._max_norm, 0.0),
            (self._last_norm, 0.0),
        ):
            vector[list(places)] = empty

    def record(self, w: WatchedParameter, share_with_gradient: float) -> Gradients:
        """The numbers of one parameter."""
        slot = w.slot
        assert slot is not None
        max_norm = float(self._max_norm[slot])
        return Gradients(
            steps=w.steps,
            none=w.without_gradient,
            zero=int(self._zero[slot]),
            nonfinite=int(self._nonfinite[slot]),
            first_nonzero=index_of(float(self._first_nonzero[slot])),
            first_nonfinite=index_of(float(self._first_nonfinite[slot])),
            max_norm=max_norm,
            last_norm=float(self._last_norm[slot]),
            max_rms=max_norm / math.sqrt(max(1.0, share_with_gradient * w.values.numel())),
            stride=w.stride if w.estimated or w.steps == w.without_gradient else 1,
        )

    def to_cpu(self) -> None:
        """Move all vectors to the CPU at once, before single numbers are read."""
        for name, vector in vars(self).items():
            setattr(self, name, vector.cpu())
