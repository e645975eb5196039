"""The gradient at the step beside one recomputed for the same batch, weights and dropout masks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReferenceGradient:
    """The gradient at the step beside one recomputed for the same batch, weights and dropout masks."""

    #: Rows looked at.
    rows: int = 0
