"""The first loss is what a model scores that knows nothing: near the class-prior entropy, from both sides."""

from __future__ import annotations

import math

from ...core import arguments
from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ...seeds.thresholds import Threshold
from ..spec import Stage, Symptom, check
from . import faults
from .record import LossShape

#: The first textbook loss as a multiple of ln(classes): above this no false alarm in 69 healthy runs, nor in 125 architectures.
HIGHEST = 3.0
#: Below this share of the labels' entropy the model knows the rows already.
LOWEST = 0.4
#: Logits are this many times the last layer's output, or more: a temperature by design (cosine classifiers have 16 to 64).
TEMPERATURE = 2.0


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
    """The first loss is what a model scores that knows nothing: near the class-prior entropy, from both sides.

    Judged is the textbook loss of the first logits on the probe, dropout off, whatever scale the user's own loss has. Far above
    ln(classes) the head starts with large logits, and training first unlearns them (``advice`` only, where a temperature is built
    in). Below it, the model can tell the rows apart already (a warm start, or labels in the inputs): said, not failed, for a low
    cross-entropy cannot be had by chance.

    What the training itself begins with counts for more than evaluation mode: there a batch normalisation that has seen no batch yet
    normalises nothing.

    :param highest: largest multiple of ln(classes) that passes.
    :raises ValueError: ``highest`` below 1.

    >>> from pytest_ftcheck import example_trace
    >>> print(check_initial_loss(example_trace()))
    initial_loss: pass. The first loss is 0.7000, 1.01 times ln 2.
    """
    arguments.number("highest", highest, above=1)
    probe, task = trace.probe, trace.reading.task
    if probe is None or not probe.points:
        why = probe.skipped if probe is not None and probe.skipped else "there are no fixed rows to look at"
        return Verdict("initial_loss", "skipped", f"Not measured: {why.rstrip('.')}.")
    if task not in ("single_label", "multi_label"):
        known = "for numbers" if task == "regression" else "here: the task cannot be told from the outputs and labels"
        return Verdict(
            "initial_loss", "skipped", f"What knowing nothing scores is known for classes and tags, not {known}."
        )
    point = probe.points[0]
    if point.step != 0:
        return Verdict("initial_loss", "skipped", "There is no loss from before the first step.")
    shape = trace.measured(LossShape)
    if shape is not None and shape.form is not None:
        return Verdict(
            "initial_loss",
            "skipped",
            f"The model gives {shape.form.replace('_', ' ')}, not logits: no textbook loss of them.",
        )
    value = point.reference
    if value is None:
        return Verdict(
            "initial_loss", "skipped", "The textbook loss could not be computed: there are no logits to read."
        )
    classes = trace.reading.classes or 2
    nothing, name = (
        (math.log(max(2, classes)), f"ln {max(2, classes)}")
        if task == "single_label"
        else (math.log(2), "ln 2 (a tag)")
    )
    ratio = value / nothing
    own = (
        ""
        if abs(point.loss - value) <= 1e-3 * nothing
        else f" (textbook; the run's own loss is {number(point.loss, 4)})"
    )
    said = f"The first loss is {number(value, 4)}{own}, {number(ratio)} times {name}"
    measured = f"cross-entropy of the first logits, dropout off, on {plural(probe.rows, 'row')} ({probe.source})"
    size = shape.size_first if shape is not None else None
    if not math.isfinite(value):
        return Verdict(
            "initial_loss",
            "fail",
            f"The first loss is {number(value)}, before any step.",
            causes=("logits that are not finite: inputs, pretrained weights or the head's initialisation",),
            remedy="look at the first batch's logits",
            measured=measured,
            fault="initial_loss_not_finite",
        )
    began = _as_trained(trace)
    if ratio > highest and not own and began is not None and began <= highest * nothing:
        return Verdict(
            "initial_loss",
            "pass",
            f"The first training loss is {number(began, 4)}, {number(began / nothing)} times {name}.",
            measured="as the run told it, in training mode",
            notes=(
                f"in evaluation mode the same weights score {number(value, 4)}: running statistics (a batch normalisation's) that had "
                "seen no batch yet",
            ),
        )
    if ratio > highest:
        free = shape is None or (
            shape.deep_site and shape.high is not None and shape.high[0] <= TEMPERATURE and not shape.scale_free
        )
        return Verdict(
            "initial_loss",
            "fail" if free else "advice",
            f"{said}, where a model that knows nothing scores {number(nothing, 4)}.",
            limit=f"at most {highest:g} times {name}: a head near zero starts at {name}, and the healthy runs measured stay below it",
            causes=(
                "the head starts with large logits"
                + (f" (rms {number(size)})" if size is not None else "")
                + ": weights initialised far too large, features that are not normalised, or a head trained for other labels",
            ),
            remedy="initialise the head's last layer with std 0.02 (or zeros), biases 0; look at the scale of the features",
            measured=measured,
            notes=()
            if free
            else ("a cosine classifier with a large scale begins so by design: then this says nothing",),
            fault="initial_loss_too_high" if free else "",
        )
    notes = []
    entropy = probe.prior_entropy
    if entropy is not None and entropy > 0.1 and value < LOWEST * entropy:
        notes.append(
            f"that is below {percent(LOWEST)} of the labels' entropy ({number(entropy)}): the model knows these rows before the first step "
            "(trained before, or the labels are in the inputs)"
        )
    return Verdict("initial_loss", "pass", f"{said}.", measured=measured, notes=tuple(notes))


def _as_trained(trace: Trace) -> float | None:
    """The first loss that the run told, in training mode; of several batches to a step it may be told divided by their number.

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
