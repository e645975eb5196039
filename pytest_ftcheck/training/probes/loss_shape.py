"""Put chosen logits in front of the loss, and chosen outputs behind the last layer."""

from __future__ import annotations

from ...records import LossShape
from .battery import Bench, Experiment


class LossShapeExperiment(Experiment):
    """Put chosen logits in front of the loss, and chosen outputs behind the last layer."""

    name = "loss_shape"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)

    def record(self) -> LossShape | None:
        """What was measured."""
        return None
