"""Can the logits become as large, and as small, as the loss requires?"""

from __future__ import annotations

import math
from typing import Any

from ...core.arguments import fraction
from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ...seeds.thresholds import Threshold
from ..spec import Fault, Stage, check, not_measured
from . import faults
from .record import LossCurve, LossShape
from .regression_targets import find_bounded_in_loop, find_bounded_outputs, find_unscaled_targets

#: Share of ln(classes), or of what the loss can fall, that a bound on the logits may keep. A tanh keeps 18 % for two classes and more for
#: more classes; a soft cap at 30, or a clamp at 10, keeps nothing measurable.
MAX_SHARE = 0.10
#: Share of regression labels' range that may lie outside the range of the output.
OUTSIDE = 0.10
NAME = "logits_unbounded"
#: Losses that need logits of both signs.
_STANDARD = ("cross_entropy", "bce", "bce_one_hot")


@check(
    stage=Stage.OUTCOME,
    position=4,
    faults=(
        faults.HEAD_LEFT_RANDOM,
        faults.LOGITS_BOUNDED,
        faults.LOGITS_ONE_SIGNED,
        faults.OUTPUTS_CANNOT_REACH_LABELS,
        faults.TARGETS_UNSCALED,
    ),
    thresholds=(
        Threshold("max_share", "at most", "share of the loss that a bound on the logits keeps", 1e-12, 1 - 1e-9),
    ),
    measurements=(LossShape,),
)
def check_logits_unbounded(trace: Trace, *, max_share: float = MAX_SHARE) -> Verdict:
    """The logits can become as large, and as small, as the loss requires.

    Chosen numbers are put in place of the last layer's output. Where a tanh, sigmoid, clamp or normalisation after it keeps the logits
    within ``b``, cross-entropy cannot fall below ``ln(1 + (C - 1) exp(-2b))``, however long the training. Logits that cannot be negative
    (a ReLU) leave rows without a gradient. A bound that keeps almost nothing of the loss (a soft cap at 30) passes. So does one that
    moved in training (a learnt temperature), and so do probabilities whose logarithm is taken afterwards.

    :param max_share: largest share of the loss that the bound may keep.
    :raises ValueError: not between 0 and 1.

    >>> from pytest_ftcheck import example_trace
    >>> check_logits_unbounded(example_trace()).status
    'inconclusive'
    """
    fraction("max_share", max_share)
    if (verdict := find_bounded_in_loop(trace, NAME, OUTSIDE)) is not None:
        return verdict
    shape = trace.measured(LossShape)
    if shape is None:
        return not_measured(NAME, trace, LossShape)
    if (verdict := _bounded_for_any_weights(shape, max_share)) is not None:
        after_head = _bounded_after_last_layer(shape, max_share) is not None
        return _of_a_frozen_head(trace, verdict, after_head=after_head) or verdict
    if (verdict := find_bounded_outputs(shape, NAME, OUTSIDE)) is not None:
        return verdict
    if (verdict := _judge_reach(shape, max_share)).ok and (
        far := find_unscaled_targets(trace, shape, NAME)
    ) is not None:
        return far
    return verdict


def _of_a_frozen_head(trace: Trace, verdict: Verdict, *, after_head: bool) -> Verdict | None:
    """The bound is that of a head that is frozen while other parameters are trained; None: it is none, or it was declared frozen.

    :param after_head: what follows the last layer bounds the logits by itself.
    """
    head = [t for t in trace.tensors if t.part == "head"]
    trained = [t for t in trace.tensors if t.part != "head" and t.trainable]
    if not head or not trained or any(t.trainable or t.trainable_last for t in head):
        return None
    if trace.intent is not None and all(trace.intent.wants_frozen(t.name) for t in head):
        return None
    names = ", ".join(repr(name.rpartition(".")[2]) for name in trace.head)
    adapted = any(t.role == "adapter" for t in trained)
    if after_head and not adapted:
        return None
    kind = faults.HEAD_LEFT_RANDOM if adapted else faults.HEAD_FROZEN_AT_RANDOM
    fault = kind.with_details(head=", ".join(trace.head), names=names)
    return fault.verdict(
        NAME, verdict.headline, evidence=verdict.evidence, limit=verdict.limit, measured=verdict.measured
    )


