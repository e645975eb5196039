"""Training and evaluation mode: what is random when, and what should be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Modes:
    """Training and evaluation mode: what is random when, and what should be."""

    #: Rows looked at.
    rows: int = 0
