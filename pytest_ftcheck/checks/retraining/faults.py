"""The faults that the checks of retraining find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

BATCH_LOSS_STILL = Fault(
    "batch_loss_still",
    Rank.OUTCOME + 150,
    "training on a single batch does not change its loss",
    cause="no gradient reaches the weights from the loss: a detach(), an argmax, a dead activation, a loss that is multiplied by zero or "
    "ignores the outputs",
    remedy="see assert_grads_nonzero for where the gradient ends",
    explains=(Symptom.STANDS_STILL,),
)
BATCH_ROWS_ALIKE = Fault(
    "batch_rows_alike",
    Rank.OUTCOME + 160,
    "the model cannot overfit a single batch: all rows get the same output",
    cause="what distinguishes the rows does not reach the output: features multiplied by zero, a mask that hides everything, dead units, "
    "or pooling over the wrong positions",
    remedy="see assert_output_depends_on_input and assert_units_alive for where it ends",
    explains=(Symptom.INPUT_LOST,),
)
LOSS_MISSES_LABELS = Fault(
    "loss_misses_labels",
    Rank.OUTCOME + 170,
    "the loss does not depend on the labels of its own rows",
    cause="the minimised loss does not use the labels of these rows: it shuffles or shifts them, uses others, or has the wrong sign",
    remedy="compare your loss with cross_entropy(logits, labels) on one batch; see assert_loss_matches_task",
    explains=(Symptom.LOSS_WRONG,),
)
CANNOT_OVERFIT = Fault(
    "cannot_overfit",
    Rank.OUTCOME + 180,
    "the model cannot overfit a single batch",
    cause="the loss uses other labels than the batch's: shuffled, shifted, or with a flipped sign",
    remedy="compare your loss with cross_entropy(logits, labels) on this batch; see assert_loss_matches_task",
    confidence="possible",
)
NO_BETTER_THAN_PERMUTED = Fault(
    "no_better_than_permuted",
    Rank.OUTCOME + 190,
    "the model fits permuted labels as well as the true ones",
    cause="the labels do not belong to the rows: shuffled, shifted, or joined to the wrong inputs",
    remedy="print ten rows with their labels, as they enter the model",
)
