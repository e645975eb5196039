"""The batches themselves: labels, tokens, repetition, overlap, and whether labels depend on inputs at all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Data:
    """The batches themselves: labels, tokens, repetition, overlap, and whether labels depend on inputs at all."""

    #: Rows looked at.
    rows: int = 0
