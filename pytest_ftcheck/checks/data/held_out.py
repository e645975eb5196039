"""Whether the run learnt something that holds on held-out rows."""

from __future__ import annotations

from ...core.trace import Trace

#: p-value at which a metric on held-out rows is better than chance.
HELD_OUT_ALPHA = 0.01
#: Loss at the end over the class prior's (or over the first loss) below which the run learnt.
LEARNT = 0.97


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


def loss_fell(trace: Trace) -> bool:
    """The probe's loss ends clearly below the class prior's, or (without a prior) below the first."""
    probe = trace.probe_loss
    if probe is None or not probe.points:
        return False
    first, last = probe.points[0], probe.points[-1]
    if probe.prior_entropy is not None and last.reference is not None:
        return last.reference < LEARNT * probe.prior_entropy
    return last.loss < LEARNT * first.loss
