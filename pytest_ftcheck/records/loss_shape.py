"""The loss as a function of the logits, and the logits as a function of the last layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LossShape:
    """The loss as a function of the logits, and the logits as a function of the last layer."""

    #: Rows looked at.
    rows: int = 0
