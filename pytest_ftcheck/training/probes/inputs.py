"""Change the input, and see whether the output cares: padding, the other rows, the tokens, their order."""

from __future__ import annotations

from ...records import Inputs
from .battery import Bench, Experiment


class InputsExperiment(Experiment):
    """Change the input, and see whether the output cares: padding, the other rows, the tokens, their order."""

    name = "inputs"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)

    def record(self) -> Inputs | None:
        """What was measured."""
        return None
