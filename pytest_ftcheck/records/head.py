"""The head from inside: how it starts, which units live, whether it survives saving."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    """The head from inside: how it starts, which units live, whether it survives saving."""

    #: Rows looked at.
    rows: int = 0