def _judge_reach(shape: LossShape, max_share: float) -> Verdict:
    """Whether what follows the last layer lets the outputs be as large, and as small, as the loss requires."""
    if not shape.last_layer or shape.high_logits is None or shape.low_logits is None:
        return _without_last_layer(shape)
    if shape.kind == "regression":
        return _regression(shape)
    verdict = _bounded_after_last_layer(shape, max_share) or _one_signed(shape) or _too_many_outputs(shape)
    if verdict is not None:
        return verdict
    notes = []
    if shape.reach is not None and shape.reach < 100 and shape.form is None:
        notes.append(f"two logits differ by {number(shape.reach)} at most, which is enough for the loss to fall")
    return Verdict(
        NAME, "pass", f"The logits follow {shape.last_layer} as far as the loss requires.", notes=tuple(notes)
    )


def _fail(fault: Fault, headline: str, shape: LossShape, limit: str) -> Verdict:
    """A fault between the last layer and the loss."""
    measured = f"chosen outputs of {shape.last_layer}, dropout off, on {plural(shape.rows, 'row')}"
    fault = fault.with_details(layer=shape.last_layer)
    return fault.verdict(NAME, headline, evidence=_levels(shape), limit=limit, measured=measured)


def _levels(shape: LossShape) -> tuple[dict[str, Any], ...]:
    """The logits for a few outputs of the last layer."""
    if shape.high_logits is None or shape.low_logits is None:
        return ()
    low, high = shape.low_logits, shape.high_logits
    return tuple(
        {f"{shape.last_layer} returns": number(output), "logit": number(logit)}
        for output, logit in ((-100.0, low[1]), (-1.0, low[0]), (1.0, high[0]), (100.0, high[1]))
    )


def _without_last_layer(shape: LossShape) -> Verdict:
    if shape.largest_margin is None:
        return Verdict(NAME, "skipped", "No last layer was found whose outputs become the logits one by one.")
    if math.isinf(shape.largest_margin):
        return Verdict(NAME, "pass", "Some weights give a right answer as large a margin as the loss requires.")
    margin = number(shape.largest_margin)
    return Verdict(NAME, "pass", f"Weights can give a right answer a margin of {margin}, enough for the loss to fall.")


def _bounded_after_last_layer(shape: LossShape, max_share: float) -> Verdict | None:
    share = _share_kept(shape)
    moved = None not in (shape.reach, shape.reach_last) and abs(shape.reach_last - shape.reach) > 1e-4 * shape.reach  # type: ignore[operator]
    if share is None or share <= max_share or moved or shape.random or shape.reach is None:
        return None
    floor = ""
    if shape.kind == "single" and shape.known == "cross_entropy":
        theory = math.log1p((shape.outputs - 1) * math.exp(-shape.reach))
        floor = f" (in theory {number(theory)} for {shape.outputs} classes)"
    return _fail(
        faults.LOGITS_BOUNDED,
        f"Two logits differ by {number(shape.reach)} at most, whatever {shape.last_layer} returns: {percent(share)} of the loss always "
        f"remains{floor}.",
        shape,
        f"the bound keeps at most {percent(max_share)} of the loss; a tanh keeps 18 % for two classes, 22 % for three",
    )


def _bounded_for_any_weights(shape: LossShape, max_share: float) -> Verdict | None:
    """A bound that no weights overcome, wherever it is: vectors normalised before the last product, for example."""
    margins = shape.largest_margin, shape.largest_margin_last
    if margins[0] is None or margins[1] is None or not margins[0] > 0 or shape.random:
        return None
    margin, others = max(margins[0], margins[1]), max(1, shape.outputs - 1) if shape.kind == "single" else 1
    floor = math.log1p(others * math.exp(-margin)) if margin < 700 else 0.0
    share = floor / math.log1p(others)
    if not share > max_share:
        return None
    if (verdict := _bounded_after_last_layer(shape, max_share)) is not None:  # names the layer
        return verdict
    cosines = faults.LOGITS_BOUNDED.because(
        "the logits are cosines without a scale, or vectors are normalised (squashed) before the last product",
        "multiply the logits by a scale of 10 to 30, or by a learnt one",
    )
    return cosines.verdict(
        NAME,
        f"Whatever the weights are, a right answer's margin is {number(margin)} at most: the loss cannot fall below {number(floor)}, "
        f"{percent(share)} of the loss of a uniform prediction.",
        evidence=({"largest margin for any weights": number(margins[0]), "largest after the run": number(margins[1])},),
        limit=f"the bound keeps at most {percent(max_share)} of the loss; cosines keep 22 % for three classes, 35 % for ten",
        measured="gradient ascent on one row's margin, with steps as long as the weights: the head's, then all trained ones; dropout off",
    )


