"""What would have been: parts put back to where they began, simpler heads, inputs taken away."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counterfactuals:
    """What would have been: parts put back to where they began, simpler heads, inputs taken away."""

    #: Rows looked at.
    rows: int = 0
