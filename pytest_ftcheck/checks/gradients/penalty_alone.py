"""The verdict on gradients of which none comes from an output of the model."""

from __future__ import annotations

from ...core.trace import Trace
from ...core.verdict import Verdict
from ..loop.record import LoopCalls, all_observed
from . import faults


def penalty_alone_verdict(check: str, trace: Trace, measured: str = "") -> Verdict | None:
    """The verdict of a check of gradients where all are those of a penalty of the weights; None: that is not so, or is not known.

    Where no call of the model was seen, its parts may be called elsewhere, so that it is undecided.
    """
    loop = trace.measured(LoopCalls)
    if loop is None or not loop.weights_only:
        return None
    calls = all_observed(loop.backwards)
    if not loop.outputs:
        return Verdict(
            check,
            "inconclusive",
            f"The model was not called with gradients: in {calls} backward() is on a penalty of its weights alone.",
            remedy="call the watched model itself in the loop, and backward() on the loss of its output",
            measured=measured,
        )
    return faults.LOSS_WITHOUT_OUTPUT.verdict(
        check,
        f"No gradient comes from an output of the model: in {calls} backward() is on a penalty of the weights alone.",
        limit="backward() reaches an output of the model",
        measured=measured,
    )
