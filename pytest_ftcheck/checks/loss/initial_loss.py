"""Does the run start from the loss of a uniform prediction?"""

from __future__ import annotations

import math

from ...core import arguments
from ...core.formatting import number, percent, plural
from ...core.observations import ProbeLoss, ProbeLossPoint
from ...core.trace import Trace
from ...core.verdict import Verdict
from ...seeds.thresholds import Threshold
from ..spec import Stage, Symptom, check, run_not_measured
from . import faults
from .record import OF_CLASSES, LossShape

#: The first standard loss as a multiple of ln(classes): above this no false alarm in 69 healthy runs, nor in 125 architectures.
HIGHEST = 3.0
#: Below this share of the labels' entropy the model has learnt the rows already.
LOWEST = 0.4
#: Logits are this many times the last layer's output, or more: a temperature by design (cosine classifiers have 16 to 64).
TEMPERATURE = 2.0
#: Logits up to this many times those of a newly made model of the same class are the class's own: two draws of its weights differ by less.
OF_CLASS = 1.5


@check(
    stage=Stage.START,
    position=3,
    faults=(
        faults.INITIAL_LOSS_NOT_FINITE,
        faults.INITIAL_LOSS_TOO_HIGH,
    ),
    thresholds=(Threshold("highest", "at most", "first loss over ln(classes)", 1 + 1e-9, 1e6),),
    shows=(Symptom.LOSS_WRONG,),
)
def check_initial_loss(trace: Trace, *, highest: float = HIGHEST) -> Verdict:
    """The first loss is near that of a uniform prediction, ln(classes), and not far above it.

    Judged is the standard loss of the first logits on the probe, dropout off, so the scale of the user's own loss does not matter. Far
    above ln(classes) the head starts with large logits, which training has to unlearn first (``advice`` only, where a temperature is
    built in, or where any new model of a library's class starts so). Far below it, the model already distinguishes the rows (a warm
    start, or labels in the inputs). That is a note, not a failure, because a low cross-entropy cannot be reached by chance.

    The first training loss takes precedence over the one in evaluation mode, where a BatchNorm still has its initial running statistics.

    :param highest: largest multiple of ln(classes) that passes.
    :raises ValueError: ``highest`` below 1.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_initial_loss(example_trace()))
    initial_loss: pass. The first loss is 0.7000, 1.01 times ln 2.
    """
    arguments.number("highest", highest, above=1)
    probe = trace.probe_loss
    if probe is None or not probe.points:
        return run_not_measured("initial_loss", trace, "loss", f"Not measured: {_why_no_rows(probe)}.")
    point = probe.points[0]
    if (reason := _why_not_judged(trace, point)) is not None:
        return _skipped(reason)
    assert point.reference is not None
    loss, shape = point.reference, trace.measured(LossShape)
    measured = f"cross-entropy of the first logits, dropout off, on {plural(probe.rows, 'row')} ({probe.source})"
    if not math.isfinite(loss):
        headline = f"The first loss is {number(loss)}, before any step."
        return faults.INITIAL_LOSS_NOT_FINITE.verdict("initial_loss", headline, measured=measured)
    uniform, name = _uniform_loss(trace)
    ratio = loss / uniform
    own_loss = abs(point.loss - loss) <= 1e-3 * uniform
    own = "" if own_loss else f" (standard; the run's own loss is {number(point.loss, 4)})"
    first_loss = f"The first loss is {number(loss, 4)}{own}, {number(ratio)} times {name}"
    trained = _first_training_loss(trace)
    if ratio > highest and own_loss and trained is not None and trained <= highest * uniform:
        return Verdict(
            "initial_loss",
            "pass",
            f"The first training loss is {number(trained, 4)}, {number(trained / uniform)} times {name}.",
            measured="as recorded in the run, in training mode",
            notes=(
                f"in evaluation mode the same weights have a loss of {number(loss, 4)}: running statistics (of a BatchNorm) that have not "
                "been updated yet",
            ),
        )
    if ratio > highest:
        design = _by_design(shape)
        size = shape.size_first if shape is not None else None
        logits = f", with logits of rms {number(size)}" if size is not None else ""
        fault = faults.INITIAL_LOSS_TOO_HIGH
        return fault.verdict(
            "initial_loss",
            f"{first_loss}{logits}; a uniform prediction has {number(uniform, 4)}.",
            "advice" if design else "fail",
            limit=f"at most {highest:g} times {name}: a head near zero starts at {name}, and the healthy runs measured stay below it",
            measured=measured,
            notes=(design,) if design else (),
            fault="" if design else fault.name,
        )
    return Verdict("initial_loss", "pass", f"{first_loss}.", measured=measured, notes=_notes(probe, loss))


