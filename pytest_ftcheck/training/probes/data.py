"""Look at the batches themselves: labels, tokens, repetition, overlap, dependence."""

from __future__ import annotations

from ...records import Data
from .battery import Bench, Experiment


class DataExperiment(Experiment):
    """Look at the batches themselves: labels, tokens, repetition, overlap, dependence."""

    name = "data"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)

    def record(self) -> Data | None:
        """What was measured."""
        return None
