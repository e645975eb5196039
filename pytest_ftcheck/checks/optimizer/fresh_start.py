"""Does the run begin where its author thinks it begins?"""

from __future__ import annotations

from ...core.formatting import number, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..learning import LEARNT, weight_of_suspicion
from ..loss.record import LossShape
from ..spec import Fault, Rank, Stage, Symptom, check, not_measured
from .record import OptimizerStart

NAME = "fresh_start"
#: The first cross-entropy over that of the class priors. A sound training leaves the loss of its own rows below that of the class
#: priors; a quarter more is the margin that `loss_decreases` grants other sound objectives.
WORSE_THAN_PRIORS = 1.25
#: The first cross-entropy over the entropy of the labels up to which the rows are known. A fresh head whose inputs are one direction, with
#: one sign for each of two classes, reaches that in 1 % of draws (tests/checks/optimizer); inputs in which the classes differ less, never.
KNOWN = 0.2
EARLIER_TRAINING = Fault(
    "earlier_training",
    Rank.BROKEN_START + 60,
    "the run goes on from an earlier training that damaged the weights",
    cause="the optimizer had already taken {before} before the run: a learning-rate range test, another fold or another trial trained "
    "the same model, and its weights were not put back",
    remedy="restore the model's and the optimizer's state_dict from before that training, or create both anew; a model that goes on to "
    "another task on purpose needs an optimizer of its own",
    explains=(Symptom.LOSS_WRONG, Symptom.STANDS_STILL, Symptom.BLOWS_UP, "head_init", "base_computes_its_class"),
)

OPTIMIZER_NOT_RESET = Fault(
    "optimizer_not_reset",
    Rank.BROKEN_START + 62,
    "the optimizer keeps the averages of an earlier training that the weights do not come from",
    cause="the optimizer had already taken {before} before the run, and the weights have learnt nothing: they were put back or made anew, "
    "the optimizer was not, and its averages are those of the earlier gradients, which may make every step far too small",
    remedy="create the optimizer after the weights were put back, or restore its state_dict, too",
    confidence="likely",
    explains=(Symptom.STANDS_STILL,),
)

KNOWN_AT_START = Fault(
    "known_at_start",
    Rank.BROKEN_START + 61,
    "the model knows the rows before the first step, though its head is declared fresh",
    cause="the model was trained on these rows before: that of another fold, trial or notebook cell is used again, or a trained head was "
    "loaded; what it scores on them says nothing",
    remedy="create the model anew for each fold and trial, and load the base without the head; for a training that goes on, leave out "
    "Intent(head_init=)",
    explains=("head_init", "metric_improves"),
)


