"""Distances and directions of sketches."""

from __future__ import annotations

import math
from collections.abc import Sequence


def norm(sketch: Sequence[float]) -> float:
    """L2 norm."""
    return math.sqrt(sum(v * v for v in sketch))


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """L2 norm of the difference; NaN equals NaN, and a NaN is infinitely far from a number.

    >>> distance((3.0, math.nan), (0.0, math.nan)), distance((math.nan,), (1.0,))
    (3.0, inf)
    """
    total = 0.0
    for x, y in zip(a, b, strict=True):
        if x == y or (math.isnan(x) and math.isnan(y)):
            continue
        if not (math.isfinite(x) and math.isfinite(y)):
            return math.inf
        total += (x - y) ** 2
    return math.sqrt(total)


def relative(a: Sequence[float], b: Sequence[float]) -> float:
    """The distance over the larger norm; 0 where both are zero.

    >>> relative((3.0, 4.0), (3.0, 4.0)), relative((0.0,), (0.0,)), relative((2.0,), (1.0,))
    (0.0, 0.0, 0.5)
    """
    apart = distance(a, b)
    if not apart or math.isinf(apart):
        return apart
    finite = [[v for v in s if math.isfinite(v)] for s in (a, b)]
    return apart / max(map(norm, finite))


def mean(sketches: Sequence[Sequence[float]]) -> list[float]:
    """The mean of several, number by number."""
    return [sum(values) / len(sketches) for values in zip(*sketches, strict=True)]


def ratio(sketch: Sequence[float], to: Sequence[float]) -> tuple[float, float] | None:
    """``(factor, cosine)`` of one against another; None where one is zero or not finite.

    >>> ratio((0.0, 2.0), (0.0, 1.0))
    (2.0, 1.0)
    """
    a, b = norm(sketch), norm(to)
    if not (a and b and math.isfinite(a) and math.isfinite(b)):
        return None
    product = sum(x * y for x, y in zip(sketch, to, strict=True))
    return product / (b * b), product / (a * b)
