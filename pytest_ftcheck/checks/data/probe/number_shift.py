"""Whether the numbers of held-out rows are on the scale of those of training rows."""

from __future__ import annotations

import numpy as np

from ....instruments.row_hashes import Rows
from ..record import NumberShift


def number_shift(training: Rows, held_out: Rows | None) -> NumberShift | None:
    """Sizes of the rows of either part; None: one of them has no rows of finite numbers.

    >>> a, b = Rows(floats=[np.ones((4, 3))]), Rows(floats=[np.full((2, 3), 255.0)])
    >>> number_shift(a, b).held_out
    (255.0, 255.0, 255.0)
    """
    if held_out is None:
        return None
    parts = [_sizes(training), _sizes(held_out)]
    if not all(map(len, parts)):
        return None
    here, there = ((float(s.min()), float(np.median(s)), float(s.max())) for s in parts)
    return NumberShift(len(parts[0]), len(parts[1]), here, there)


def _sizes(rows: Rows) -> np.ndarray:
    """Root mean square of each row."""
    sizes = [
        np.sqrt((block.astype(np.float64) ** 2).mean(1)) for block in rows.floats if block.ndim == 2 and block.size
    ]
    found = np.concatenate(sizes) if sizes else np.zeros(0)
    return found[np.isfinite(found)]
