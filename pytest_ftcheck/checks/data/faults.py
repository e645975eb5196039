"""The faults that the checks of data find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

INPUTS_NAN = Fault(
    "inputs_nan",
    Rank.BROKEN_START + 30,
    "inputs hold NaN or infinity",
    explains=(
        Symptom.BLOWS_UP,
        Symptom.LOSS_WRONG,
        "no_leak",
    ),
    confidence="certain",
)
LABELS_NAN = Fault(
    "labels_nan",
    Rank.BROKEN_START + 40,
    "labels are NaN",
    explains=(
        Symptom.BLOWS_UP,
        Symptom.LOSS_WRONG,
    ),
    confidence="certain",
)
LABELS_ALL_IGNORED = Fault(
    "labels_all_ignored",
    Rank.LOSS_DISCONNECTED + 60,
    "every label is left out of the loss",
    explains=(
        Symptom.STANDS_STILL,
        Symptom.LOSS_WRONG,
    ),
    confidence="certain",
)
ONE_CLASS_ONLY = Fault(
    "one_class_only",
    Rank.DATA + 10,
    "all labels are of one class",
    explains=(
        "initial_loss",
        "loss_matches_task",
    ),
    confidence="certain",
)
LABELS_CONSTANT = Fault(
    "labels_constant",
    Rank.DATA + 20,
    "all labels are the same",
    explains=(
        "initial_loss",
        "loss_matches_task",
    ),
    confidence="certain",
)
MASK_EMPTY = Fault(
    "mask_empty",
    Rank.DATA + 30,
    "the attention mask hides everything",
    explains=(
        Symptom.INPUT_LOST,
        "padding_ignored",
    ),
    confidence="certain",
)
TEXTS_CUT_OFF = Fault(
    "texts_cut_off",
    Rank.DATA + 40,
    "the texts are cut to nothing",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
IDS_CLAMPED = Fault(
    "ids_clamped",
    Rank.DATA + 50,
    "token ids are cut off at the end of the vocabulary",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
WORDS_UNKNOWN = Fault(
    "words_unknown",
    Rank.DATA + 60,
    "nearly all words are the same token",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
INPUTS_ALIKE = Fault(
    "inputs_alike", Rank.DATA + 70, "all rows are the same", explains=(Symptom.INPUT_LOST,), confidence="certain"
)
ONE_ROW_REPEATED = Fault(
    "one_row_repeated", Rank.DATA + 80, "one row is repeated", explains=(Symptom.INPUT_LOST,), confidence="certain"
)
SAME_BATCH = Fault(
    "same_batch", Rank.DATA + 90, "every step trains on the same batch", explains=("no_leak",), confidence="certain"
)
CLASS_MISSING = Fault(
    "class_missing", Rank.DATA + 100, "a class that is evaluated is never trained", confidence="certain"
)
SORTED_BY_CLASS = Fault(
    "sorted_by_class",
    Rank.DATA + 110,
    "the data are sorted by class and not shuffled",
    explains=("initial_loss",),
    confidence="certain",
)
BATCHES_OF_ONE_CLASS = Fault(
    "batches_of_one_class",
    Rank.DATA + 120,
    "each batch holds one class",
    explains=("initial_loss",),
    confidence="certain",
)
LABELS_CONTRADICT = Fault(
    "labels_contradict", Rank.DATA + 130, "the same row comes with different labels", confidence="certain"
)
LABEL_IN_INPUTS = Fault("label_in_inputs", Rank.DATA + 140, "the input gives the label away", confidence="certain")
HELD_OUT_IS_TRAINING = Fault(
    "held_out_is_training", Rank.DATA + 150, "the evaluation rows are training rows", confidence="certain"
)
LABELS_SHIFTED = Fault("labels_shifted", Rank.DATA + 160, "labels belong to the rows beside them")
BATCHNORM_ON_FEW = Fault(
    "batchnorm_on_few",
    Rank.INPUTS + 310,
    "batch normalisation over too few rows",
    explains=("output_depends_on_input",),
    confidence="certain",
)
LABELS_UNRELATED = Fault(
    "labels_unrelated", Rank.OUTCOME + 200, "the labels look unrelated to the inputs", confidence="possible"
)
METRIC_WRONG = Fault("metric_wrong", Rank.EVALUATION + 10, "the metric is computed wrongly", confidence="certain")
METRIC_BLIND = Fault("metric_blind", Rank.EVALUATION + 20, "the metric does not see what the model learns")
METRIC_SCALED = Fault("metric_scaled", Rank.EVALUATION + 30, "the metric is scaled")