def _share_kept(shape: LossShape) -> float | None:
    """Share of what the loss could fall that what follows the last layer prevents."""
    bounded, free = shape.last_layer_curve, shape.curve
    if shape.site == shape.last_layer and free is not None:
        # the loss is computed inside the model: nothing to compare with but zero, which a squashed loss levels off above
        level = _levels_off(free)
        if shape.known is not None or shape.form is not None or not level or shape.reach is None or shape.reach > 10:
            return None
        return free.least / free.uniform if free.uniform > 0 else None
    if bounded is None or free is None or not _finite(bounded) or not _finite(free) or free.gain <= 0:
        return None
    if abs(free.uniform - bounded.uniform) > 0.05 * free.gain:  # what is between them shifts the start: not comparable
        return None
    return (bounded.least - free.least) / free.gain


def _levels_off(curve: LossCurve) -> bool:
    """Neither the right nor the wrong answer's loss changes any more at the largest margins."""
    scale = abs(curve.uniform) or 1.0
    return all(abs(losses[-1] - losses[-2]) < 1e-3 * scale for losses in (curve.right, curve.wrong))


def _finite(curve: LossCurve) -> bool:
    return all(math.isfinite(loss) for loss in curve.right)


def _one_signed(shape: LossShape) -> Verdict | None:
    """A ReLU (softplus, GELU) after the last layer, before a loss that needs both signs."""
    assert shape.high_logits is not None
    assert shape.low_logits is not None
    at_minus_1, at_minus_100 = shape.low_logits
    if shape.known not in _STANDARD or shape.form is not None or shape.high_logits[1] < 10 or at_minus_100 <= -1:
        return None
    if abs(at_minus_100 - at_minus_1) > 1:
        return None
    return _fail(
        faults.LOGITS_ONE_SIGNED,
        f"The logits cannot be negative: where {shape.last_layer} returns -100, the logit is {number(at_minus_100)}.",
        shape,
        "a logit falls with the last layer's output; common activations do not go below -1",
    )


def _too_many_outputs(shape: LossShape) -> Verdict | None:
    """Many more outputs than classes."""
    if shape.kind != "single" or shape.vocabulary or shape.largest_label is None or shape.labels_seen < 32:
        return None
    used = shape.largest_label + 1
    if shape.outputs < 2 * used + 1:
        return None
    return Verdict(
        NAME,
        "advice",
        f"The head has {plural(shape.outputs, 'output')}, but the largest of {shape.labels_seen} labels is {shape.largest_label}.",
        causes=("num_labels does not fit the data, or these batches contain only some of the classes",),
        remedy=f"num_labels={used}, if there are no more classes",
        limit="advice if there are more than twice as many outputs as classes seen",
    )


def _regression(shape: LossShape) -> Verdict:
    """Whether the output can reach the labels."""
    assert shape.high_logits is not None
    assert shape.low_logits is not None
    low, high = shape.low_logits[1], shape.high_logits[1]
    if shape.label_range is None or shape.known not in ("squared_error", "absolute_error", "huber"):
        return Verdict(NAME, "skipped", "It is not known which outputs have the lowest loss.")
    first, last = shape.label_range
    width = last - first
    outside = max(0.0, low - first, last - high) if low <= high else 0.0
    if width > 0 and outside > OUTSIDE * width and (low > -50 or high < 50):
        return _fail(
            faults.OUTPUTS_CANNOT_REACH_LABELS,
            f"The output lies between {number(low)} and {number(high)}, the labels between {number(first)} and {number(last)}.",
            shape,
            f"labels lie outside the outputs' range by at most {percent(OUTSIDE)} of their own range",
        )
    return Verdict(NAME, "pass", f"The outputs can reach the labels ({number(first)} to {number(last)}).")
