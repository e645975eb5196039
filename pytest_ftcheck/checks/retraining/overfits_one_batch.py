"""Can the model overfit a single batch?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..spec import Fault, Stage, Symptom, check, not_measured
from . import faults
from .record import Attempt, Overfit

NAME = "overfits_one_batch"
#: Share of the model that must be trained for a failure to overfit to count: the features of a frozen base may not separate sixteen labels
#: for any head.
LEAST_TRAINED = 0.5
#: Share of the loss between the best constant prediction and the best possible one; less than that at every learning rate is no progress.
NO_PROGRESS = 0.1
#: Differences between rows' outputs, over the outputs' size, below which the rows are equal to the model (float32 rounds at 6e-8).
EQUAL_ROWS = 1e-5
#: A first loss above this many times that of the best constant prediction may need more than 100 steps.
FAR_OFF = 3.0
#: The own loss counts as a loss of these labels if it starts within this factor of the standard loss.
SIMILAR = 2.0


@check(
    stage=Stage.OUTCOME,
    position=3,
    faults=(
        faults.BATCH_LOSS_STILL,
        faults.BATCH_ROWS_ALIKE,
        faults.CANNOT_OVERFIT,
    ),
    measurements=(Overfit,),
    shows=(Symptom.OUTCOME,),
)
def check_overfits_one_batch(trace: Trace) -> Verdict:
    """The model can overfit a single batch, so model, loss and labels allow a fit, whatever optimizer and loop do.

    Measured only when asked for (``probes=["overfit"]``, beside others). Up to 16 rows of the first batch are trained on alone, from
    the weights of the run's start, dropout off, by Adam at up to four learning rates and up to 100 steps each, until all predictions are
    right and half of the standard loss is gone (regression: 90 % of the variance). Fails if no learning rate changes the loss at all, if
    the rows' outputs stay equal, or if a model of which most is trained makes no progress. A frozen base, or a loss of another kind, makes
    it ``inconclusive``.

    >>> from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
    >>> trace = finetune(tiny_distilbert, toy_batches(), steps=2, probes=["overfit"])
    >>> check_overfits_one_batch(trace).status
    'pass'
    """
    overfit = trace.measured(Overfit)
    if overfit is None:
        return not_measured(NAME, trace, Overfit)
    best = overfit.best
    if best is None:
        return not_measured(NAME, trace, Overfit, "no learning rate was tried")
    verdict = _judge(overfit, best, trace.reading.task)
    return dataclasses.replace(
        verdict,
        evidence=_rows(overfit),
        limit="all predictions right that can be, and half of the standard loss gone (regression: 90 %); a failure only if the loss or the "
        f"outputs do not change, or if no learning rate removes {percent(NO_PROGRESS)} of the loss although at least "
        f"{percent(LEAST_TRAINED)} of the model is trained",
        measured=f"{plural(overfit.rows, 'row')} ({plural(overfit.labels, 'label')}) of a training batch, from the run's initial weights, "
        f"in {overfit.mode} mode; Adam without decay, gradients clipped to 1, {plural(len(overfit.attempts), 'learning rate')}",
        notes=_notes(overfit),
    )


def _judge(overfit: Overfit, best: Attempt, task: str | None) -> Verdict:
    rows = plural(overfit.rows, "row")
    if overfit.fitted:
        right = f", {percent(best.accuracy)} right" if best.accuracy is not None else ""
        return Verdict(
            NAME,
            "pass",
            f"The model overfits {rows} in {plural(best.steps, 'step')} at a learning rate of {number(best.lr)}: "
            f"{_change(overfit, best)}{right}.",
        )
    tried = f"at {plural(len(overfit.attempts), 'learning rate')} ({', '.join(number(a.lr) for a in overfit.attempts)})"
    if not math.isfinite(overfit.loss) or (overfit.reference is not None and not math.isfinite(overfit.reference)):
        return _inconclusive(
            f"The loss of the batch is {number(overfit.loss)} before the first step: no training can start from there.",
            ["the model or the loss computes something undefined; see assert_all_finite"],
            "look at the inputs and the initial weights for NaN",
        )
    if not any(math.isfinite(a.loss) for a in overfit.attempts):
        return _inconclusive(
            f"Training on {rows} alone breaks down: the loss becomes {number(best.loss)} {tried}.",
            ["a gradient or a weight becomes NaN or infinite, even with small steps; see assert_all_finite"],
            "look for a square root, a logarithm or a division at zero",
        )
    if _outputs_equal(overfit):
        assert overfit.constant_loss is not None
        return _fail(
            faults.BATCH_ROWS_ALIKE,
            f"The model returns the same output for all {overfit.rows} rows, {tried}: {_change(overfit, best)}; the best constant "
            f"prediction has {number(overfit.constant_loss)}.",
        )
    if _loss_unchanged(overfit):
        return _fail(
            faults.BATCH_LOSS_STILL,
            f"Training on {rows} alone does not change the loss: {number(overfit.loss, 4)} before and after, {tried}.",
        )
    if overfit.constant_loss is None or best.reference is None:
        return _inconclusive(
            f"The model does not overfit {rows}: the loss went from {number(overfit.loss, 4)} to {number(best.loss, 4)} at best, {tried}.",
            ["the loss has no standard form here, so its lowest value is not known"],
            "compare with the lowest value that your loss can have",
        )
    headline = (
        f"The model does not overfit {rows} {tried}: {_change(overfit, best)}; the best constant prediction has "
        f"{number(overfit.constant_loss)}."
    )
    if overfit.trainable < LEAST_TRAINED:
        return _inconclusive(
            headline,
            [
                f"only {percent(overfit.trainable)} of the parameters are trainable: the frozen ones may not provide features that "
                "separate these rows"
            ],
            "un-freeze more, use a larger head, or a pretrained base",
        )
    if overfit.floor is None:
        return _inconclusive(
            headline,
            ["rows with equal inputs have different labels, so the lowest possible loss is not known"],
            "see assert_batches_sound",
        )
    no_progress = _progress(overfit, best) < NO_PROGRESS
    if no_progress and task != "regression" and _is_loss_of_these_labels(overfit) and _starts_near(overfit):
        fault = faults.CANNOT_OVERFIT
        return _fail(fault, headline, (fault.cause, "or the outputs hardly depend on what distinguishes the rows"))
    return _inconclusive(
        headline,
        [
            "100 steps are too few for this model or these labels (large numbers, many tokens, a loss of another kind)",
            "or only a part of the gradient reaches the weights",
        ],
        "scale the labels to a mean of 0 and a deviation of 1; see assert_grads_match_reference and assert_loss_matches_task",
    )


def _fail(fault: Fault, headline: str, causes: Sequence[str] = ()) -> Verdict:
    return fault.verdict(NAME, headline, causes=tuple(causes) or (fault.cause,))


def _inconclusive(headline: str, causes: Sequence[str], remedy: str) -> Verdict:
    return Verdict(NAME, "inconclusive", headline, causes=tuple(causes), remedy=remedy)


def _outputs_equal(overfit: Overfit) -> bool:
    """At every learning rate all rows get the same output, although their inputs differ."""
    if overfit.constant_loss is None or overfit.floor is None:
        return False
    differences = [a.row_difference for a in overfit.attempts if a.row_difference is not None]
    inputs_differ = overfit.floor < 0.9 * overfit.constant_loss
    return len(differences) == len(overfit.attempts) and max(differences) < EQUAL_ROWS and inputs_differ


def _loss_unchanged(overfit: Overfit) -> bool:
    """No learning rate changed the loss by more than rounding."""
    own = all(abs(a.loss - overfit.loss) <= 1e-6 * max(abs(overfit.loss), 1e-12) for a in overfit.attempts)
    return own and all(
        a.reference is None or overfit.reference is None or a.reference >= overfit.reference * (1 - 1e-6)
        for a in overfit.attempts
    )


def _progress(overfit: Overfit, best: Attempt) -> float:
    """Share of the loss between the best constant prediction and the best possible one that is gone."""
    assert overfit.constant_loss is not None
    assert best.reference is not None
    removable = overfit.constant_loss - (overfit.floor or 0.0)
    return (overfit.constant_loss - best.reference) / max(removable, 1e-12)


def _is_loss_of_these_labels(overfit: Overfit) -> bool:
    """Before the first step the own loss is, apart from its sign, about as large as the standard loss of these labels."""
    if overfit.reference is None or overfit.reference <= 0:
        return False
    return 1 / SIMILAR <= abs(overfit.loss) / overfit.reference <= SIMILAR


def _starts_near(overfit: Overfit) -> bool:
    """The first loss is not far above that of the best constant prediction."""
    assert overfit.constant_loss is not None
    return overfit.reference is not None and overfit.reference <= FAR_OFF * overfit.constant_loss


def _change(overfit: Overfit, best: Attempt) -> str:
    if best.reference is None or overfit.reference is None:
        return f"the loss went from {number(overfit.loss, 4)} to {number(best.loss, 4)}"
    return f"the standard loss went from {number(overfit.reference, 4)} to {number(best.reference, 4)}"


def _notes(overfit: Overfit) -> tuple[str, ...]:
    notes = []
    if overfit.floor:
        notes.append(
            f"rows with equal inputs have different labels: no model can bring the standard loss below {number(overfit.floor)}"
        )
    if overfit.fitted:
        notes.append("this does not test the optimizer, the schedule and the loop of the run")
    return tuple(notes)


def _rows(overfit: Overfit) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "learning rate": number(a.lr),
            "steps": a.steps,
            "own loss": number(a.loss, 4),
            "standard loss": number(a.reference, 4),
            "right": None if a.accuracy is None else percent(a.accuracy),
        }
        for a in overfit.attempts
    )
