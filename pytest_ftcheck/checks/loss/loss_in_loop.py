"""Which loss the loop itself computes, from what and with which labels; whatever loss our own call computes."""

from __future__ import annotations

from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..loop.record import LoopCalls, LossCall, all_observed
from ..spec import Fault
from . import faults

#: Share of rows whose label must be their own, where the labels are those of the rows in another order; healthy: all.
LEAST_OWN_LABELS = 0.9
#: Calls that must be alike before something is concluded from all of them.
LEAST_CALLS = 3
#: The labels of the first iteration, before any step, may all be what the model predicts by luck: accuracy ** rows of the probe's accuracy.
LUCK = 1e-4
#: A term without a gradient is remarked on from this share of the others: bfloat16 rounds a loss by up to 0.4 %. It is constant where it
#: differs by no more than rounding.
LEAST_REST, SAME_REST = 0.02, 1e-5
#: Loss function and what it was given -> the fault. A loss on log(softmax(x)) or on scaled logits is none of these.
_FAULTS: dict[tuple[str, str], Fault] = {
    ("cross_entropy", "softmax"): faults.DOUBLE_SOFTMAX,
    ("cross_entropy", "softmax_over_batch"): faults.DOUBLE_SOFTMAX_OVER_BATCH,
    ("nll_loss", "log_softmax_over_batch"): faults.SOFTMAX_OVER_BATCH,
    ("cross_entropy", "sigmoid"): faults.SIGMOID_BEFORE_CROSS_ENTROPY,
    ("nll_loss", "softmax"): faults.NLL_ON_PROBABILITIES,
    ("nll_loss", "sigmoid"): faults.NLL_ON_SIGMOID,
    ("binary_cross_entropy_with_logits", "sigmoid"): faults.SIGMOID_BEFORE_BCE,
    ("binary_cross_entropy_with_logits", "softmax"): faults.SOFTMAX_BEFORE_BCE,
}
#: `Reading.loss` where the user passed it.
USERS_LOSS = "the user's loss_fn"
#: Losses of one label a row, whose labels can be compared with the rows'.
_LABELLED = ("cross_entropy", "nll_loss")


def judge_loss_in_loop(trace: Trace, name: str) -> Verdict | None:
    """The verdict where every observed loss of the loop has one fault; None: none was observed, or they have none.

    Judged are calls of the losses in ``torch.nn.functional`` (the modules of ``torch.nn`` call them) that ``backward()`` was called on, or
    on something made from them.
    """
    loop = trace.measured(LoopCalls)
    if loop is None or not loop.losses:
        return None
    # an optimizer that maximizes descends what backward() maximises
    negated = () if trace.optimizer.maximizes else (_negated,)
    finders = (_wrong_input, *negated, _labels_of_other_rows)
    found = next((verdict for find in finders if (verdict := find(loop, name)) is not None), None)
    return found or _own_predictions(trace, loop, name)


def term_without_gradient(trace: Trace, name: str) -> Verdict | None:
    """Advice where the loop's loss holds more than the losses of torch, and the rest has no gradient: it changes the number alone."""
    loop = trace.measured(LoopCalls)
    if loop is None or len(loop.linear) < LEAST_CALLS:
        return None
    # some grow from nothing, such as the divergence from a uniform prediction
    large = [p for p in loop.linear if p.with_gradient and abs(p.without) >= LEAST_REST * abs(p.with_gradient)]
    if len(large) < LEAST_CALLS or len({p.without > 0 for p in large}) > 1:
        return None
    least, most = min(large, key=lambda p: p.without), max(large, key=lambda p: p.without)
    fixed = len(large) == len(loop.linear) and most.without - least.without <= SAME_REST * abs(most.without)
    calls = (
        all_observed(len(large))
        if len(large) == len(loop.linear)
        else f"{len(large)} of {len(loop.linear)} observed calls"
    )
    what = f"always {number(most.without)}" if fixed else f"{number(least.without, 6)} to {number(most.without, 6)}"
    fault = faults.TERM_WITHOUT_GRADIENT
    if fixed:
        fault = fault.because(
            "a constant is added to the loss, or a penalty on what does not change (frozen weights, the inputs)",
            "leave it out, or let the penalty be on weights that are trained",
        )
    return fault.verdict(
        name,
        f"The loop's loss holds a term without a gradient, in {calls}: {what}, beside a loss of {number(large[0].with_gradient)} "
        f"(iteration {large[0].iteration}) that is learnt from.",
        "advice",
        evidence=tuple(
            {"iteration": p.iteration, "with a gradient": p.with_gradient, "without": p.without} for p in large[:3]
        ),
        limit=f"what the loss holds beside torch's losses has a gradient, or is less than {percent(LEAST_REST)} of them",
        measured="the value that backward() was called on, less each of torch's losses times the gradient that arrived at it",
    )


