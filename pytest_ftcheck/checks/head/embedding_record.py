"""Embeddings before and after the run."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.measurement import Measurement


@dataclass(frozen=True)
class Embeddings(Measurement, probe="embeddings"):
    """How distinct the embeddings of the fixed rows are, in evaluation mode, before and after the run."""

    #: Embeddings compared: those of all texts of the fixed rows.
    rows: int
    #: Root mean square of the embeddings around their mean, over their root mean square.
    spread_first: float
    spread_last: float
    #: Share of rows whose nearest neighbour belongs to them, before and after; expected by chance. None: what belongs together is not
    #: known.
    neighbours_first: float | None = None
    neighbours_last: float | None = None
    chance: float | None = None
    #: Which rows belong together: ``label`` (those of one label) or ``pair`` (the first two texts of a row).
    relation: str | None = None
    #: Share of random other assignments with at least as many such neighbours after the run.
    p_value: float | None = None
    #: Probability that a row is nearer to one that belongs to it than to another, before and after; 0.5 by chance.
    nearer_first: float | None = None
    nearer_last: float | None = None
