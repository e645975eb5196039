"""What the output depends on: padding, the other rows, the tokens, their order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Inputs:
    """What the output depends on: padding, the other rows, the tokens, their order."""

    #: Rows looked at.
    rows: int = 0
