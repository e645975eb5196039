"""Put parts back to where they began, skip layers, take the input away: what is the training worth?"""

from __future__ import annotations

from ...records import Counterfactuals
from .battery import Bench, Experiment


class CounterfactualsExperiment(Experiment):
    """Put parts back to where they began, skip layers, take the input away: what is the training worth?"""

    name = "counterfactuals"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)

    def record(self) -> Counterfactuals | None:
        """What was measured."""
        return None