def loss_not_seen(trace: Trace, name: str) -> Verdict | None:
    """No verdict, where the user's own loop computes another loss than those of torch, and the one that was measured was chosen by us."""
    loop = trace.measured(LoopCalls)
    if loop is None or loop.recipe_loop or loop.losses or not trace.steps or trace.reading.loss == USERS_LOSS:
        return None
    return Verdict(
        name,
        "skipped",
        f"Not seen in your loop: its loss is computed without the losses of torch, and what was measured is {trace.reading.loss}.",
        remedy="pass the loop's loss as loss_fn=(model, batch) -> loss",
        unmeasured=LoopCalls.probe,
    )


def _wrong_input(loop: LoopCalls, name: str) -> Verdict | None:
    found = {_FAULTS.get((call.function, call.input)) for call in loop.losses}
    fault = found.pop()
    if fault is None or found:
        return None
    call = loop.losses[0]
    function, over_batch = call.input.removesuffix("_over_batch"), call.input.endswith("_over_batch")
    what = (
        f"the {function} runs over the rows of the batch"
        if over_batch
        else f"the {function} is applied before a loss that expects {_EXPECTED[call.function]}"
    )
    headline = (
        f"The loop computes {call.function}({function}(logits{', dim=0' if over_batch else ''}), labels) in "
        f"{all_observed(len(loop.losses))}: {what}."
    )
    return fault.verdict(name, headline, **_details(loop))


_EXPECTED = {
    "cross_entropy": "logits",
    "nll_loss": "log-probabilities",
    "binary_cross_entropy_with_logits": "logits",
}


def _negated(loop: LoopCalls, name: str) -> Verdict | None:
    """Every loss is maximised. An adversarial term is, too, but beside it stands one that is minimised."""
    if len(loop.losses) < LEAST_CALLS or not all(call.negated for call in loop.losses):
        return None
    headline = (
        f"The loop maximises {loop.losses[0].function} in {all_observed(len(loop.losses))}: backward() multiplies its gradient by a "
        "negative number."
    )
    return faults.LOSS_NEGATED.verdict(name, headline, **_details(loop))


def _own_predictions(trace: Trace, loop: LoopCalls, name: str) -> Verdict | None:
    """Every label is the class that the model predicts, and was chosen from its outputs; or is not that of the probe's rows. A model
    that is right everywhere from the start is given such labels, too."""
    if len(loop.losses) >= LEAST_CALLS and all(call.chosen_by_model for call in loop.losses):
        headline = (
            f"The loop gives {loop.losses[0].function} the model's own predictions as labels: in {all_observed(len(loop.losses))} they are "
            "what argmax of its outputs returned."
        )
        return faults.OWN_PREDICTIONS_AS_TARGETS.verdict(name, headline, **_details(loop))
    accuracy = next((m.first for m in trace.metrics if m.name == "accuracy"), None)
    rows = sum(call.rows for call in loop.losses if call.iteration == 0)
    if accuracy is None or len(loop.losses) < LEAST_CALLS or not rows or accuracy**rows > LUCK:
        return None
    # similarities of two views are made from outputs, and are none: the largest is no prediction
    if not all(call.input != "other" and not call.of_rows for call in loop.losses):
        return None
    if not all(call.function in _LABELLED and call.predicted == 1 for call in loop.losses):
        return None
    headline = (
        f"The loop gives {loop.losses[0].function} the model's own predictions as labels: in {all_observed(len(loop.losses))} the label is "
        f"the class of the largest output in every row, while {percent(accuracy)} of the probe's rows were predicted right."
    )
    return faults.OWN_PREDICTIONS_AS_TARGETS.verdict(name, headline, **_details(loop))


def _labels_of_other_rows(loop: LoopCalls, name: str) -> Verdict | None:
    """Every loss was given the labels of its batch in another order than the rows; mixup gives one loss the rows' own labels."""
    known = [call for call in loop.losses if call.function in _LABELLED and call.own_labels is not None]
    if not known or not all(call.reordered for call in known):
        return None
    own = sum(call.own_labels or 0.0 for call in known) / len(known)
    if own >= LEAST_OWN_LABELS:
        return None
    headline = (
        f"In the loop {known[0].function} is given the labels of the batch in another order than its rows, in {all_observed(len(known))}: "
        f"{percent(own)} of the rows have their own label."
    )
    return faults.LABELS_OF_OTHER_ROWS.verdict(name, headline, **_details(loop))


def _details(loop: LoopCalls) -> dict[str, Any]:
    return {
        "evidence": tuple(_row(call) for call in loop.losses[:3]),
        "measured": f"the loop's own calls in {plural(len(loop.iterations), 'iteration')}",
    }


def _row(call: LossCall) -> dict[str, Any]:
    row = {"iteration": call.iteration, "loss": call.function, "computed from": call.input, "rows": call.rows}
    return row if call.own_labels is None else {**row, "own labels": percent(call.own_labels)}
