"""How far outputs change when something else is changed, beside the differences between rows."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Effect:
    """The change of outputs when something in the input or the model was changed."""

    #: Largest absolute change of an output.
    change: float
    #: rms of the outputs about their mean over the rows: the spread between rows.
    spread: float
    #: Largest absolute output.
    scale: float
    #: Relative spacing of numbers in the coarsest floating-point type that is involved.
    precision: float = 2.0**-23

    @property
    def relative(self) -> float:
        """The change over the spread between rows; infinite where rows do not differ, but the change does.

        >>> Effect(0.02, 0.08, 1.0).relative
        0.25
        """
        if self.change == 0:
            return 0.0
        return self.change / self.spread if self.spread > 0 else math.inf

    @property
    def ulps(self) -> float:
        """The change in units of rounding: over the largest output times the relative spacing of numbers."""
        return self.change / (self.scale * self.precision) if self.scale > 0 else 0.0
