"""The logits can become as large, and as small, as the loss asks for."""

from __future__ import annotations

import math
from typing import Any

from ...core.arguments import fraction
from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ...seeds.thresholds import Threshold
from ..spec import Stage, check, not_measured
from . import faults
from .record import LossCurve, LossShape

#: Share of ln(classes), or of what the loss can fall, that bounded logits may cost. tanh costs 18 % for two classes and more for more; a
#: soft cap at 30, or a clamp at 10, nothing that can be seen.
MAX_SHARE = 0.10
#: Share of regression labels' range that may lie outside what the output can be.
OUTSIDE = 0.10
_STANDARD = ("cross_entropy", "bce", "bce_one_hot")


@check(
    stage=Stage.OUTCOME,
    position=4,
    faults=(
        faults.LOGITS_BOUNDED,
        faults.LOGITS_ONE_SIGNED,
        faults.OUTPUTS_CANNOT_REACH_LABELS,
    ),
    thresholds=(
        Threshold("max_share", "at most", "share of the loss that a bound on the logits keeps", 1e-12, 1 - 1e-9),
    ),
    measurements=(LossShape,),
)
def check_logits_unbounded(trace: Trace, *, max_share: float = MAX_SHARE) -> Verdict:
    """The logits can become as large, and as small, as the loss asks for.

    Chosen numbers are put in place of the last layer's output. Where a tanh, sigmoid, clamp or normalisation behind it keeps the logits
    within ``b``, cross-entropy cannot fall below ``ln(1 + (C - 1) exp(-2b))`` however long one trains. Logits that cannot be negative (a
    ReLU) leave rows without gradient. A bound that costs nothing (soft cap at 30) passes, and so does one that moved in training (a
    learnt temperature), and probabilities that go through a logarithm afterwards.

    :param max_share: largest share of the loss that the bound may keep.
    :raises ValueError: not between 0 and 1.

    >>> from pytest_ftcheck import example_trace
    >>> check_logits_unbounded(example_trace()).status
    'skipped'
    """
    fraction("max_share", max_share)
    shape = trace.measured(LossShape)
    if shape is None:
        return not_measured("logits_unbounded", trace, LossShape)
    if (found := _led(shape, max_share)) is not None:
        return found
    if not shape.deep_site or shape.high is None or shape.low is None:
        return (
            Verdict(
                "logits_unbounded", "skipped", "No last layer whose outputs become the logits one by one was found."
            )
            if shape.lead is None
            else Verdict(
                "logits_unbounded",
                "pass",
                "The weights can take a right answer's logit as far from the next as the loss wants it."
                if math.isinf(shape.lead)
                else f"The weights can take a right answer's logit {number(shape.lead)} from the next: the loss can fall all the same.",
            )
        )
    if shape.kind == "regression":
        return _numbers(shape)
    if (found := _bounded(shape, max_share)) is not None:
        return found
    if (found := _one_signed(shape)) is not None:
        return found
    if (found := _spare(shape)) is not None:
        return found
    notes = []
    if shape.reach is not None and shape.reach < 100 and shape.form is None:
        notes.append(f"logits differ by {number(shape.reach)} at most; the loss can fall all the same")
    return Verdict(
        "logits_unbounded",
        "pass",
        f"The logits follow {shape.deep_site} wherever the loss wants them.",
        notes=tuple(notes),
    )


def _say(headline: str, shape: LossShape, fault: str, cause: str, remedy: str, limit: str, rows: Any = ()) -> Verdict:
    measured = f"chosen outputs of {shape.deep_site}, dropout off, on {plural(shape.rows, 'row')}"
    return Verdict("logits_unbounded", "fail", headline, tuple(rows), limit, (cause,), remedy, measured, fault=fault)


def _levels(shape: LossShape) -> list[dict[str, Any]]:
    assert shape.high is not None
    assert shape.low is not None
    return [
        {f"{shape.deep_site} gives": number(x), "logit": number(v)}
        for x, v in ((-100.0, shape.low[1]), (-1.0, shape.low[0]), (1.0, shape.high[0]), (100.0, shape.high[1]))
    ]


def _bounded(shape: LossShape, max_share: float) -> Verdict | None:
    share = _floor(shape)
    moved = None not in (shape.reach, shape.reach_last) and abs(shape.reach_last - shape.reach) > 1e-4 * shape.reach  # type: ignore[operator]
    if share is None or share <= max_share or moved or shape.random or shape.reach is None:
        return None
    floor = ""
    if shape.kind == "single" and shape.known == "cross_entropy":
        floor = f" (the theory: {number(math.log1p((shape.outputs - 1) * math.exp(-shape.reach)))} for {shape.outputs} classes)"
    return _say(
        f"Two logits differ by {number(shape.reach)} at most, whatever {shape.deep_site} gives: {percent(share)} of the loss can never be "
        f"learnt away{floor}.",
        shape,
        "logits_bounded",
        "an activation (tanh, sigmoid, softmax), a clamp or a normalisation stands behind the last layer",
        f"remove what comes after {shape.deep_site}, or multiply the bounded logits by a temperature of 10 to 30",
        f"at most {percent(max_share)} of the loss is kept by the bound; a tanh keeps 18 % for two classes, 22 % for three",
        _levels(shape),
    )


