"""Whether the run learnt something that holds on held-out rows."""

from __future__ import annotations

from ...core.trace import Trace

#: p-value at which a metric on held-out rows is better than chance.
HELD_OUT_ALPHA = 0.01


def better_than_chance(trace: Trace, deviations: float = 0.0) -> bool:
    """Whether some metric on held-out rows is better than under permuted labels, by so many standard deviations if they are known.

    >>> from pytest_ftcheck import example_trace
    >>> better_than_chance(example_trace())
    True
    """
    return any(
        m.source == "held-out rows"
        and m.p_value is not None
        and m.p_value <= HELD_OUT_ALPHA
        and (m.deviations is None or m.deviations >= deviations)
        for m in trace.metrics
    )
