"""A curve as the points of an SVG polyline, for small pictures beside a name."""

from __future__ import annotations

from .chart_data import FAR, Series

#: Margin on every side, so that no stroke is cut.
EDGE = 2


def polylines(curve: Series, width: int, height: int, most: int) -> tuple[str, ...]:
    """The ``points`` of a ``<polyline>`` for each stretch of the curve that can be drawn, in a box of this size in pixels.

    :param most: about how many points are kept; every peak is among them.
    :returns: empty where fewer than two points can be drawn. A constant curve is a line at half height.

    >>> curve = Series("loss", "train", (1.0, 2.0, 3.0, 4.0), (1.0, 0.5, 0.5, 0.0))
    >>> polylines(curve, 34, 24, most=10)
    ('2.0,2.0 12.0,12.0 22.0,12.0 32.0,22.0',)
    """
    curve = curve.thinned(most)
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(curve.x, curve.y, strict=True):
        if y is not None and abs(y) < FAR:
            stretches[-1].append((x, y))
        else:
            stretches.append([])
    known = [point for part in stretches for point in part]
    if len(known) < 2:
        return ()
    left, across = known[0][0], (known[-1][0] - known[0][0]) or 1.0
    low = min(y for _, y in known)
    up = max(y for _, y in known) - low

    def place(x: float, y: float) -> str:
        share = (y - low) / up if up else 0.5
        return (
            f"{EDGE + (width - 2 * EDGE) * (x - left) / across:.1f},{height - EDGE - (height - 2 * EDGE) * share:.1f}"
        )

    return tuple(" ".join(place(x, y) for x, y in part) for part in stretches if len(part) > 1)
