"""Whether a run learns, for checks that fail a departure only where it does not."""

from __future__ import annotations

from ...core.trace import Trace
from ..learning import loss_fell

#: p-value of a metric that beats its baseline, from which the run has learnt: less strict than that of `metric_improves`, since a run that
#: learns is not failed here.
ALPHA = 0.05
#: The note where it is not known.
UNKNOWN = "whether the run learns is not known: there is no metric with a baseline, and no loss on a probe"


def learns(trace: Trace) -> bool | None:
    """Whether a metric beats its baseline, or the loss ends below the class priors'; None: neither is known."""
    known: list[bool] = []
    for m in trace.metrics:
        if m.baseline is not None:
            known.append(m.last > m.baseline and (m.p_value is None or m.p_value <= ALPHA))
    if (fell := loss_fell(trace)) is not None:
        known.append(fell)
    return any(known) if known else None
