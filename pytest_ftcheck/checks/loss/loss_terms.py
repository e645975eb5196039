"""What the loss is made of: other terms, a temperature, a scale, another task. The run decides whether they do harm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ...core.formatting import number, percent
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..data.record import Data
from ..spec import Fault
from . import faults
from .loss_evidence import NAME, answers, failure, how_measured
from .record import LossShape

#: A gradient this many times shorter than the standard's is scaled to nothing: Adam divides by sqrt(v) + eps.
NOTHING = 1e-3
#: The factor is measured to within rounding: one of exactly `NOTHING` is found, too.
ROUNDED = 1.05
#: The gradient of other terms, as a multiple of the task's, above which it explains a run that learns nothing.
LARGEST_OTHER_TERMS = 30.0
#: Temperatures in use: 1/64 for cosines (ArcFace), 2 to 20 in distillation. Above this, the run decides.
HIGHEST_TEMPERATURE = 100.0
#: Most frequent class over rarest, and largest weight over smallest, from which weights are compared with shares: below, either may be
#: rounding or taste. Weights that offset an imbalance have a correlation of -1 with the shares.
LEAST_IMBALANCE, LEAST_WEIGHTS, LEAST_CORRELATION = 2.0, 1.5, 0.8
#: p-value of a metric that is better than the majority class.
BETTER = 0.01


def find_dominant_other_terms(trace: Trace, shape: LossShape) -> Verdict | None:
    """Another term of the loss, which does not go through the logits, and a run that does not learn the task."""
    if shape.other_terms is None or shape.other_terms <= LARGEST_OTHER_TERMS or _beats_start_and_chance(trace):
        return None
    return failure(
        faults.OTHER_TERMS_DROWN,
        f"The gradient of other loss terms is {number(shape.other_terms)} times that of the task loss, and the model does not learn the "
        "task.",
        shape,
        f"gradients of other terms at most {LARGEST_OTHER_TERMS:g} times the task's, or a run that learns all the same",
    )


def find_extreme_temperature(trace: Trace, shape: LossShape) -> Verdict | None:
    """A temperature so high that the run learns nothing. (One far too low passes: small logits make up for it.)"""
    temperature = shape.temperature
    if temperature is None or temperature <= HIGHEST_TEMPERATURE or _beats_start_and_chance(trace):
        return None
    return failure(
        faults.TEMPERATURE_EXTREME,
        f"The loss is cross-entropy of the logits divided by {number(temperature)}, and the model does not learn the task.",
        shape,
        f"a temperature of at most {HIGHEST_TEMPERATURE:g}, or a run that learns all the same",
    )


def find_amplified_imbalance(trace: Trace, shape: LossShape) -> Verdict | None:
    """Class weights that are the larger the more frequent the class is: the opposite of what weights are for."""
    data = trace.measured(Data)
    shares, weights = (data.counts if data is not None else ()), shape.class_weights
    if len(shares) != len(weights) or not shares or min(shares) <= 0:
        return None
    if max(shares) < LEAST_IMBALANCE * min(shares) or max(weights) < LEAST_WEIGHTS * min(weights):
        return None
    if _rank_correlation(shares, weights) < LEAST_CORRELATION:
        return None
    rarest, commonest = shares.index(min(shares)), shares.index(max(shares))
    headline = (
        f"Class {commonest} has {percent(shares[commonest] / sum(shares))} of the rows and weight {number(weights[commonest])}, class "
        f"{rarest} has {percent(shares[rarest] / sum(shares))} and weight {number(weights[rarest])}"
    )
    limit = "weights that do not rise with the classes' shares, or a run that does better than the majority class all the same"
    chances = [m.p_value for m in trace.metrics if m.p_value is not None]
    if not chances or min(chances) <= BETTER:
        return _advice(faults.CLASS_WEIGHTS_REVERSED, f"{headline}.", shape, limit)
    return failure(
        faults.CLASS_WEIGHTS_REVERSED, f"{headline}; no metric is better than the majority class.", shape, limit
    )


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; equal values share their mean rank."""

    def ranks(values: Sequence[float]) -> list[float]:
        return [sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values]

    return statistics.correlation(ranks(a), ranks(b))


def find_wrong_outputs(trace: Trace) -> Verdict | None:
    """Embeddings where logits are declared, or logits where embeddings are."""
    declared, measured = trace.intent.task if trace.intent is not None else None, trace.reading.task
    if declared is None or measured is None or (declared == "embedding") == (measured == "embedding"):
        return None
    if measured == "embedding":
        loss, instead = (
            "The loss only compares labels with each other, as in metric learning",
            "cross_entropy of logits",
        )
        how = "the loss with the classes renumbered, and with two classes made one"
    else:
        loss, instead = (
            "The loss treats the outputs as the logits of classes",
            "a loss that compares rows with each other",
        )
        how = "the gradient at the outputs, beside that of the standard loss"
    fault = faults.WRONG_TASK.with_details(loss_of_task=f"{instead}, or declare task={measured!r}")
    headline = f"{loss}, but the declared task is {declared!r}."
    return fault.verdict(NAME, headline, limit="the loss of the declared task", measured=how)


