"""The faults that the checks of inputs find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

ONE_ROW_FOR_ALL = Fault(
    "one_row_for_all",
    Rank.DATA + 170,
    "one row's features stand for all rows",
    explains=(
        "rows_independent",
        "logits_unbounded",
        "initial_loss",
        Symptom.INPUT_LOST,
    ),
    confidence="certain",
)
MASK_INVERTED = Fault(
    "mask_inverted",
    Rank.LOSS + 340,
    "the attention mask is inverted",
    explains=(
        "output_depends_on_input",
        "padding_ignored",
        "initial_loss",
        Symptom.BLOWS_UP,
    ),
    confidence="certain",
)
MASK_NOT_PASSED = Fault(
    "mask_not_passed", Rank.INPUTS + 80, "the attention mask does not reach the base", confidence="certain"
)
MASK_MISSPELT = Fault(
    "mask_misspelt",
    Rank.INPUTS + 90,
    "the attention mask goes to the base under a name that it does not know",
    confidence="certain",
)
MASK_MISPLACED = Fault(
    "mask_misplaced",
    Rank.INPUTS + 100,
    "the attention mask arrives in another argument's place",
    explains=("output_depends_on_input",),
    confidence="certain",
)
MASK_ALL_ONES = Fault(
    "mask_all_ones", Rank.INPUTS + 110, "the attention mask does not mark the padding", confidence="certain"
)
MASK_IGNORED = Fault("mask_ignored", Rank.INPUTS + 120, "the attention mask has no effect")
MASK_WRONG = Fault("mask_wrong", Rank.INPUTS + 130, "the attention mask does not fit the padding")
PAD_ID_WRONG = Fault(
    "pad_id_wrong",
    Rank.INPUTS + 140,
    "the padding has another id than the model takes for padding",
    confidence="certain",
)
PADDING_READ = Fault(
    "padding_read",
    Rank.INPUTS + 150,
    "the padding is read like text, for want of a mask that fits",
    confidence="certain",
)
PADDING_POOLED = Fault("padding_pooled", Rank.INPUTS + 160, "the padding is pooled with the words")
ROWS_MIXED = Fault(
    "rows_mixed",
    Rank.INPUTS + 170,
    "rows of a batch are mixed",
    explains=(
        "padding_ignored",
        "loss_matches_task",
    ),
    confidence="certain",
)
POOLS_FIRST_TOKEN_OF_CAUSAL_MODEL = Fault(
    "pools_first_token_of_causal_model",
    Rank.INPUTS + 180,
    "a causal model is pooled at its first token",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
TEXTS_CUT_INSIDE = Fault(
    "texts_cut_inside", Rank.INPUTS + 190, "the texts are cut off inside the model", confidence="certain"
)
POSITIONS_CONSTANT = Fault(
    "positions_constant",
    Rank.INPUTS + 200,
    "positions do not reach the base: all tokens stand at the same place",
    confidence="certain",
)
TYPE_IDS_LOST = Fault("type_ids_lost", Rank.INPUTS + 210, "the type ids do not reach the base", confidence="certain")
POOLS_BLIND_LAYER = Fault(
    "pools_blind_layer",
    Rank.INPUTS + 220,
    "the head is fed with something that does not depend on the words",
    explains=(Symptom.INPUT_LOST,),
)
TOKENS_NOT_MIXED = Fault(
    "tokens_not_mixed", Rank.INPUTS + 230, "the tokens do not see each other", explains=(Symptom.INPUT_LOST,)
)
WORDS_IGNORED = Fault(
    "words_ignored", Rank.INPUTS + 240, "the output does not depend on the words", explains=(Symptom.INPUT_LOST,)
)
BATCH_STATISTICS_IN_EVALUATION = Fault(
    "batch_statistics_in_evaluation",
    Rank.INPUTS + 250,
    "rows depend on each other through batch statistics in evaluation",
    confidence="certain",
)
HEAD_CONSTANT = Fault(
    "head_constant", Rank.HEAD + 90, "the head gives every row the same output", explains=(Symptom.INPUT_LOST,)
)
OUTPUT_COLLAPSED = Fault(
    "output_collapsed",
    Rank.OUTCOME + 130,
    "the training makes the output the same for every input",
    explains=(Symptom.INPUT_LOST,),
)
