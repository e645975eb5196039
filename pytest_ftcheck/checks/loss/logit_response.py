"""How the loss responds to logits: it depends on them, has its minimum at the right answer, and no known wrong formula."""

from __future__ import annotations

import math

from ...core.formatting import number, percent
from ...core.verdict import Verdict
from . import faults
from .loss_evidence import failure
from .record import LossShape

#: Least share of the slope at a uniform prediction that the loss can fall by. With target probability t for the label a loss of C classes
#: has 0.83 (C = 3, t = 1), 0.50 (label smoothing 0.3), 0.26 (0.5) and 0.07 (0.9, the usual slip for 0.1).
LEAST_GAIN = 0.15
#: Losses that are wrong for every task, by the name under which their gradient is recognised.
WRONG_LOSSES = {
    fault.name: fault
    for fault in (
        faults.DOUBLE_SOFTMAX,
        faults.SIGMOID_BEFORE_CROSS_ENTROPY,
        faults.NLL_ON_RAW_LOGITS,
        faults.NLL_ON_PROBABILITIES,
        faults.NLL_ON_SIGMOID,
        faults.SOFTMAX_OVER_BATCH,
        faults.DOUBLE_SOFTMAX_OVER_BATCH,
        faults.SIGMOID_BEFORE_BCE,
        faults.SOFTMAX_BEFORE_BCE,
        faults.SOFTMAX_ON_TAGS,
        faults.CROSS_ENTROPY_ON_TAGS,
    )
}
#: Only wrong where they go below zero: 1 - p is a sound loss.
WRONG_IF_NEGATIVE = (faults.NLL_ON_PROBABILITIES.name, faults.NLL_ON_SIGMOID.name)
#: Those that cannot come near zero, however right the answer, because a softmax or sigmoid is applied first.
WRONG_WITH_A_FLOOR = (
    faults.DOUBLE_SOFTMAX.name,
    faults.SIGMOID_BEFORE_CROSS_ENTROPY.name,
    faults.DOUBLE_SOFTMAX_OVER_BATCH.name,
    faults.SIGMOID_BEFORE_BCE.name,
    faults.SOFTMAX_BEFORE_BCE.name,
)


def find_ignored_logits(shape: LossShape) -> Verdict | None:
    """The loss is the same for all logits."""
    if shape.depends is not False:
        return None
    limit = "the loss changes with the logits"
    if shape.form == "ones" or shape.outputs == 1:
        headline = "The loss does not depend on the model's single output."
        return failure(faults.SOFTMAX_OVER_ONE_OUTPUT, headline, shape, limit)
    return failure(faults.LOSS_IGNORES_LOGITS, "The loss does not depend on the logits.", shape, limit)


def find_missing_gradient(shape: LossShape) -> Verdict | None:
    """The loss changes with the logits but has no gradient."""
    if shape.differentiable is not False:
        return None
    return failure(
        faults.LOSS_NOT_DIFFERENTIABLE,
        "The loss changes with the logits but has no gradient with respect to them: nothing can be learnt from it.",
        shape,
        "the loss has a gradient with respect to the logits",
    )


def find_known_wrong_loss(shape: LossShape) -> Verdict | None:
    """The gradient is exactly that of a loss that is wrong for every task."""
    curve = shape.curve
    if shape.known not in WRONG_LOSSES or curve is None:
        return None
    if shape.known in WRONG_WITH_A_FLOOR and curve.least < 0.02 * curve.uniform:
        return None  # another loss with nearly the same direction: 1 - p, or the reverse Kullback-Leibler divergence
    if shape.known in WRONG_IF_NEGATIVE and curve.least > -1e-3 * max(1e-12, curve.gain):
        return None
    fault = WRONG_LOSSES[shape.known]
    lowest = "is unbounded below" if shape.unbounded_below else f"is {number(curve.least)} at best"
    return failure(
        fault,
        f"{fault.title[:1].upper()}{fault.title[1:]}: the right answer's loss {lowest} ({number(curve.uniform)} for a uniform prediction).",
        shape,
        "the gradient has the direction of a sound loss of the task; this one has exactly that of the faulty loss",
    )


def find_negated_gradient(shape: LossShape) -> Verdict | None:
    """The gradient is the opposite of the standard loss's."""
    if shape.random or shape.cosine is None or shape.cosine > -0.9:
        return None
    return failure(
        faults.LOSS_NEGATED,
        f"The loss pushes away from the labels: its gradient is opposite to the standard loss's (cosine {number(shape.cosine)}).",
        shape,
        "cosine with the standard loss's gradient above -0.9; healthy losses have 0.5 to 1",
    )


def find_unbounded_loss(shape: LossShape) -> Verdict | None:
    """The right answer's loss falls without limit."""
    if shape.temperature is not None:
        return None
    curve = shape.curve
    if shape.kind not in ("single", "binary", "tags") or shape.random or not shape.unbounded_below or curve is None:
        return None
    return failure(
        faults.LOSS_UNBOUNDED,
        f"The loss is unbounded below: for the right answer it is {number(curve.at(8.0)[0])} at logits of +-8 and "
        f"{number(curve.right[-1])} at +-{curve.margins[-1]:g}.",
        shape,
        "the loss of the right answer levels off as the logits grow",
    )


def find_rewarded_mistakes(shape: LossShape) -> Verdict | None:
    """A confidently wrong prediction has a lower loss than a uniform one."""
    curve = shape.curve
    if shape.random or shape.kind not in ("single", "binary", "tags") or curve is None or curve.gain <= 0:
        return None
    wrong = curve.at(8.0)[1]
    if not wrong < curve.uniform - 0.5 * curve.gain:
        return None
    return failure(
        faults.MISTAKES_PAY,
        f"A confidently wrong prediction has a lower loss ({number(wrong)}) than a uniform one ({number(curve.uniform)}): wrong rows are "
        "pushed further from their label.",
        shape,
        "a wrong answer's loss is above that of a uniform prediction; healthy losses: by at least as much as the right answer's is below",
    )


def find_too_much_smoothing(shape: LossShape) -> Verdict | None:
    """The loss has its minimum near the uniform prediction."""
    curve = shape.curve
    if shape.kind != "single" or shape.random or not shape.by_row or curve is None or shape.known is not None:
        return None
    if shape.shift is None or shape.shift > 0.05 or not shape.slope or shape.slope <= 0 or shape.agreement != 1:
        return None
    if curve.gain >= LEAST_GAIN * shape.slope or curve.best_margin >= 4:
        return None
    if (
        curve.right[-1] < curve.least + curve.gain
    ):  # it stays at its minimum: a temperature within the loss, no smoothing
        return None
    # the best margin m has the label's probability at e^2m : 1 against each other class
    probability = 1 / (1 + (shape.outputs - 1) * math.exp(-2 * curve.best_margin))
    return failure(
        faults.SMOOTHING_TOO_STRONG,
        f"The loss is lowest where the label has a probability of about {percent(probability)} ({percent(1 / shape.outputs)} is chance): "
        f"it falls from {number(curve.uniform, 4)} to {number(curve.least, 4)} at best.",
        shape,
        f"the loss can fall by at least {LEAST_GAIN:g} of its slope; with label smoothing of 0.3 it can fall by 0.5",
    )
