"""The loss is one of the task: least for the right answer, most for the wrong one, for every row and class."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ..spec import Stage, Symptom, check, not_measured
from . import faults
from .record import LossCurve, LossShape
from .wrong_losses import FLOORED, SIGNED, WRONG

#: Least share of the slope at "all classes alike" that the loss can fall by. With target probability t for the label a loss of C classes
#: has 0.83 (C = 3, t = 1), 0.50 (label smoothing 0.3), 0.26 (0.5) and 0.07 (0.9, the usual slip for 0.1).
LEAST_GAIN = 0.15
#: Share of rows whose label the loss must push up most; a healthy loss does for all.
LEAST_AGREEMENT = 0.7
#: A change of one row's label moves its own gradient at least this many times as much as another row's. Healthy: the others do not notice,
#: or little (a loss standardised over the batch); broadcasting: exactly 1.
LEAST_OWN = 1.5
#: A gradient this many times shorter than the textbook's is scaled to nothing: Adam divides by sqrt(v) + eps.
NOTHING = 1e-3

#: Share of tags that the loss must read: that it changes for a tag when this is turned over. Healthy losses read all.
LEAST_READ = 0.95
#: Share of tokens whose label must meet its own token's logits; healthy: all.
LEAST_MET = 0.7
#: What the weights hear of other terms, as a multiple of what they hear of the task, above which a run that learns nothing is their work.
DROWNED = 30.0
#: Temperatures in use: 1/64 for cosines (ArcFace), 2 to 20 in distillation. Above this, what a run makes of it decides.
HOTTEST = 100.0

_MEASURED = "the loss asked with chosen logits in place of the model's, before the first step, dropout off"

Judge = Callable[[LossShape], Verdict | None]


@check(
    stage=Stage.LOSS_FUNCTION,
    position=1,
    faults=(
        faults.LOSS_NOT_DIFFERENTIABLE,
        faults.SOFTMAX_OVER_ONE_OUTPUT,
        faults.LOSS_IGNORES_LOGITS,
        faults.WRONG_TASK,
        faults.NLL_ON_RAW_LOGITS,
        faults.NLL_ON_PROBABILITIES,
        faults.NLL_ON_SIGMOID,
        faults.DOUBLE_SOFTMAX,
        faults.DOUBLE_SOFTMAX_OVER_BATCH,
        faults.SOFTMAX_OVER_BATCH,
        faults.SIGMOID_BEFORE_CROSS_ENTROPY,
        faults.SIGMOID_BEFORE_BCE,
        faults.SOFTMAX_BEFORE_BCE,
        faults.SOFTMAX_ON_TAGS,
        faults.CROSS_ENTROPY_ON_TAGS,
        faults.LOSS_NEGATED,
        faults.OWN_PREDICTIONS_AS_TARGETS,
        faults.LABELS_PERMUTED,
        faults.LABELS_OF_OTHER_TOKENS,
        faults.LABELS_OF_OTHER_ROWS,
        faults.REGRESSION_BROADCAST,
        faults.SMOOTHING_TOO_STRONG,
        faults.POSITIVES_IGNORED,
        faults.NEGATIVES_IGNORED,
        faults.TAGS_NOT_READ,
        faults.MISTAKES_PAY,
        faults.CLASS_IGNORED,
        faults.ROWS_IGNORED,
        faults.LOSS_UNBOUNDED,
        faults.SUM_REDUCTION,
        faults.TEMPERATURE_EXTREME,
        faults.OTHER_TERMS_DROWN,
        faults.LOSS_SCALED_TO_NOTHING,
    ),
    measurements=(LossShape,),
    shows=(Symptom.LOSS_WRONG,),
)
def check_loss_matches_task(trace: Trace) -> Verdict:
    """The loss is one of the task: least for the right answer, most for the wrong one, for every row and class.

    Chosen logits are put in place of the model's, and the loss is asked what it makes of them: of the right answer, of a wrong one, of
    "all classes alike", and in which direction its gradient pushes each row. A loss that is known by its gradient is named.
    Its scale alone is no fault, unless the run breaks on it; nor are label smoothing, class weights, focal, margin and robust losses.

    >>> from pytest_ftcheck import example_trace
    >>> check_loss_matches_task(example_trace()).status
    'skipped'
    """
    shape = trace.measured(LossShape)
    if shape is None:
        return not_measured("loss_matches_task", trace, LossShape)
    if shape.reason is not None and shape.depends is None:
        return Verdict("loss_matches_task", "skipped", f"{shape.reason[:1].upper()}{shape.reason[1:]}.")
    for judge in _JUDGES:
        if (found := judge(shape)) is not None:
            return found
    return (
        _drowned(trace, shape) or _heated(trace, shape) or _task(trace, shape) or _scaled(trace, shape) or _sound(shape)
    )


def _say(
    status: Status, headline: str, shape: LossShape, fault: str = "", cause: str = "", remedy: str = "", limit: str = ""
) -> Verdict:
    return Verdict(
        "loss_matches_task",
        status,
        headline,
        _rows(shape),
        limit,
        (cause,) if cause else (),
        remedy,
        f"{_MEASURED}, on {plural(shape.rows, 'row')}",
        fault=fault,
    )


def _rows(shape: LossShape) -> tuple[dict[str, Any], ...]:
    """What the loss makes of a few answers."""
    curve = shape.curve
    if curve is None:
        return ()
    rows: list[dict[str, Any]] = [{"answer": "all classes alike", "loss": number(curve.right[0], 4)}]
    for margin in (2.0, 8.0):
        if margin in curve.margins:
            at = curve.margins.index(margin)
            rows.append({"answer": f"right, logits +-{margin:g}", "loss": number(curve.right[at], 4)})
            rows.append({"answer": f"wrong, logits +-{margin:g}", "loss": number(curve.wrong[at], 4)})
    return tuple(rows)


def _sound(shape: LossShape) -> Verdict:
    curve, notes = shape.curve, []
    if shape.random:
        notes.append("the loss draws random numbers (mixup?): only what does not depend on them was judged")
    if not shape.by_row:
        notes.append(
            "one label a token: which token's label is whose is not judged, for they may be meant shifted by one"
        )
    if shape.uses_labels is False:
        notes.append("the loss does not read the labels of the batch")
    if shape.agreement is not None and shape.agreement <= LEAST_AGREEMENT and shape.by_row:
        notes.append(f"the loss pushes the label up most in {percent(shape.agreement)} of the rows only")
    if shape.scale is not None and shape.known is not None and abs(shape.scale - 1) > 0.05:
        notes.append(f"its gradient is {number(shape.scale)} times that of the textbook loss")
    name = f" It is {shape.known.replace('_', ' ')}." if shape.known and shape.known not in WRONG else ""
    if curve is None:
        headline = "The loss pushes each output towards its own label."
    else:
        headline = (
            f"The loss is {number(min(curve.right))} for the right answer, {number(curve.right[0])} where all classes are alike, "
            f"{number(_at(curve, 2.0)[1])} for a wrong one."
        )
    return Verdict("loss_matches_task", "pass", headline + name, notes=tuple(notes))


def _at(curve: LossCurve, margin: float) -> tuple[float, float]:
    at = curve.margins.index(margin) if margin in curve.margins else -1
    return curve.right[at], curve.wrong[at]


# ------------------------------------------------------------------ judges, in the order in which they speak
def _constant(shape: LossShape) -> Verdict | None:
    if shape.depends is not False:
        return None
    if shape.form == "ones" or shape.outputs == 1:
        return _say(
            "fail",
            "The loss does not depend on the model's one output: it is the same whatever stands there.",
            shape,
            "softmax_over_one_output",
            "softmax over a single output is 1 for every row, and its gradient is 0",
            "use binary_cross_entropy_with_logits(logits.squeeze(-1), labels.float()), or two outputs and cross_entropy",
            "the loss changes with the logits",
        )
    return _say(
        "fail",
        "The loss does not depend on the logits: it is the same whatever stands there.",
        shape,
        "loss_ignores_logits",
        "the loss is computed from something else than the model's output, or what is computed from it is multiplied by zero",
        "compute the loss from the logits of this forward pass",
        "the loss changes with the logits",
    )


def _cut(shape: LossShape) -> Verdict | None:
    if shape.differentiable is not False:
        return None
    return _say(
        "fail",
        "The loss changes with the logits but has no gradient there: nothing can be learnt from it.",
        shape,
        "loss_not_differentiable",
        "the graph is cut between logits and loss: argmax, .detach(), .data, .item(), a tensor made anew, torch.no_grad()",
        "compute the loss from the logits themselves; requires_grad_() on the loss only hides the error",
        "the loss has a gradient with respect to the logits",
    )


def _named(shape: LossShape) -> Verdict | None:
    if shape.known not in WRONG or shape.curve is None:
        return None
    curve = shape.curve
    if shape.known in FLOORED and min(curve.right) < 0.02 * curve.right[0]:
        return None  # another loss with nearly the same direction: 1 - p, or the reverse Kullback-Leibler divergence
    if shape.known in SIGNED and min(curve.right) > -1e-3 * max(1e-12, curve.gain):
        return None
    cause, remedy = WRONG[shape.known]
    best, alike = min(curve.right), curve.right[0]
    what = "falls without bound" if _bottomless(shape) else f"is {number(best)} at best"
    return _say(
        "fail",
        f"The right answer's loss {what} ({number(alike)} where all classes are alike): {cause}.",
        shape,
        shape.known,
        cause,
        remedy,
        "gradient in the direction of a sound loss of the task; this one has exactly that of the faulty one",
    )


def _negated(shape: LossShape) -> Verdict | None:
    if shape.random or shape.cosine is None or shape.cosine > -0.9:
        return None
    return _say(
        "fail",
        f"The loss pushes away from the labels: its gradient is the textbook's, turned round (cosine {number(shape.cosine)}).",
        shape,
        "loss_negated",
        "the sign of the loss is flipped",
        "remove the minus (or return the loss, not the score)",
        "cosine with the textbook loss's gradient above -0.9; healthy losses have 0.5 to 1",
    )


def _own_predictions(shape: LossShape) -> Verdict | None:
    curve = shape.curve
    if shape.random or shape.uses_labels is not False or curve is None or curve.gain <= 0:
        return None
    right, wrong = _at(curve, 8.0)
    if abs(right - wrong) > 0.05 * curve.gain or curve.right[0] - wrong < 0.5 * curve.gain:
        return None
    return _say(
        "fail",
        f"Any confident answer scores well ({number(right)} right, {number(wrong)} wrong, {number(curve.right[0])} undecided), and the "
        "labels of the batch are not read.",
        shape,
        "own_predictions_as_targets",
        "the model's own predictions are the targets (argmax of the logits, a softmax of themselves)",
        "pass the labels of the batch to the loss",
        "the loss changes when a label does",
    )


def _permuted(shape: LossShape) -> Verdict | None:
    if not _tells(shape) or shape.agreement is None or shape.agreement > LEAST_AGREEMENT or shape.agreeing < 4:
        return None
    seen = {c: p for c, p in enumerate(shape.pushed) if p >= 0}
    if len(seen) < 2 or len(set(seen.values())) != len(seen) or all(c == p for c, p in seen.items()):
        return None
    pairs = ", ".join(f"{c} -> {p}" for c, p in list(seen.items())[:6])
    return _say(
        "fail",
        f"The loss pushes up another class than the label ({pairs}), in {percent(1 - shape.agreement)} of the rows.",
        shape,
        "labels_permuted",
        "the labels are renumbered on their way into the loss (an offset of one, another label map)",
        "use one label map for training and evaluation; labels run from 0 to classes - 1",
        f"the label is what the loss pushes up most in {percent(LEAST_AGREEMENT)} of the rows; healthy: all",
    )


def _opposed(shape: LossShape) -> Verdict | None:
    """Every label is pushed down."""
    if not _tells(shape) or shape.agreement is None or shape.agreement > 0.05 or shape.agreeing < 4:
        return None
    if shape.kind == "single" and not _pays(shape):
        return None
    single = shape.kind == "single"
    return _say(
        "fail",
        "The loss pushes every label down, and what it is not up.",
        shape,
        "loss_negated" if single else "labels_permuted",
        "logits or loss have a minus too many"
        if single
        else "labels are turned over (1 - y), or logits or loss have a minus too many",
        "give the loss labels and logits as they are",
        "the loss falls as the label's logit grows",
    )


def _pays(shape: LossShape) -> bool:
    """Wrong answers cost less than right ones."""
    return shape.curve is not None and _at(shape.curve, 2.0)[1] < _at(shape.curve, 2.0)[0]


def _misplaced(shape: LossShape) -> Verdict | None:
    if not _tells(shape) or shape.own_over_other is None or shape.kind == "regression":
        return None
    if (
        shape.agreement is None
        or shape.agreement > LEAST_AGREEMENT
        or shape.own_over_other >= 0.5
        or shape.agreeing < 4
    ):
        return None
    return _say(
        "fail",
        f"The labels meet the wrong rows: the loss pushes the label up most in {percent(shape.agreement)} of the rows, and a change of "
        "one row's label changes another row's gradient.",
        shape,
        "labels_of_other_rows",
        "logits and labels are in different orders: rolled, reversed, shuffled apart, reshaped across rows",
        "keep logits and labels of a batch in the same order up to the loss",
        "a row's gradient follows its own label",
    )


def _scattered(shape: LossShape) -> Verdict | None:
    """One label a token, and the loss takes the logits of others for it."""
    if shape.by_row or shape.random or shape.own_tokens is None or shape.own_tokens >= LEAST_MET:
        return None
    return _say(
        "fail",
        f"A token's label moves the gradient of its own logits (or those of the token before) in {percent(shape.own_tokens)} of the tokens "
        "looked at: the others' labels meet the logits of other tokens.",
        shape,
        "labels_of_other_tokens",
        "logits (rows, tokens, classes) were brought to (rows, classes, tokens) by reshape or view, which mixes tokens and classes",
        "use transpose(1, 2), or flatten both: cross_entropy(logits.reshape(-1, classes), labels.reshape(-1))",
        f"its own logits (or those of the token before) notice a label in {percent(LEAST_MET)} of the tokens; healthy: all",
    )


def _surely_wrong(shape: LossShape) -> Verdict | None:
    """Being surely wrong costs less than not knowing."""
    curve = shape.curve
    if shape.random or shape.kind not in ("single", "binary", "tags") or curve is None or curve.gain <= 0:
        return None
    wrong = _at(curve, 8.0)[1]
    if not wrong < curve.right[0] - 0.5 * curve.gain:
        return None
    return _say(
        "fail",
        f"A surely wrong answer costs {number(wrong)}, less than not knowing ({number(curve.right[0])}): rows that are wrong are pushed "
        "further that way.",
        shape,
        "mistakes_pay",
        "a factor takes the loss away where the answer is wrong: focal loss with p instead of (1 - p), a weight by the label's probability",
        "focal loss is -(1 - p) ** gamma * log(p), p the label's probability; weights that depend on p must not vanish with it",
        "a wrong answer's loss is above that of all classes alike; healthy losses: by as much as the right answer's is below, or more",
    )


def _unread(shape: LossShape) -> Verdict | None:
    if shape.kind != "tags" or shape.random or shape.unread_tags is None or shape.unread_tags <= 1 - LEAST_READ:
        return None
    if min(shape.unread_tags, shape.strayed_tags or 0.0) >= LEAST_READ:
        return _say(
            "fail",
            f"{percent(shape.strayed_tags or 0.0)} of the tags, turned over, move the logits of another tag, not their own.",
            shape,
            "labels_permuted",
            "the columns of the labels are in another order than those of the logits",
            "use one list of tags for labels and outputs",
            f"at least {percent(LEAST_READ)} of the tags are read; healthy: all",
        )
    return _say(
        "fail",
        f"{percent(shape.unread_tags)} of the tags can be turned over and their gradient stays the same: the loss does not read all tags "
        "of a row.",
        shape,
        "tags_not_read",
        "the tags are reduced before the loss sees them: argmax (only the first counts, and a row without any becomes tag 0), a sum, one "
        "column",
        "binary_cross_entropy_with_logits(logits, labels.float()) on the tags as they are",
        f"at least {percent(LEAST_READ)} of the tags are read; healthy: all",
    )


def _one_sided(shape: LossShape) -> Verdict | None:
    """Labels of one value get no gradient."""
    if shape.random or len(shape.silent_values) != 1:
        return None
    on = shape.silent_values[0] == 1
    what = "tags" if shape.kind == "tags" else "labels"
    return _say(
        "fail",
        f"{what.capitalize()} that are {'on' if on else 'off'} get no gradient, however wrong they are: "
        f"the best answer is that every one is {'off' if on else 'on'}.",
        shape,
        "positives_ignored" if on else "negatives_ignored",
        "pos_weight is zero (an integer division, an empty count), or the term for labels that are on is missing"
        if on
        else "the term for labels that are off is missing: (1 - y) * log(1 - p)",
        "pos_weight = negatives / positives, as floats" if on else "use binary_cross_entropy_with_logits",
        "labels of either value get a gradient",
    )


def _broadcast(shape: LossShape) -> Verdict | None:
    if shape.random or shape.own_over_other is None or shape.own_over_other > LEAST_OWN:
        return None
    if shape.kind != "regression" and (not _tells(shape) or shape.agreement is None or shape.agreement > 0.95):
        return None
    return _say(
        "fail",
        "Each prediction is compared with every label of the batch: a change of one label moves its own row's gradient "
        f"{number(shape.own_over_other)} times as much as any other row's.",
        shape,
        "regression_broadcast",
        "predictions of shape (B, 1) and labels of shape (B,) are broadcast to (B, B): the best that can be learnt is the mean",
        "bring them to one shape: loss(logits.squeeze(-1), labels)",
        f"a label matters for its own row at least {LEAST_OWN:g} times as much as for others; without broadcasting others do not notice",
    )


def _unbounded(shape: LossShape) -> Verdict | None:
    if _temperature(shape) is not None:
        return None
    if shape.kind not in ("single", "binary", "tags") or shape.random or not _bottomless(shape) or shape.curve is None:
        return None
    return _say(
        "fail",
        f"The loss has no floor: {number(_at(shape.curve, 8.0)[0])} for the right answer at logits of +-8, "
        f"{number(shape.curve.right[-1])} at +-{shape.curve.margins[-1]:g}.",
        shape,
        "loss_unbounded",
        "the loss is no negative log-likelihood: log_softmax is missing, or a margin without a hinge",
        "use cross_entropy on raw logits",
        "the loss of the right answer levels off as the logits grow",
    )


def _smoothed(shape: LossShape) -> Verdict | None:
    curve = shape.curve
    if shape.kind != "single" or shape.random or not shape.by_row or curve is None or shape.known is not None:
        return None
    if shape.shift is None or shape.shift > 0.05 or not shape.slope or shape.slope <= 0 or shape.agreement != 1:
        return None
    if curve.gain >= LEAST_GAIN * shape.slope or curve.best >= 4:
        return None
    if curve.right[-1] < min(curve.right) + curve.gain:  # stays least: a temperature within the loss, no smoothing
        return None
    # the best margin m has the label's probability at e^2m : 1 against each other class
    p = 1 / (1 + (shape.outputs - 1) * math.exp(-2 * curve.best))
    return _say(
        "fail",
        f"The loss is least where the label has a probability of about {percent(p)} ({percent(1 / shape.outputs)} is chance): "
        f"it falls from {number(curve.right[0], 4)} to {number(min(curve.right), 4)} at best.",
        shape,
        "smoothing_too_strong",
        "the targets are almost uniform: label_smoothing near 1 (1 - eps for eps), or a distillation temperature gone wrong",
        "label_smoothing is the share taken away from the label: 0.1, not 0.9",
        f"the loss can fall by {LEAST_GAIN:g} of its slope at least; label smoothing of 0.3 has 0.5",
    )


def _classes(shape: LossShape) -> Verdict | None:
    if shape.random or not shape.by_row or not 0 < len(shape.silent_classes) < shape.tried_classes:
        return None
    used = [c for c in shape.silent_classes if shape.largest_label is None or c <= shape.largest_label]
    if not used or len(shape.silent_rows) > shape.rows / 2:  # most rows silent: that is not about classes
        return None
    names = ", ".join(map(str, used[:6]))
    if shape.kind == "tags":
        return _say(
            "fail",
            f"Tag {names} gets no gradient in any row, however wrong it is: the loss leaves {'it' if len(used) == 1 else 'them'} out.",
            shape,
            "class_ignored",
            "the weight of the tag is zero, or its column is sliced away",
            "give every tag a positive weight",
            "every tag gets a gradient",
        )
    return _say(
        "fail",
        f"Rows of class {names} get no gradient, however wrong they are: the loss leaves {'it' if len(used) == 1 else 'them'} out.",
        shape,
        "class_ignored",
        "ignore_index is a real class, or its class weight is zero",
        "ignore_index must be a number that no row has (-100); give every class a positive weight",
        "every class's rows get a gradient",
    )


def _silent(shape: LossShape) -> Verdict | None:
    if shape.random or not shape.by_row or shape.rows < 3 or not shape.silent_rows:
        return None
    shown = ", ".join(map(str, shape.silent_rows[:6])) + (", ..." if len(shape.silent_rows) > 6 else "")
    return _say(
        "fail",
        f"{len(shape.silent_rows)} of {shape.rows} rows get no gradient, however wrong they are (rows {shown}).",
        shape,
        "rows_ignored",
        "only some rows reach the loss: a slice or an index ([0], [-1], [:k]), a mask, a reduction over the wrong rows",
        "take the mean of the loss over all rows",
        "every row whose label counts gets a gradient at random logits, or where it alone is wrong, or alone right",
    )


def _drowned(trace: Trace, shape: LossShape) -> Verdict | None:
    """Another term of the loss, which does not go through the logits, and a run that learns nothing of the task."""
    if shape.other_terms is None or shape.other_terms <= DROWNED or _knows(trace):
        return None
    return _say(
        "fail",
        f"The weights hear {number(shape.other_terms)} times as much of other terms of the loss as of the task, and learn nothing of it.",
        shape,
        "other_terms_drown",
        "a regulariser (weight penalty, auxiliary loss) is not scaled: its gradient drowns the task's",
        "weigh it so that its gradient is no longer than the task's; of a weight penalty use weight_decay of AdamW",
        f"other terms at most {DROWNED:g} times as loud as the task, or a run that learns all the same",
    )


def _temperature(shape: LossShape) -> float | None:
    """T, where the loss is cross-entropy of logits / T; None: it is not."""
    curve, classes = shape.curve, shape.outputs if shape.kind == "single" else 2
    if shape.kind not in ("single", "binary") or shape.random or curve is None or not shape.slope or shape.slope <= 0:
        return None
    width = 2.0 if shape.kind == "single" else 1.0  # between logits of m and -m, or between m and nothing
    t = width * (classes - 1) / classes / shape.slope

    def off(found: float, margin: float) -> bool:
        textbook = math.log1p((classes - 1) * math.exp(max(-700.0, min(700.0, -width * margin / t))))
        return abs(found - textbook) > 0.01 * max(textbook, math.log(classes))

    if any(off(r, m) or (shape.kind == "binary" and off(w, -m)) for m, r, w in zip(*_points(curve), strict=True)):
        return None
    return t


def _points(curve: LossCurve) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    return curve.margins, curve.right, curve.wrong


def _heated(trace: Trace, shape: LossShape) -> Verdict | None:
    """A temperature so high that the run learns nothing. (One as low is silent: logits that are small enough are all it takes.)"""
    t = _temperature(shape)
    if t is None or t <= HOTTEST or _knows(trace):
        return None
    return _say(
        "fail",
        f"The loss is cross-entropy of the logits divided by {number(t)}, and the run learns nothing of the task.",
        shape,
        "temperature_extreme",
        "a temperature in the loss divides the logits instead of multiplying them, or is in other units",
        "cross_entropy(logits, labels); cosines are multiplied by 10 to 64",
        f"a temperature of at most {HOTTEST:g}, or a run that learns all the same",
    )


def _knows(trace: Trace) -> bool:
    """The textbook loss on the probe ended a twentieth below where it began, and below that of knowing nothing."""
    if trace.probe is None:
        return True
    points = [p.reference for p in trace.probe.points if p.reference is not None]
    if len(points) < 2:
        return True
    chance = trace.probe.prior_entropy
    least = points[0] if chance is None else min(points[0], chance)
    return math.isfinite(points[-1]) and points[-1] < 0.95 * least


def _task(trace: Trace, shape: LossShape) -> Verdict | None:
    """Another loss than that of the declared task."""
    meant = trace.intent.task if trace.intent is not None else None
    if meant is None or shape.known is None:
        return None
    squared = ("squared_error", "absolute_error", "huber")
    if meant == "single_label" and shape.kind == "regression" and shape.known in squared:
        several = shape.label_range is not None and shape.label_range[1] > 1
        status: Status = "fail" if several else "advice"
        is_, remedy = (
            f"the {shape.known.replace('_', ' ')} of one output",
            "one output a class and cross_entropy (num_labels)",
        )
    elif meant == "regression" and shape.kind == "single" and shape.known == "cross_entropy":
        status, is_, remedy = (
            "fail",
            "cross-entropy over classes",
            "one output and mse_loss (num_labels=1, float labels)",
        )
    elif meant == "multi_label" and shape.kind == "single" and shape.known == "cross_entropy":
        status, is_ = "fail", "cross-entropy over classes, one label a row"
        remedy = "multi-hot float labels and binary_cross_entropy_with_logits"
    elif meant == "single_label" and shape.kind == "tags" and shape.known == "bce":
        status, is_, remedy = (
            "fail",
            "binary cross-entropy of each tag, rows with any number of them",
            "one whole-number label a row",
        )
    else:
        return None
    return _say(
        status,
        f"You meant task={meant!r}; the loss is {is_}.",
        shape,
        "wrong_task" if status == "fail" else "",
        "labels or outputs are of another task than the declared one",
        remedy,
        "the loss of the declared task",
    )


def _scaled(trace: Trace, shape: LossShape) -> Verdict | None:
    """A scale is no fault in itself; what the run made of it decides."""
    s = shape.scale
    if s is None or shape.known is None or shape.random or shape.cosine is None or shape.cosine < 0.99 or s <= 0:
        return None
    learned = _learned(trace)
    if s < NOTHING:
        return _say(
            "advice" if learned else "fail",
            f"The loss is {number(s)} times the textbook loss"
            f"{'' if learned else ', and the textbook loss of the logits does not fall'}.",
            shape,
            "" if learned else "loss_scaled_to_nothing",
            "the loss is multiplied or divided down (a mean taken twice, a weight, a loss scale never undone)",
            "remove the factor: the gradient drowns in eps, clipping and rounding",
            f"scale above {NOTHING:g}, or a run that learns all the same",
        )
    if shape.rows >= 4 and abs(s / shape.rows - 1) < 0.05 and trace.optimizer.family != "adam":
        broke = not learned and _broke(trace)
        return _say(
            "fail" if broke else "advice",
            f"The loss is the sum over the {shape.rows} rows, not the mean{': the run breaks on it' if broke else ''}.",
            shape,
            "sum_reduction" if broke else "",
            f"reduction='sum': each step of {trace.optimizer.name} is as many times longer as the batch has rows",
            "reduction='mean', or divide the learning rate by the batch size",
            "a sum is a fault only where the run diverges or does not learn",
        )
    return None


def _tells(shape: LossShape) -> bool:
    return (
        not shape.random and shape.by_row and shape.uses_labels is True and shape.kind in ("single", "tags", "binary")
    )


def _bottomless(shape: LossShape) -> bool:
    """The right answer's loss goes on falling as its logits grow, as fast as at the start."""
    curve = shape.curve
    if curve is None or len(curve.margins) < 2 or not shape.slope or shape.slope <= 0:
        return False
    width = curve.margins[-1] - curve.margins[-2]
    return curve.right[-2] - curve.right[-1] > 0.25 * shape.slope * width


def _learned(trace: Trace) -> bool:
    """The textbook loss on the probe fell by a twentieth."""
    points = [p.reference for p in trace.probe.points if p.reference is not None] if trace.probe is not None else []
    return len(points) > 1 and math.isfinite(points[-1]) and points[-1] < 0.95 * points[0]


def _broke(trace: Trace) -> bool:
    """The run diverged, or ended no better than it began."""
    points = [p.reference for p in trace.probe.points if p.reference is not None] if trace.probe is not None else []
    if any(not math.isfinite(v) for v in (*points, *trace.losses)):
        return True
    return len(points) > 1 and points[-1] > 1.05 * points[0]


_JUDGES: tuple[Judge, ...] = (
    _constant,
    _cut,
    _named,
    _negated,
    _own_predictions,
    _permuted,
    _misplaced,
    _scattered,
    _broadcast,
    _unbounded,
    _one_sided,
    _unread,
    _surely_wrong,
    _opposed,
    _smoothed,
    _classes,
    _silent,
)
