"""Numbers as labels: can the outputs come near them, and are they numbers at all?"""

from __future__ import annotations

import math

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ..learning import ENOUGH, learns, weight_of_suspicion
from ..loop.record import REGRESSION, LoopCalls, all_observed
from . import faults
from .loss_stable import COLLAPSE
from .record import LossShape

#: Losses of a regression whose least value is at the label.
STANDARD = ("squared_error", "absolute_error", "huber")
#: Largest label, as a multiple of the outputs' size at the start (1 at least), from which on labels are far away.
FAR = 100.0
#: Calls of the loop's own loss that must be alike.
LEAST_CALLS = 3
#: Times the steps of the run that the outputs would need for the way to the labels, at the pace of the run, from which on it does not
#: learn: a run of 64 steps stands for a training of tens of thousands then.
TIMES_THE_RUN = 1000.0
#: Share of the way that is left, from which on labels are named.
STILL_FAR = 0.9
#: Labels from which on whole numbers are taken for class numbers; fewer levels are two answers, for which squared errors are a sound loss.
MIN_LABELS, LEAST_LEVELS = 64, 3


def find_unscaled_targets(trace: Trace, shape: LossShape, name: str) -> Verdict | None:
    """Labels far from all outputs, in a run that hardly came nearer, or that blew up."""
    points = trace.probe_loss.points if trace.probe_loss is not None else ()
    if shape.known not in STANDARD or shape.label_range is None or len(points) < 2 or learns(trace):
        return None
    start, largest = shape.size_first or 0.0, max(map(abs, shape.label_range))
    moved = any(t.motion.share_changed > 0 for t in trace.tensors)
    if largest < FAR * max(start, 1.0) or not moved or not points[0].loss > 0:
        return None
    first, last = points[0].loss, points[-1].loss
    status: Status = "fail" if len(trace.steps) >= ENOUGH else "inconclusive"
    if not math.isfinite(last):
        status, pace = "fail", "diverged on the way to them"
    else:
        # a squared error has the square of the distance
        left = math.sqrt(max(last, 0.0) / first) if shape.known == "squared_error" else max(last, 0.0) / first
        if left < STILL_FAR:
            return None
        if _collapsed(shape):  # one and the same pull on every row
            status = "fail"
        elif left < 1 - 1 / TIMES_THE_RUN:  # a longer training may come there
            status = "inconclusive"
        pace = f"came nearer to them by {percent(1 - left)}" if left < 1 else "came no nearer to them"
    low, high = shape.label_range
    return faults.TARGETS_UNSCALED.verdict(
        name,
        f"The labels lie between {number(low)} and {number(high)}; the outputs started at a size of {number(start)} (rms), and in "
        f"{plural(len(trace.steps), 'step')} {pace}.",
        status,
        limit=f"labels below {FAR:g} times the outputs' first size (1 at least), or {percent(1 - STILL_FAR)} of the way to them in the "
        f"run; a fault where the whole way takes more than {TIMES_THE_RUN:,.0f} times its steps",
        measured="labels of the batches; outputs and loss of the probe rows before and after, dropout off",
    )


def _collapsed(shape: LossShape) -> bool:
    """Whether the outputs became the same for all rows, as `loss_stable` judges it."""
    before, after = shape.spread_first, shape.spread_last
    return before is not None and after is not None and after < COLLAPSE * before


def find_bounded_outputs(shape: LossShape, name: str, outside: float) -> Verdict | None:
    """Labels outside what the output can be for any weights, where no last layer shows it.

    :param outside: share of the labels' range that may lie outside.
    """
    if shape.output_bounds is None or shape.label_range is None or shape.known not in STANDARD:
        return None
    (low, high), (first, last) = shape.output_bounds, shape.label_range
    if last <= first or max(low - first, last - high) <= outside * (last - first):
        return None
    # the ascent ends where it has reached the labels
    bounds = [f"{number(low)} at least"] * (low > first) + [f"{number(high)} at most"] * (high < last)
    return faults.OUTPUTS_BOUNDED_BY_DESIGN.verdict(
        name,
        f"Whatever the weights are, the output is {' and '.join(bounds)}; the labels lie between {number(first)} and {number(last)}.",
        limit=f"labels lie outside the outputs' range by at most {percent(outside)} of their own range",
        measured="gradient ascent on one row's output, in both directions, with steps as long as the trained weights; dropout off",
    )


def find_bounded_in_loop(trace: Trace, name: str, outside: float) -> Verdict | None:
    """Labels outside what the input of the loop's own loss can be: a cosine, a sigmoid or a tanh.

    :param outside: share of the labels' range that may lie outside.
    """
    loop = trace.measured(LoopCalls)
    calls = [c for c in loop.losses if c.function in REGRESSION] if loop is not None else []
    kinds = {c.bounds for c in calls}
    bounds = kinds.pop() if len(kinds) == 1 else None
    ranges = [c.label_range for c in calls if c.label_range is not None]
    if bounds is None or len(ranges) < LEAST_CALLS:
        return None
    first, last = min(low for low, _ in ranges), max(high for _, high in ranges)
    if last <= first or max(bounds.low - first, last - bounds.high) <= outside * (last - first):
        return None
    fault = faults.OUTPUTS_BOUNDED_BY_DESIGN
    if bounds.kind != "cosine":
        fault = fault.because(
            f"a {bounds.kind} follows the last layer", f"remove the {bounds.kind}, or scale the labels into its range"
        )
    what = "a cosine: a product of vectors of length 1" if bounds.kind == "cosine" else f"a {bounds.kind}"
    return fault.verdict(
        name,
        f"The input of {calls[0].function} is {what}, in {all_observed(len(calls))}, so between {number(bounds.low)} and "
        f"{number(bounds.high)}; the labels lie between {number(first)} and {number(last)}.",
        limit=f"labels lie outside the outputs' range by at most {percent(outside)} of their own range",
        measured="the operation that made the input of the loop's own loss, and its labels",
    )


def find_classes_as_numbers(trace: Trace, shape: LossShape, name: str) -> Verdict | None:
    """Whole numbers from 0 on without a gap, under the loss of a regression."""
    levels = shape.label_levels
    if shape.kind != "regression" or shape.known not in STANDARD or levels is None:
        return None
    declared = trace.intent is not None and trace.intent.task == "regression"
    if declared or levels < LEAST_LEVELS or shape.labels_seen < MIN_LABELS:
        return None
    loss = shape.known.replace("_", " ")
    return faults.CLASSES_AS_NUMBERS.with_details(last=levels - 1, classes=levels).verdict(
        name,
        f"All {plural(shape.labels_seen, 'label')} are whole numbers from 0 to {levels - 1}, and the loss is the {loss}: a row of class 0 "
        f"or {levels - 1} is predicted between them.",
        weight_of_suspicion(trace),
        limit=f"fewer than {LEAST_LEVELS} different whole numbers, a gap among them, or Intent(task='regression'); a fault only in a run "
        "that does not learn",
        measured="labels of the batches; the gradient of the loss at chosen outputs",
    )
