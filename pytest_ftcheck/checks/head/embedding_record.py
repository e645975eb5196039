"""Embeddings before and after the run."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.measurement import Measurement


@dataclass(frozen=True)
class Embeddings(Measurement, probe="embeddings"):
    """How distinct the embeddings of the fixed rows are, in evaluation mode, before and after the run."""

    rows: int
    #: Root mean square of the embeddings around their mean, over their root mean square.
    spread_first: float
    spread_last: float
    #: Share of rows whose nearest neighbour has their label, before and after; expected by chance.
    neighbours_first: float
    neighbours_last: float
    chance: float
