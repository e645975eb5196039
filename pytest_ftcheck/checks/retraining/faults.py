"""The faults that the checks of retraining find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

BATCH_LOSS_STILL = Fault(
    "batch_loss_still",
    Rank.OUTCOME + 150,
    "training on one batch alone does not change its loss",
    explains=(Symptom.STANDS_STILL,),
)
BATCH_ROWS_ALIKE = Fault(
    "batch_rows_alike",
    Rank.OUTCOME + 160,
    "not one batch can be learnt by heart: all rows get the same output",
    explains=(Symptom.INPUT_LOST,),
)
LOSS_MISSES_LABELS = Fault(
    "loss_misses_labels",
    Rank.OUTCOME + 170,
    "the loss does not ask for the labels of the rows",
    explains=(Symptom.LOSS_WRONG,),
)
CANNOT_OVERFIT = Fault(
    "cannot_overfit", Rank.OUTCOME + 180, "not one batch can be learnt by heart", confidence="possible"
)
NO_BETTER_THAN_PERMUTED = Fault(
    "no_better_than_permuted", Rank.OUTCOME + 190, "permuted labels are learnt as well as the true ones"
)
