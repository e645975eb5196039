"""Whether a run learns, for checks that fail a departure only where it does not."""

from __future__ import annotations

from ...core.trace import Trace

#: p-value of a metric, and share of the class priors' loss, from which the run has learnt: those of `metric_improves` and
#: `labels_learnable`.
ALPHA, LEARNT = 0.05, 0.97
#: The note where it is not known.
UNKNOWN = "whether the run learns is not known: there is no metric with a baseline, and no loss on a probe"


def learns(trace: Trace) -> bool | None:
    """Whether a metric beats its baseline, or the loss ends below the class priors'; None: neither is known."""
    known: list[bool] = []
    for m in trace.metrics:
        if m.baseline is not None:
            known.append(m.last > m.baseline and (m.p_value is None or m.p_value <= ALPHA))
    probe = trace.probe_loss
    if probe is not None and probe.points:
        first, last = probe.points[0], probe.points[-1]
        if probe.prior_entropy and last.reference is not None:
            known.append(last.reference < LEARNT * probe.prior_entropy)
        elif first.loss > 0:
            known.append(last.loss < LEARNT * first.loss)
    return any(known) if known else None