def _led(shape: LossShape, max_share: float) -> Verdict | None:
    """A bound that no weights get over, wherever it stands: vectors normalised in front of the last product."""
    if shape.lead is None or shape.lead_last is None or not shape.lead > 0 or shape.random:
        return None
    lead, others = max(shape.lead, shape.lead_last), max(1, shape.outputs - 1) if shape.kind == "single" else 1
    floor = math.log1p(others * math.exp(-lead)) if lead < 700 else 0.0
    share = floor / math.log1p(others)
    if not share > max_share:
        return None
    if (found := _bounded(shape, max_share)) is not None:  # says which layer
        return found
    return Verdict(
        "logits_unbounded",
        "fail",
        f"Whatever the weights are, a right answer's logit leads by {number(lead)} at most: the loss cannot fall below "
        f"{number(floor)}, {percent(share)} of what knowing nothing costs.",
        ({"largest lead that weights can give": number(shape.lead), "largest after the run": number(shape.lead_last)},),
        f"at most {percent(max_share)} of the loss is kept by the bound; a cosine without scale keeps 22 % for three classes, 35 % for ten",
        ("the logits are cosines without a scale, or vectors are normalised (squashed) in front of the last product",),
        "multiply the logits by a scale of 10 to 30, or by a learnt one",
        "one row followed uphill, with steps as long as the weights: the head's, then all that are trained; dropout off",
        fault="logits_bounded",
    )


def _floor(shape: LossShape) -> float | None:
    """Share of what the loss could fall that it cannot, for what stands behind the last layer."""
    deep, free = shape.deep_curve, shape.curve
    if shape.site == shape.deep_site and free is not None:
        # the loss is computed inside the model: nothing to compare with but zero, which a squashed loss levels off above
        flat = _level(free)
        if shape.known is not None or shape.form is not None or not flat or shape.reach is None or shape.reach > 10:
            return None
        return min(free.right) / free.right[0] if free.right[0] > 0 else None
    if deep is None or free is None or not _finite(deep) or not _finite(free) or free.gain <= 0:
        return None
    if abs(free.right[0] - deep.right[0]) > 0.05 * free.gain:  # what stands between shifts the start: not comparable
        return None
    return (min(deep.right) - min(free.right)) / free.gain


def _level(curve: LossCurve) -> bool:
    """Both the right and the wrong answer's loss no longer change."""
    scale = abs(curve.right[0]) or 1.0
    return all(abs(v[-1] - v[-2]) < 1e-3 * scale for v in (curve.right, curve.wrong))


def _finite(curve: LossCurve) -> bool:
    return all(math.isfinite(v) for v in curve.right)


def _one_signed(shape: LossShape) -> Verdict | None:
    """A ReLU (softplus, GELU) behind the last layer, in front of a loss that wants both signs."""
    assert shape.high is not None
    assert shape.low is not None
    if shape.known not in _STANDARD or shape.form is not None or shape.high[1] < 10 or shape.low[1] <= -1:
        return None
    if abs(shape.low[1] - shape.low[0]) > 1:
        return None
    return _say(
        f"The logits cannot be negative: where {shape.deep_site} gives -100, the logit is {number(shape.low[1])}.",
        shape,
        "logits_one_signed",
        "a ReLU (or softplus, GELU) stands behind the last layer: outputs below zero get no gradient, and rows can die",
        f"remove the activation after {shape.deep_site}",
        "a logit falls with the last layer's output; -1 is the least that common activations give",
        _levels(shape),
    )


def _spare(shape: LossShape) -> Verdict | None:
    """Many more outputs than classes."""
    if shape.kind != "single" or shape.largest_label is None or shape.labels_seen < 32:
        return None
    used = shape.largest_label + 1
    if shape.outputs < 2 * used + 1:
        return None
    return Verdict(
        "logits_unbounded",
        "advice",
        f"The head has {plural(shape.outputs, 'output')}, and no label of {shape.labels_seen} is above {shape.largest_label}.",
        causes=("num_labels does not fit the data, or only some classes are in these batches",),
        remedy=f"num_labels={used}, if there are no more classes",
        limit="advice from twice as many outputs as classes seen",
    )


def _numbers(shape: LossShape) -> Verdict:
    """Regression: can the output reach the labels?"""
    assert shape.high is not None
    assert shape.low is not None
    low, high = shape.low[1], shape.high[1]
    if shape.label_range is None or shape.known not in ("squared_error", "absolute_error", "huber"):
        return Verdict("logits_unbounded", "skipped", "Which numbers the loss wants is not known.")
    first, last = shape.label_range
    width = last - first
    outside = max(0.0, low - first, last - high) if low <= high else 0.0
    if width > 0 and outside > OUTSIDE * width and (low > -50 or high < 50):
        return _say(
            f"The output lies between {number(low)} and {number(high)}, the labels between {number(first)} and {number(last)}.",
            shape,
            "outputs_cannot_reach_labels",
            "an activation (sigmoid, tanh, ReLU) stands behind the last layer",
            f"remove what comes after {shape.deep_site}, or scale the labels into its range",
            f"labels reach beyond the outputs by at most {percent(OUTSIDE)} of their range",
            _levels(shape),
        )
    return Verdict("logits_unbounded", "pass", f"The outputs can reach the labels ({number(first)} to {number(last)}).")
