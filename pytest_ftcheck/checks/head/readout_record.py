"""What a linear layer reads off the features of an altered base, and off those of the same base without the alteration."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Readout:
    """Two linear layers, fitted before the training on the same rows and judged on the same others, by cross-validation.

    >>> readout = Readout(256, 205, 640, 0.25, 0.76, 0.53, 83, 23, 0.9)
    >>> round(readout.lost, 2), readout.p_value < 1e-8
    (0.45, True)
    """

    #: Rows judged, each once, by a layer that was fitted on so many others.
    rows: int
    fitted: int
    #: Rows that the run itself trains on, all steps together.
    trained: int
    #: Share of the most frequent class.
    baseline: float
    #: Share of right answers from the features of the unaltered base, and of the altered one.
    unaltered: float
    altered: float
    #: Rows that only the one, and only the other, gets right.
    only_unaltered: int
    only_altered: int
    #: Largest difference between the features, over the largest value of the unaltered ones.
    change: float

    @property
    def lost(self) -> float:
        """Share of what the unaltered features say beyond the most frequent class that the altered ones do not say; at most 0 where nothing
        is lost."""
        known = self.unaltered - self.baseline
        return (self.unaltered - self.altered) / known if known > 0 else 0.0

    @property
    def p_value(self) -> float:
        """Of so many rows that only the unaltered features get right, were both equally good: McNemar's exact test, one-sided."""
        n = self.only_unaltered + self.only_altered
        ways = sum(math.comb(n, k) for k in range(self.only_unaltered, n + 1))
        return float(ways / 2**n)