def find_wrong_task(trace: Trace, shape: LossShape) -> Verdict | None:
    """Another loss than that of the declared task."""
    declared = trace.intent.task if trace.intent is not None else None
    if declared is None or shape.known is None:
        return None
    one_of_two_classes = False
    if (
        declared == "single_label"
        and shape.kind == "regression"
        and shape.known in ("squared_error", "absolute_error", "huber")
    ):
        one_of_two_classes = shape.label_range is None or shape.label_range[1] <= 1
        loss = f"the {shape.known.replace('_', ' ')} of one output"
        loss_of_task = "one output a class and cross_entropy (num_labels)"
    elif declared == "regression" and shape.kind == "single" and shape.known == "cross_entropy":
        loss = "cross-entropy over classes"
        loss_of_task = "one output and mse_loss (num_labels=1, float labels)"
    elif declared == "multi_label" and shape.kind == "single" and shape.known == "cross_entropy":
        loss = "cross-entropy over classes, one label a row"
        loss_of_task = "multi-hot float labels and binary_cross_entropy_with_logits"
    elif declared == "single_label" and shape.kind == "tags" and shape.known == "bce":
        loss = "binary cross-entropy of each tag, with any number of tags a row"
        loss_of_task = "one whole-number label a row"
    else:
        return None
    fault = faults.WRONG_TASK.with_details(loss_of_task=loss_of_task)
    headline = f"The loss is {loss}, but the declared task is {declared!r}."
    limit = "the loss of the declared task"
    return _advice(fault, headline, shape, limit) if one_of_two_classes else failure(fault, headline, shape, limit)


def find_harmful_scale(trace: Trace, shape: LossShape) -> Verdict | None:
    """A scale is no fault in itself; it is one where the run suffers from it."""
    scale = shape.scale
    if (
        scale is None
        or scale <= 0
        or shape.known is None
        or shape.random
        or shape.cosine is None
        or shape.cosine < 0.99
    ):
        return None
    learned = _learned(trace)
    if scale <= ROUNDED * NOTHING:
        headline = f"The loss is {number(scale)} times the standard loss"
        limit = f"a scale above {NOTHING:g}, or a run that learns all the same"
        if learned:
            return _advice(faults.LOSS_SCALED_TO_NOTHING, f"{headline}.", shape, limit)
        headline += ", and the standard loss of the logits does not fall."
        return failure(faults.LOSS_SCALED_TO_NOTHING, headline, shape, limit)
    if shape.rows >= 4 and abs(scale / shape.rows - 1) < 0.05 and trace.optimizer.family != "adam":
        fault = faults.SUM_REDUCTION
        headline = f"The loss is the sum over the {shape.rows} rows, not their mean"
        limit = "a sum is a fault only where the run diverges or does not learn"
        if learned or not _broke(trace):
            return _advice(fault, f"{headline}.", shape, limit)
        return failure(fault, f"{headline}, and the run diverges or does not learn.", shape, limit)
    return None


def _advice(fault: Fault, headline: str, shape: LossShape, limit: str) -> Verdict:
    """What would be the fault if the run suffered from it."""
    return fault.verdict(
        NAME, headline, "advice", fault="", evidence=answers(shape), limit=limit, measured=how_measured(shape)
    )


def _standard_losses(trace: Trace) -> list[float]:
    """The standard losses of the probe rows, in the order of the run."""
    return (
        [p.reference for p in trace.probe_loss.points if p.reference is not None]
        if trace.probe_loss is not None
        else []
    )


def _beats_start_and_chance(trace: Trace) -> bool:
    """The standard loss ended 5 % below both its start and that of the class priors; True, too, where that is not known."""
    losses = _standard_losses(trace)
    if trace.probe_loss is None or len(losses) < 2:
        return True
    chance = trace.probe_loss.prior_entropy
    least = losses[0] if chance is None else min(losses[0], chance)
    return math.isfinite(losses[-1]) and losses[-1] < 0.95 * least


def _learned(trace: Trace) -> bool:
    """The standard loss on the probe rows fell by 5 %."""
    losses = _standard_losses(trace)
    return len(losses) > 1 and math.isfinite(losses[-1]) and losses[-1] < 0.95 * losses[0]


def _broke(trace: Trace) -> bool:
    """The run diverged, or ended worse than it began."""
    losses = _standard_losses(trace)
    if any(not math.isfinite(loss) for loss in (*losses, *trace.losses)):
        return True
    return len(losses) > 1 and losses[-1] > 1.05 * losses[0]
