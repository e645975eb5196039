"""Recompute the gradient of a step for the same batch, weights and dropout masks, and compare."""

from __future__ import annotations

from ...records import ReferenceGradient
from .battery import Bench, Experiment


class ReferenceGradientExperiment(Experiment):
    """Recompute the gradient of a step for the same batch, weights and dropout masks, and compare."""

    name = "reference"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)

    def record(self) -> ReferenceGradient | None:
        """What was measured."""
        return None