def _skipped(headline: str) -> Verdict:
    return Verdict("initial_loss", "skipped", headline)


def _why_no_rows(probe: ProbeLoss | None) -> str:
    return probe.skipped.rstrip(".") if probe is not None and probe.skipped else "there are no fixed rows"


def _why_not_judged(trace: Trace, point: ProbeLossPoint) -> str | None:
    """Why there is no standard loss of the first logits to judge; None: there is."""
    task, shape = trace.reading.task, trace.measured(LossShape)
    if task == "regression":
        return "The loss of an untrained model is known for classes and tags, not for regression."
    if task == "embedding":
        return "The outputs are embeddings: there is no uniform prediction to compare with."
    if task not in OF_CLASSES:
        return (
            "The task cannot be inferred from the outputs and labels, so the loss of a uniform prediction is not known."
        )
    if point.step != 0:
        return "There is no loss from before the first step."
    if shape is not None and shape.form is not None:
        return f"The model returns {shape.form.replace('_', ' ')}, not logits: they have no standard loss."
    if point.reference is None:
        return "The standard loss could not be computed: there are no logits to read."
    return None


def _uniform_loss(trace: Trace) -> tuple[float, str]:
    """The loss of a uniform prediction, and how it is written."""
    if trace.reading.task == "multi_label":
        return math.log(2), "ln 2 (a tag)"
    classes = max(2, trace.reading.classes or 2)
    return math.log(classes), f"ln {classes}"


def _notes(probe: ProbeLoss, loss: float) -> tuple[str, ...]:
    entropy = probe.prior_entropy
    if entropy is None or entropy <= 0.1 or loss >= LOWEST * entropy:
        return ()
    return (
        f"that is below {percent(LOWEST)} of the labels' entropy ({number(entropy)}): the model knows these rows before the first step "
        "(trained before, or the labels are in the inputs)",
    )


def _by_design(shape: LossShape | None) -> str:
    """Why logits are large that no weights were initialised too large for; empty: these are, or it was not measured."""
    if shape is None:
        return ""
    of_class = shape.size_of_class
    if of_class is not None and shape.size_first is not None and shape.size_first <= OF_CLASS * of_class:
        return (
            f"a newly made model of this library's class has logits of rms {number(of_class)}: where it is not pretrained, it starts this "
            "high by design"
        )
    weights = shape.last_layer and shape.high_logits is not None and shape.high_logits[0] <= TEMPERATURE
    return (
        "" if weights and not shape.scale_free else "a cosine classifier with a large scale starts this high by design"
    )


def _first_training_loss(trace: Trace) -> float | None:
    """The first recorded loss, in training mode; of several batches a step it may be recorded divided by their number.

    None where the modes do not differ by running statistics, buffers that move as the model trains.
    """
    first = trace.iterations[0] if trace.iterations else None
    if (
        first is None
        or all(b.unchanged for b in trace.buffers)
        or not first.training
        or first.loss is None
        or not math.isfinite(first.loss)
    ):
        return None
    batches = next((n for n, i in enumerate(trace.iterations, 1) if i.step is not None), 1)
    return first.loss * batches
