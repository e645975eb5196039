"""What is not caught, not named or wrongly failed as yet: strict expected failures, to be emptied.

A reason says what the tool says instead. Of cases in the held-out third it says only that they are: nobody should tune a limit on them.
"""

from __future__ import annotations

HELD_OUT = "in the held-out third"

#: No check among the expected ones fails.
MISSED: dict[str, str] = {
    "cosine_without_scale": "logits of a parameter that is no Linear layer are taken for free",
    "prototypes_not_saved": "a buffer that is not in the state_dict keeps its values in the copy that is read back into",
    "token_logits_reshaped": "which token's label is whose is not judged; the right answers score no better than uniform ones",
    "penalty_drowns_the_task": "the loss differs by 0.05 % between right and wrong answers, which is found and not judged",
    "tags_reduced_by_argmax": "right tags have a loss of 0.4 instead of 0, which is found and not judged",
    "word_dropout_in_evaluation": "randomness of the words before a library's base is taken for the base's own",
    "torch_mask_inverted": HELD_OUT,
    "gru_reads_the_padding": HELD_OUT,
    "mask_of_another_tokenizer": HELD_OUT,
    "truncated_to_one_word": HELD_OUT,
    "first_row_for_all": HELD_OUT,
    "averaged_over_the_classes": HELD_OUT,
    "gradients_left_disabled": HELD_OUT,
    "adapter_without_skip": HELD_OUT,
    "decay_lands_on_eps": HELD_OUT,
}
#: A check fails, but another cause comes first.
MISNAMED: dict[str, str] = {
    "positive_weight_zero": "'some rows count nothing' for tags that are on",
    "averaged_over_features": HELD_OUT,
    "raw_regression_targets": HELD_OUT,
    "summed_over_rows_and_tags": HELD_OUT,
    "running_statistics_never_run": HELD_OUT,
}
#: Healthy, and a check fails.
ALARMS: dict[str, str] = {
    "one_logit_in_a_column": "loss_decreases: labels of 0.0 and 1.0 in a column are taken for regression targets",
    "parity_of_a_word": HELD_OUT,
}
