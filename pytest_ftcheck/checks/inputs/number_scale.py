"""Numbers of a scale that a network with usual initial weights cannot learn from: named where they are the reason."""

from __future__ import annotations

import math

from ...core.formatting import number
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ..learning import weight_of_suspicion
from . import faults
from .record import Inputs, NumberScale

#: First loss over that of a uniform prediction that is too high: the limit of `initial_loss`.
TOO_HIGH = 3.0
#: Size of the outputs (rms) that is large beside that of a head near zero, and how many times as small it becomes with standardised inputs.
#: Pixels of 0 to 255 in a small convolutional network: 6 to 7, and 38 to 59 times.
LARGE_OUTPUTS, SMALLER = 1.0, 5.0
#: Times as far as outputs differ between rows with standardised inputs, of numbers that are large, and of those that hardly vary. Pixels of
#: 0 to 255 in a small vision transformer: 3.3 to 4.9 (a LayerNorm hides their size); divided by 255 twice, there and in a convolutional
#: network: 350 to 1,700. Two seeds each, ``benchmarks/input_scale.py``.
FURTHER_OF_LARGE, FURTHER_OF_SMALL = 2.0, 10.0


def judge_number_scale(trace: Trace, inputs: Inputs, name: str) -> Verdict | None:
    """Numbers that are far too large, or that hardly vary, and outputs that show it; None: neither, or the run learns all the same."""
    scale = inputs.number_scale
    if scale is None or None in (scale.size, scale.spread, scale.size_standardised, scale.spread_standardised):
        return None
    inflated = scale.size > LARGE_OUTPUTS and scale.size >= SMALLER * scale.size_standardised  # type: ignore[operator]
    large = scale.rms > scale.LARGE
    least = FURTHER_OF_LARGE if large else FURTHER_OF_SMALL
    if not inflated and not scale.spread_standardised >= least * scale.spread:  # type: ignore[operator]
        return None
    status = (_weight_of_first_loss(trace) if inflated else None) or weight_of_suspicion(trace)
    if status == "advice":
        return None
    fault = faults.INPUTS_UNSCALED if large else faults.INPUTS_HARDLY_VARY
    return fault.verdict(
        name,
        f"The numbers that enter {scale.layer} lie between {number(scale.least)} and {number(scale.largest)} (standard deviation "
        f"{number(scale.std)}). {_effect(scale, inflated=inflated)}.",
        status,
        limit=f"with standardised numbers, outputs less than {SMALLER:g} times as small, and less than {least:g} times as different; a "
        "fault only where the first loss is too high, or in a run that diverges or does not learn",
        measured="evaluation mode, initial weights; the input of the first layer with weights, as it is and standardised",
    )


def _effect(scale: NumberScale, *, inflated: bool) -> str:
    if inflated:
        return f"The outputs have an rms of {number(scale.size)}; with standardised numbers, of {number(scale.size_standardised)}"
    return (
        f"The outputs differ by {number(scale.spread)} between rows; with standardised numbers, by "
        f"{number(scale.spread_standardised)}"
    )


def _weight_of_first_loss(trace: Trace) -> Status | None:
    """A fault where the first loss is too high, in evaluation and in training mode, or where some loss is not finite; else None."""
    points = trace.probe_loss.points if trace.probe_loss is not None else ()
    if any(not math.isfinite(v) for v in trace.losses):
        return "fail"
    if trace.reading.task == "single_label" and points and points[0].reference is not None and trace.losses:
        uniform = math.log(max(2, trace.reading.classes or 2))
        if min(points[0].reference, trace.losses[0]) > TOO_HIGH * uniform:
            return "fail"
    return None
