"""Whether a run learns; and how much something weighs that is a reason not to learn, but need not be one."""

from __future__ import annotations

from ..core.trace import Trace
from ..core.verdict import Status

#: p-value at which a metric is better than chance: that of `metric_improves`.
ALPHA = 0.01
#: Share of the class priors' loss (or of the first one) below which the loss shows that the run learnt: that of `labels_learnable`.
LEARNT = 0.97
#: Optimizer steps from which on a run that has not learnt counts as one that does not learn: `loss_decreases` needs about as many for its
#: drop of 5 %. A shorter one may be extended to so many.
ENOUGH = 60


def learns(trace: Trace) -> bool | None:
    """Whether the run learnt something: by metrics on held-out rows; without those, by any metric, or by the loss. None: neither is known.

    >>> from pytest_ftcheck import example_trace
    >>> learns(example_trace())
    True
    """
    metrics = [m for m in trace.metrics if m.p_value is not None]
    held_out = [m for m in metrics if m.source == "held-out rows"]
    better = [m.p_value <= ALPHA and m.last >= m.first for m in held_out or metrics if m.p_value is not None]
    if held_out:
        return any(better)
    if (fell := loss_fell(trace)) is not None:
        better.append(fell)
    return any(better) if better else None


def weight_of_suspicion(trace: Trace) -> Status:
    """The status of a verdict on what may keep a run from learning: ``advice`` where it learns, or where that is not known, or where no
    weight moved, which has a reason of its own; else ``fail``, in a short run ``inconclusive``.

    >>> from pytest_ftcheck import example_trace
    >>> weight_of_suspicion(example_trace())
    'advice'
    """
    if learns(trace) is not False or not any(t.motion.share_changed > 0 for t in trace.tensors):
        return "advice"
    return "fail" if len(trace.steps) >= ENOUGH else "inconclusive"


def loss_fell(trace: Trace) -> bool | None:
    """Whether the loss on fixed rows ends clearly below that of the class priors, or (without those) below the first; None: not known."""
    points = trace.probe_loss.points if trace.probe_loss is not None else ()
    if len(points) < 2 or trace.probe_loss is None:
        return None
    first, last = points[0], points[-1]
    if trace.probe_loss.prior_entropy and last.reference is not None:
        return last.reference < LEARNT * trace.probe_loss.prior_entropy
    return last.loss < LEARNT * first.loss if first.loss > 0 else None
