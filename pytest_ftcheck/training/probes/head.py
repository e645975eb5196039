"""Look into the head: how it starts, which units live, whether it survives saving."""

from __future__ import annotations

from ...records import Head
from .battery import Bench, Experiment


class HeadExperiment(Experiment):
    """Look into the head: how it starts, which units live, whether it survives saving."""

    name = "head_state"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)

    def record(self) -> Head | None:
        """What was measured."""
        return None
