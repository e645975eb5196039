"""Can the model learn one batch by heart?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Status, Verdict
from ..spec import Stage, Symptom, check, not_measured
from . import faults
from .record import Attempt, Overfit

#: Share of the model that must be trained before a failure to learn one batch is held against it: a frozen base may well give features
#: of which no head makes sixteen labels.
LEAST_TRAINED = 0.5
#: Share of the way from the blind answer to the best one: what is below it at every learning rate is no way at all.
NO_WAY = 0.1
#: Differences between rows' outputs, over the outputs' size, below which the rows are the same to the model (float32 rounds at 6e-8).
ALIKE = 1e-5
#: A start that costs more than this many times the blind answer may be too far off for 100 steps.
FAR_OFF = 3.0
#: The own loss counts as one of the labels if it starts within this factor of the textbook loss.
KINDRED = 2.0


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
    """One batch can be learnt by heart: model, loss and labels allow a fit when the training itself is out of the way.

    Measured only when asked for (``probes=["overfit"]``, beside others). Up to 16 rows of the first batch are trained on alone, from
    the weights of the run's start, dropout off, by Adam at up to four learning rates and up to 100 steps each, until all are right
    and half of the textbook loss is gone (of numbers: 90 % of their variance). Fails if no learning rate changes the loss at
    all, if the rows' outputs stay the same, or if a model of which most is trained makes no way at all. A frozen base, or a loss of
    another kind, makes it ``inconclusive``.

    >>> from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
    >>> trace = finetune(tiny_distilbert, toy_batches(), steps=2, probes=["overfit"])
    >>> check_overfits_one_batch(trace).status
    'pass'
    """
    name, found = "overfits_one_batch", trace.measured(Overfit)
    if found is None:
        return not_measured(name, trace, Overfit)
    best = found.best
    if best is None:
        return Verdict(name, "skipped", "no learning rate was tried.")
    measured = (
        f"{plural(found.rows, 'row')} ({plural(found.labels, 'label')}) of a training batch, from the run's initial weights, in "
        f"{found.mode} mode; Adam without decay, gradients clipped to 1, {plural(len(found.attempts), 'learning rate')}"
    )
    limit = (
        "all right that can be right, and half of the textbook loss gone (of numbers 90 %); a failure is sure only if the loss or the "
        f"outputs stand still, or if at no learning rate {percent(NO_WAY)} of the way is made though at least {percent(LEAST_TRAINED)} of "
        "the model is trained"
    )

    def verdict(
        status: Status, headline: str, causes: Sequence[str] = (), remedy: str = "", fault: str = ""
    ) -> Verdict:
        return Verdict(
            name, status, headline, _rows(found), limit, tuple(causes), remedy, measured, _notes(found), fault
        )

    if found.fitted:
        right = f", {percent(best.right)} right" if best.right is not None else ""
        return verdict(
            "pass",
            f"{plural(found.rows, 'row')} learnt by heart in {plural(best.steps, 'step')} at a learning rate of {number(best.lr)}: "
            f"{_loss(found, best)}{right}.",
        )
    tried = f"at {plural(len(found.attempts), 'learning rate')} ({', '.join(number(a.lr) for a in found.attempts)})"
    if not math.isfinite(found.loss) or (found.reference is not None and not math.isfinite(found.reference)):
        return verdict(
            "inconclusive",
            f"The loss of the batch is {number(found.loss)} before the first step: nothing can be learnt from there.",
            ["the model or the loss computes something undefined; see assert_all_finite"],
            "look at the inputs and the initial weights for NaN",
        )
    if not any(math.isfinite(a.loss) for a in found.attempts):
        return verdict(
            "inconclusive",
            f"Training on {plural(found.rows, 'row')} alone breaks down: the loss becomes {number(best.loss)} {tried}.",
            ["a gradient or a weight becomes NaN or infinite, even at small steps; see assert_all_finite"],
            "look for a square root, a logarithm or a division at zero",
        )
    alike = [a.apart for a in found.attempts if a.apart is not None]
    if found.prior is not None and len(alike) == len(found.attempts) and max(alike) < ALIKE and _distinct(found):
        return verdict(
            "fail",
            f"The model gives all {found.rows} rows the same output, {tried}: {_loss(found, best)}; saying the same for every row "
            f"costs {number(found.prior)}.",
            [
                "what tells the rows apart does not reach the output: features multiplied by zero, a mask that hides all, dead units, or "
                "something else than the words is pooled"
            ],
            "see assert_output_depends_on_input and assert_units_alive for where it ends",
            "batch_rows_alike",
        )
    if _still(found):
        return verdict(
            "fail",
            f"Training on {plural(found.rows, 'row')} alone does not change the loss: {number(found.loss, 4)} before and after, {tried}.",
            [
                "no gradient gets from the loss to the weights: a detach(), an argmax, a dead activation, a loss that is multiplied by "
                "zero or ignores the outputs"
            ],
            "see assert_grads_nonzero for where the gradient ends",
            "batch_loss_still",
        )
    if found.prior is None or best.reference is None:
        return verdict(
            "inconclusive",
            f"{plural(found.rows, 'row')} were not learnt by heart: the loss went from {number(found.loss, 4)} to "
            f"{number(best.loss, 4)} at best, {tried}.",
            ["the loss is one that has no textbook form here: how low it can go is not known"],
            "compare with the lowest value that your loss can have",
        )
    way = _way(found, best)
    headline = (
        f"{plural(found.rows, 'row')} are not learnt by heart {tried}: {_loss(found, best)}; saying the same for every row costs "
        f"{number(found.prior)}."
    )
    if found.trainable < LEAST_TRAINED:
        return verdict(
            "inconclusive",
            headline,
            [
                f"{percent(found.trainable)} of the parameters may learn: what is frozen may not give features that tell these rows apart"
            ],
            "un-freeze more, use a larger head, or a base that was pretrained",
        )
    if found.floor is None:
        return verdict(
            "inconclusive",
            headline,
            ["rows with equal inputs have different labels: how low the loss can go is not known"],
            "see assert_batches_sound",
        )
    if way < NO_WAY and trace.reading.task != "regression" and _kindred(found) and _near(found):
        return verdict(
            "fail",
            headline,
            [
                "the labels that the loss sees are others than the batch's: shuffled, shifted, or the sign is flipped",
                "or the outputs hardly depend on what tells the rows apart",
            ],
            "compare your loss with cross_entropy(logits, labels) on this batch; see assert_loss_matches_task",
            "cannot_overfit",
        )
    return verdict(
        "inconclusive",
        headline,
        [
            "100 steps are too few for this model or these labels (large numbers, many tokens, a loss of another kind)",
            "or something lets only a part of the gradient through",
        ],
        "scale the labels to a mean of 0 and a deviation of 1; see assert_grads_match_reference and assert_loss_matches_task",
    )


def _distinct(found: Overfit) -> bool:
    """The inputs themselves are different."""
    return found.floor is not None and found.prior is not None and found.floor < 0.9 * found.prior


def _still(found: Overfit) -> bool:
    """Not one learning rate changed the loss by more than rounding."""
    own = all(abs(a.loss - found.loss) <= 1e-6 * max(abs(found.loss), 1e-12) for a in found.attempts)
    return own and all(
        a.reference is None or found.reference is None or a.reference >= found.reference * (1 - 1e-6)
        for a in found.attempts
    )


def _way(found: Overfit, best: Attempt) -> float:
    """Share of the way from the blind answer to the best one."""
    assert found.prior is not None
    assert best.reference is not None
    return (found.prior - best.reference) / max(found.prior - (found.floor or 0.0), 1e-12)


def _kindred(found: Overfit) -> bool:
    """The own loss is, but for its sign, about as large as the textbook's before the first step: it is one of these labels."""
    if found.reference is None or found.reference <= 0:
        return False
    return 1 / KINDRED <= abs(found.loss) / found.reference <= KINDRED


def _near(found: Overfit) -> bool:
    """The start is not far off."""
    assert found.prior is not None
    return found.reference is not None and found.reference <= FAR_OFF * found.prior


def _loss(found: Overfit, best: Attempt) -> str:
    if best.reference is None or found.reference is None:
        return f"the loss went from {number(found.loss, 4)} to {number(best.loss, 4)}"
    return f"the textbook loss went from {number(found.reference, 4)} to {number(best.reference, 4)}"


def _notes(found: Overfit) -> tuple[str, ...]:
    notes = []
    if found.floor:
        notes.append(
            f"rows with equal inputs have different labels: no model can bring the textbook loss below {number(found.floor)}"
        )
    if found.fitted:
        notes.append("the optimizer, the schedule and the loop of the run had no part in this")
    return tuple(notes)


def _rows(found: Overfit) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "learning rate": number(a.lr),
            "steps": a.steps,
            "own loss": number(a.loss, 4),
            "textbook loss": number(a.reference, 4),
            "right": None if a.right is None else percent(a.right),
        }
        for a in found.attempts
    )
