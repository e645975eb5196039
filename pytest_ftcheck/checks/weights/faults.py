"""The faults that the checks of weights find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

NOT_FROZEN = Fault(
    "not_frozen",
    Rank.PARAMETERS + 70,
    "parameters that should stay are trained",
    explains=(
        "optimizer_covers_model",
        "optimizer_settings",
        "weights_kept",
    ),
    confidence="certain",
)
WEIGHTS_OVERWRITTEN = Fault(
    "weights_overwritten",
    Rank.WEIGHTS + 10,
    "something overwrites the weights between steps",
    explains=(
        "weights_move",
        "frozen_stay_frozen",
    ),
    confidence="certain",
)
WEIGHTS_RESET = Fault(
    "weights_reset",
    Rank.WEIGHTS + 20,
    "something resets weights between steps",
    explains=(
        "weights_move",
        "frozen_stay_frozen",
    ),
    confidence="certain",
)
FROZEN_WRITTEN = Fault(
    "frozen_written",
    Rank.WEIGHTS + 30,
    "something writes into frozen parameters",
    explains=("weights_kept",),
    confidence="certain",
)
FROZEN_STATISTICS_DRIFT = Fault(
    "frozen_statistics_drift", Rank.WEIGHTS + 40, "running statistics of a frozen module drift", confidence="certain"
)
WEIGHTS_STILL = Fault("weights_still", Rank.OUTCOME + 110, "the weights do not move", explains=(Symptom.STANDS_STILL,))
