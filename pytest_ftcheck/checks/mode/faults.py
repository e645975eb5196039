"""The faults that the checks of mode find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

MODEL_IN_EVALUATION_MODE = Fault(
    "model_in_evaluation_mode",
    Rank.INPUTS + 10,
    "the model trains in evaluation mode",
    explains=("eval_deterministic",),
    confidence="certain",
)
PART_IN_EVALUATION_MODE = Fault(
    "part_in_evaluation_mode", Rank.INPUTS + 20, "a part of the model trains in evaluation mode", confidence="certain"
)
LEFT_IN_EVALUATION_MODE = Fault(
    "left_in_evaluation_mode",
    Rank.INPUTS + 30,
    "the model is left in evaluation mode after an evaluation",
    confidence="certain",
)
DROPOUT_RATE_EXTREME = Fault(
    "dropout_rate_extreme",
    Rank.INPUTS + 40,
    "dropout takes nearly everything",
    explains=(
        Symptom.INPUT_LOST,
        "grads_match_reference",
    ),
    confidence="certain",
)
DROPOUT_MISSING = Fault(
    "dropout_missing", Rank.INPUTS + 50, "there is no dropout, though it was declared", confidence="certain"
)
DROPOUT_NOT_MEANT = Fault(
    "dropout_not_meant", Rank.INPUTS + 60, "dropout is on, though none was declared", confidence="certain"
)
DROPOUT_RATE_DIFFERS = Fault(
    "dropout_rate_differs", Rank.INPUTS + 70, "dropout has another rate than declared", confidence="certain"
)
RANDOM_IN_EVALUATION = Fault(
    "random_in_evaluation",
    Rank.INPUTS + 260,
    "the model is random in evaluation mode",
    explains=(
        "rows_independent",
        "padding_ignored",
        "metric_matches_reference",
    ),
    confidence="certain",
)
EVALUATION_CHANGES_MODEL = Fault(
    "evaluation_changes_model",
    Rank.INPUTS + 270,
    "the evaluation changes the model",
    explains=("metric_matches_reference",),
    confidence="certain",
)
STATISTICS_NEVER_UPDATED = Fault(
    "statistics_never_updated",
    Rank.INPUTS + 280,
    "the running statistics of a batch normalisation are never updated",
    explains=(
        Symptom.INPUT_LOST,
        "metric_matches_reference",
    ),
    confidence="certain",
)
SEEDED_EVERY_STEP = Fault(
    "seeded_every_step",
    Rank.INPUTS + 290,
    "the random seed is set anew at every step: dropout takes out the same each time",
    confidence="certain",
)
EVALUATES_IN_TRAINING_MODE = Fault(
    "evaluates_in_training_mode",
    Rank.INPUTS + 300,
    "the evaluation runs in training mode",
    explains=("metric_matches_reference",),
    confidence="certain",
)