@check(
    stage=Stage.START,
    position=1,
    faults=(EARLIER_TRAINING, OPTIMIZER_NOT_RESET, KNOWN_AT_START),
    measurements=(OptimizerStart,),
)
def check_fresh_start(trace: Trace) -> Verdict:
    """The run begins with a fresh optimizer, or goes on from a training that left the model in good order.

    An optimizer that has already taken steps is certain evidence of an earlier training. A training that is resumed on purpose has it,
    too, so that alone is a note. It is a fault where the first cross-entropy on the probe is well above that of the class priors, which no
    sound training of the same rows leaves behind. It is one, too, where that cross-entropy shows that nothing was learnt, and the run does
    not learn: then the weights were put back, and the optimizer's averages were not. Where the head is declared fresh
    (``Intent(head_init=)``) and the first cross-entropy is far below that of the class priors, the model was trained on these rows before.

    >>> from pytest_ftcheck import example_trace
    >>> from pytest_ftcheck.checks.optimizer.record import OptimizerStart
    >>> print(check_fresh_start(example_trace(measurements={"optimizer_start": OptimizerStart(0, 0)})))
    fresh_start: pass. AdamW had taken no step before the run.
    """
    start = optimizer_start(trace)
    if start is None:
        return not_measured(NAME, trace, OptimizerStart)
    if known := _judge_known(trace):
        return known
    name = trace.optimizer.name
    if not start.steps and not start.with_state:
        return Verdict(NAME, "pass", f"{name} had taken no step before the run.", measured="the optimizer's state")
    before = plural(start.steps, "step") if start.steps else "steps that it does not count"
    headline = f"{name} had already taken {before} before the run"
    measured = "the optimizer's state before the run, and the cross-entropy of the logits on the probe"
    losses = _losses(trace)
    if losses is None:
        note = "whether that training left the weights in good order cannot be judged here: there is no cross-entropy on a probe"
        return Verdict(NAME, "pass", f"{headline}.", measured=measured, notes=(note,))
    first, prior = losses
    if not first <= WORSE_THAN_PRIORS * prior:
        return EARLIER_TRAINING.with_details(before=before).verdict(
            NAME,
            f"{headline}, and the weights that it left have a loss of {number(first, 4)}; the class priors have {number(prior, 4)}.",
            limit=f"a resumed training starts below {WORSE_THAN_PRIORS:g} times the class priors' loss",
            measured=measured,
        )
    weight = weight_of_suspicion(trace)
    if first > LEARNT * prior and weight != "advice":
        return OPTIMIZER_NOT_RESET.with_details(before=before).verdict(
            NAME,
            f"{headline}, but the weights have a loss of {number(first, 4)}, no less than the class priors ({number(prior, 4)}), and the "
            "run does not learn.",
            weight,
            limit=f"weights of an earlier training have less than {LEARNT:g} times the class priors' loss",
            measured=measured,
        )
    return Verdict(
        NAME,
        "pass",
        f"{headline}; the first loss is {number(first, 4)}, the class priors' {number(prior, 4)}.",
        measured=measured,
        notes=("the run goes on from an earlier training; to judge a fresh start, create model and optimizer anew",),
    )


def optimizer_start(trace: Trace) -> OptimizerStart | None:
    """What the optimizer had done before the run; if it was adopted at its first step, what its state counts beyond the run's steps."""
    counted = trace.optimizer.state_steps
    beyond = None if counted is None else OptimizerStart(max(0, counted - trace.optimizer.gradient_steps), 0)
    return trace.measured(OptimizerStart) or beyond


def _judge_known(trace: Trace) -> Verdict | None:
    """A head that is declared fresh, through which all logits go, and rows that are told apart before the first step."""
    losses, shape = _losses(trace), trace.measured(LossShape)
    declared = trace.intent is not None and trace.intent.head_init is not None
    if not declared or losses is None or shape is None or not shape.nothing_passes_by or trace.probe_loss is None:
        return None
    in_head = any(shape.last_layer == part or shape.last_layer.startswith(f"{part}.") for part in trace.head)
    first, prior = losses
    if not in_head or trace.probe_loss.points[0].step != 0 or not first <= KNOWN * prior:
        return None
    held_out = next((m for m in trace.metrics if m.source == "held-out rows" and m.name == "accuracy"), None)
    also = ""
    if held_out is not None and held_out.baseline is not None:
        rows, majority = plural(held_out.rows, "held-out row"), number(held_out.baseline)
        also = f", and an accuracy of {number(held_out.first)} on {rows} (majority class: {majority})"
    return KNOWN_AT_START.verdict(
        NAME,
        f"Before the first step the model has a loss of {number(first, 4)}{also}; the class priors have {number(prior, 4)}. The head is "
        "declared fresh.",
        limit=f"a fresh head starts above {KNOWN:g} times the class priors' loss",
        measured=f"the cross-entropy of the first logits on {plural(trace.probe_loss.rows, 'row')} ({trace.probe_loss.source})",
    )


def _losses(trace: Trace) -> tuple[float, float] | None:
    """The first cross-entropy on the probe, and that of the class priors; None: not both of them are known."""
    probe = trace.probe_loss
    if probe is None or not probe.points or not probe.prior_entropy:
        return None
    first = probe.points[0].reference
    return None if first is None else (first, probe.prior_entropy)
