"""Run the model twice, in training and in evaluation mode: what is random when?"""

from __future__ import annotations

from ...records import Modes
from .battery import Bench, Experiment


class ModesExperiment(Experiment):
    """Run the model twice, in training and in evaluation mode: what is random when?"""

    name = "modes"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)

    def record(self) -> Modes | None:
        """What was measured."""
        return None
