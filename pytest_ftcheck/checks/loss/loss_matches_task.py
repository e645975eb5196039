"""Does the loss function fit the task?"""

from __future__ import annotations

from collections.abc import Callable

from ...core.formatting import number, percent
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Stage, Symptom, check, declared_not_measured, not_measured
from . import faults, label_use, logit_response, loss_terms
from .ctc_in_loop import CTC_BLANK_IN_TARGETS, CTC_ON_LOGITS, judge_ctc
from .loss_in_loop import judge_loss_in_loop, loss_not_seen, term_without_gradient
from .objective import MINUS, descended_shape, descends_minus_measured
from .record import OF_NO_LABELS, LossShape
from .regression_targets import find_classes_as_numbers

#: What can be wrong with the loss function itself, the first to be reported first.
OF_THE_LOSS: tuple[Callable[[LossShape], Verdict | None], ...] = (
    logit_response.find_ignored_logits,
    logit_response.find_missing_gradient,
    logit_response.find_known_wrong_loss,
    logit_response.find_negated_gradient,
    label_use.find_own_predictions,
    label_use.find_permuted_classes,
    label_use.find_labels_of_other_rows,
    label_use.find_labels_of_other_tokens,
    label_use.find_broadcasting,
    logit_response.find_unbounded_loss,
    label_use.find_ignored_value,
    label_use.find_unread_tags,
    logit_response.find_rewarded_mistakes,
    label_use.find_lowered_labels,
    logit_response.find_too_much_smoothing,
    label_use.find_counted_ignored_labels,
    label_use.find_ignored_class,
    label_use.find_ignored_rows,
)
#: Why a loss of other outputs than logits is not judged.
NO_LOGITS = (
    "the outputs are no logits of the labels: any confident answer has a higher loss than a uniform one (a likelihood with a mean and a "
    "variance?)"
)
#: What depends on the run, or on what was declared.
OF_THE_RUN: tuple[Callable[[Trace, LossShape], Verdict | None], ...] = (
    loss_terms.find_dominant_other_terms,
    loss_terms.find_extreme_temperature,
    loss_terms.find_wrong_task,
    loss_terms.find_amplified_imbalance,
    loss_terms.find_harmful_scale,
)


@check(
    stage=Stage.LOSS_FUNCTION,
    position=1,
    faults=(
        faults.LOSS_NOT_DIFFERENTIABLE,
        faults.SOFTMAX_OVER_ONE_OUTPUT,
        faults.LOSS_IGNORES_LOGITS,
        faults.WRONG_TASK,
        CTC_ON_LOGITS,
        CTC_BLANK_IN_TARGETS,
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
        faults.IGNORED_LABELS_COUNT,
        faults.LOSS_UNBOUNDED,
        faults.CLASS_WEIGHTS_REVERSED,
        faults.SUM_REDUCTION,
        faults.TEMPERATURE_EXTREME,
        faults.OTHER_TERMS_DROWN,
        faults.LOSS_SCALED_TO_NOTHING,
        faults.TERM_WITHOUT_GRADIENT,
        faults.CLASSES_AS_NUMBERS,
    ),
    measurements=(LossShape,),
    shows=(Symptom.LOSS_WRONG,),
)
def check_loss_matches_task(trace: Trace) -> Verdict:
    """The loss fits the task: lowest for the right answer, highest for a wrong one, for every row and class.

    Chosen logits are put in place of the model's: a right answer, a wrong one, a uniform prediction, random ones. The loss there, and the
    direction of its gradient in each row, are judged. A loss whose gradient is that of a known one is named. Its scale alone is no fault,
    unless the run diverges or does not learn; nor are label smoothing, class weights, focal, margin and robust losses.

    Before that, the loop's own calls of torch's losses are judged: what they are computed from, and whose labels they are given.

    >>> from pytest_ftcheck import example_trace
    >>> check_loss_matches_task(example_trace()).status
    'inconclusive'
    """
    if wrong := judge_ctc(trace, "loss_matches_task"):
        return wrong
    if wrong := judge_loss_in_loop(trace, "loss_matches_task"):
        return wrong
    if wrong := loss_terms.find_wrong_outputs(trace):
        return wrong
    shape = descended_shape(trace)
    if shape is None:
        declares = "" if trace.reading.task == "embedding" else "task"  # which then is judged: it is no other
        return not_measured("loss_matches_task", trace, LossShape, declares=declares)
    if shape.reason is not None and shape.depends is None:
        declared = trace.intent is not None and trace.intent.task is not None and shape.reason == OF_NO_LABELS
        judge = declared_not_measured if declared else not_measured
        return judge("loss_matches_task", trace, LossShape, shape.reason)
    for find in OF_THE_LOSS:
        if (found := find(shape)) is not None:
            return found
    for find_in_run in OF_THE_RUN:
        if (found := find_in_run(trace, shape)) is not None:
            return found
    if shape.reason is not None:
        return declared_not_measured("loss_matches_task", trace, LossShape, shape.reason)
    if not shape.of_classes:
        return not_measured("loss_matches_task", trace, LossShape, NO_LOGITS)
    if numbers := find_classes_as_numbers(trace, shape, "loss_matches_task"):
        return numbers
    if not_seen := loss_not_seen(trace, "loss_matches_task"):
        return not_seen
    if remark := term_without_gradient(trace, "loss_matches_task"):
        return remark
    notes = (*((MINUS,) if descends_minus_measured(trace) else ()), *_notes(shape))
    return Verdict("loss_matches_task", "pass", _pass_headline(shape), notes=notes)


def _pass_headline(shape: LossShape) -> str:
    curve = shape.curve
    known = shape.known if shape.known not in logit_response.WRONG_LOSSES else None
    name = f" It is {known.replace('_', ' ')}." if known else ""
    if curve is None:
        return f"The loss pushes each output towards its own label.{name}"
    return (
        f"The loss is {number(curve.least)} for the right answer, {number(curve.uniform)} for a uniform prediction, "
        f"{number(curve.at(2.0)[1])} for a wrong answer.{name}"
    )


def _notes(shape: LossShape) -> tuple[str, ...]:
    notes = []
    if shape.random:
        notes.append("the loss draws random numbers (mixup?): only what does not depend on them was judged")
    if not shape.by_row:
        notes.append(
            "one label a token: the direction of the gradient is not judged, because labels may be shifted by one on purpose"
        )
    if shape.uses_labels is False:
        notes.append("the loss does not read the labels of the batch")
    if shape.agreement is not None and shape.agreement <= label_use.LEAST_AGREEMENT and shape.by_row:
        notes.append(f"the loss raises the label's logit most in only {percent(shape.agreement)} of the rows")
    if shape.scale is not None and shape.known is not None and abs(shape.scale - 1) > 0.05:
        notes.append(f"its gradient is {number(shape.scale)} times that of the standard loss")
    return tuple(notes)
