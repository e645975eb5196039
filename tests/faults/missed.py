"""What is not caught, not named or wrongly failed as yet: strict expected failures, to be emptied.

A reason says what the tool says instead. Of cases in the held-out third it says only that they are: nobody should tune a limit on them.
"""

from __future__ import annotations

HELD_OUT = "in the held-out third"

#: No check among the expected ones fails.
MISSED: dict[str, str] = {
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
    "averaged_over_features": HELD_OUT,
    "raw_regression_targets": HELD_OUT,
    "summed_over_rows_and_tags": HELD_OUT,
    "running_statistics_never_run": HELD_OUT,
}
#: Healthy, and a check fails.
ALARMS: dict[str, str] = {
    "parity_of_a_word": HELD_OUT,
}
