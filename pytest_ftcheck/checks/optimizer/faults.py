"""The faults that the checks of optimizer find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

NO_STEP_TAKEN = Fault(
    "no_step_taken",
    Rank.PARAMETERS + 10,
    "the optimizer never steps",
    explains=(
        Symptom.STANDS_STILL,
        "lr_follows_schedule",
        "optimizer_covers_model",
        "optimizer_settings",
    ),
    confidence="certain",
)
STALE_OPTIMIZER = Fault(
    "stale_optimizer",
    Rank.PARAMETERS + 20,
    "the optimizer holds other tensors than the model's",
    explains=(
        Symptom.STANDS_STILL,
        "optimizer_settings",
    ),
    confidence="certain",
)
REPLACED_IN_LOOP = Fault(
    "replaced_in_loop",
    Rank.PARAMETERS + 30,
    "a layer is replaced while it trains",
    explains=(
        Symptom.STANDS_STILL,
        "weights_kept",
    ),
    confidence="certain",
)
NOT_IN_OPTIMIZER = Fault(
    "not_in_optimizer",
    Rank.PARAMETERS + 40,
    "parameters that should learn are in no group of the optimizer",
    explains=(
        Symptom.STANDS_STILL,
        "optimizer_settings",
    ),
    confidence="certain",
)
NEVER_THAWED = Fault(
    "never_thawed",
    Rank.PARAMETERS + 50,
    "what was to be thawed stays frozen",
    explains=(
        Symptom.STANDS_STILL,
        "optimizer_covers_model",
    ),
    confidence="certain",
)
FROZEN_BY_MISTAKE = Fault(
    "frozen_by_mistake",
    Rank.PARAMETERS + 60,
    "parameters that should learn are frozen",
    explains=(
        Symptom.STANDS_STILL,
        "optimizer_covers_model",
        "optimizer_settings",
    ),
    confidence="certain",
)
UNTIED = Fault(
    "untied",
    Rank.PARAMETERS + 80,
    "tensors that were meant to be one are two",
    explains=(
        "optimizer_covers_model",
        "weights_move",
    ),
    confidence="certain",
)
DUPLICATED_PARAMETERS = Fault(
    "duplicated_parameters",
    Rank.PARAMETERS + 90,
    "parameters are in the optimizer more than once",
    explains=("optimizer_settings",),
    confidence="certain",
)
TWO_OPTIMIZERS = Fault(
    "two_optimizers",
    Rank.PARAMETERS + 100,
    "two optimizers step the same parameters",
    explains=(
        "optimizer_settings",
        "weights_kept",
    ),
    confidence="certain",
)
OPTIMIZER_REBUILT = Fault(
    "optimizer_rebuilt",
    Rank.PARAMETERS + 110,
    "the optimizer is built anew in the loop",
    explains=(
        "optimizer_covers_model",
        "lr_follows_schedule",
        "weights_move",
    ),
    confidence="certain",
)
STATE_CLEARED = Fault(
    "state_cleared",
    Rank.PARAMETERS + 120,
    "the optimizer's state is cleared in the loop",
    explains=("weights_move",),
    confidence="certain",
)
MAXIMIZES = Fault(
    "maximizes",
    Rank.OPTIMIZER + 10,
    "the optimizer maximizes the loss",
    explains=(
        Symptom.LOSS_WRONG,
        Symptom.BLOWS_UP,
        "grads_match_reference",
    ),
    confidence="certain",
)
MOMENTUM_TOO_LARGE = Fault(
    "momentum_too_large",
    Rank.OPTIMIZER + 20,
    "the momentum is one or more: the velocity never decays",
    explains=(
        "weights_move",
        Symptom.BLOWS_UP,
    ),
    confidence="certain",
)
GRADIENT_DAMPED_AWAY = Fault(
    "gradient_damped_away",
    Rank.OPTIMIZER + 30,
    "the dampening takes the gradient out of the steps",
    explains=(Symptom.STANDS_STILL,),
    confidence="certain",
)
LR_ZERO = Fault(
    "lr_zero",
    Rank.OPTIMIZER + 40,
    "the learning rate is zero",
    explains=(
        Symptom.STANDS_STILL,
        "lr_follows_schedule",
        "optimizer_covers_model",
        "optimizer_settings",
    ),
    confidence="certain",
)
SCHEDULER_ON_ANOTHER_OPTIMIZER = Fault(
    "scheduler_on_another_optimizer",
    Rank.OPTIMIZER + 50,
    "the scheduler drives another optimizer",
    explains=(
        "weights_move",
        "optimizer_covers_model",
    ),
    confidence="certain",
)
SCHEDULER_BEFORE_OPTIMIZER = Fault(
    "scheduler_before_optimizer", Rank.OPTIMIZER + 60, "the scheduler steps before the optimizer", confidence="certain"
)
SCHEDULER_TOO_OFTEN = Fault(
    "scheduler_too_often",
    Rank.OPTIMIZER + 70,
    "the scheduler steps too often",
    explains=("weights_move",),
    confidence="certain",
)
SCHEDULER_TOO_SELDOM = Fault(
    "scheduler_too_seldom",
    Rank.OPTIMIZER + 80,
    "the scheduler steps too seldom",
    explains=("weights_move",),
    confidence="certain",
)
GROUP_NOT_SCHEDULED = Fault(
    "group_not_scheduled",
    Rank.OPTIMIZER + 90,
    "a parameter group is left out of the schedule",
    explains=("weights_move",),
    confidence="certain",
)
LR_CONSTANT = Fault(
    "lr_constant",
    Rank.OPTIMIZER + 100,
    "the learning rate stays constant, though a schedule was declared",
    confidence="certain",
)
PEAK_LR_DIFFERS = Fault(
    "peak_lr_differs",
    Rank.OPTIMIZER + 110,
    "the peak learning rate is not the declared one",
    explains=(
        "weights_move",
        "lr_sensible",
        "optimizer_settings",
        Symptom.BLOWS_UP,
    ),
    confidence="certain",
)
WARMUP_DIFFERS = Fault(
    "warmup_differs",
    Rank.OPTIMIZER + 120,
    "the warm-up is not the declared one",
    explains=("weights_move",),
    confidence="certain",
)
LR_NEGATIVE = Fault(
    "lr_negative",
    Rank.OPTIMIZER + 130,
    "the learning rate is negative: the optimizer climbs",
    explains=(
        "lr_follows_schedule",
        "weights_move",
        Symptom.BLOWS_UP,
    ),
    confidence="certain",
)
DECAYS_TOO_EARLY = Fault(
    "decays_too_early",
    Rank.OPTIMIZER + 140,
    "the learning rate decays before the end",
    explains=("weights_move",),
    confidence="certain",
)
SCHEDULE_DIFFERS = Fault(
    "schedule_differs",
    Rank.OPTIMIZER + 150,
    "the learning rate does not follow the declared schedule",
    confidence="certain",
)
LAYERWISE_LR_INVERTED = Fault(
    "layerwise_lr_inverted",
    Rank.OPTIMIZER + 160,
    "layer-wise learning rates are upside down",
    explains=("weights_move",),
    confidence="certain",
)
BETAS_SWAPPED = Fault(
    "betas_swapped",
    Rank.OPTIMIZER + 170,
    "the optimizer's betas are swapped or misplaced",
    explains=(
        "weights_move",
        Symptom.BLOWS_UP,
    ),
    confidence="certain",
)
EPS_UNDERFLOWS = Fault(
    "eps_underflows",
    Rank.OPTIMIZER + 180,
    "the optimizer's eps is zero in the parameters' dtype",
    explains=(Symptom.BLOWS_UP,),
    confidence="certain",
)
EPS_DOMINATES = Fault(
    "eps_dominates",
    Rank.OPTIMIZER + 200,
    "the optimizer's eps dominates its steps",
    explains=("weights_move",),
    confidence="certain",
)
DECAY_DOMINATES = Fault(
    "decay_dominates",
    Rank.OPTIMIZER + 210,
    "weight decay dominates",
    explains=(
        "weights_move",
        "all_finite",
        Symptom.INPUT_LOST,
    ),
    confidence="certain",
)
OTHER_OPTIMIZER = Fault(
    "other_optimizer",
    Rank.OPTIMIZER + 220,
    "another optimizer than the declared one",
    explains=("optimizer_covers_model",),
    confidence="certain",
)
WEIGHT_DECAY_DIFFERS = Fault(
    "weight_decay_differs", Rank.OPTIMIZER + 230, "weight decay is not the declared one", confidence="certain"
)
DECAY_ON_NORMS = Fault(
    "decay_on_norms", Rank.OPTIMIZER + 240, "norms and biases have weight decay", confidence="certain"
)
NOT_CLIPPED = Fault(
    "not_clipped",
    Rank.OPTIMIZER + 250,
    "gradients are not clipped, though it was declared",
    explains=("grads_match_reference",),
    confidence="certain",
)
CLIPPED_TOO_FAR = Fault(
    "clipped_too_far",
    Rank.OPTIMIZER + 260,
    "gradients are clipped further than declared",
    explains=("grads_match_reference",),
    confidence="certain",
)
STEPS_TOO_SELDOM = Fault(
    "steps_too_seldom",
    Rank.OPTIMIZER + 270,
    "the optimizer steps more seldom than declared",
    explains=("grads_match_reference",),
    confidence="certain",
)
STEPS_TOO_OFTEN = Fault(
    "steps_too_often",
    Rank.OPTIMIZER + 280,
    "the optimizer steps more often than declared",
    explains=("grads_match_reference",),
    confidence="certain",
)
LR_TOO_LARGE = Fault(
    "lr_too_large",
    Rank.OPTIMIZER + 290,
    "the learning rate is too large",
    explains=(
        Symptom.BLOWS_UP,
        "logits_unbounded",
    ),
    confidence="certain",
)
LR_BELOW_SPACING = Fault(
    "lr_below_spacing",
    Rank.OPTIMIZER + 300,
    "the dtype cannot hold the updates",
    explains=("weights_move",),
    confidence="certain",
)
LR_TOO_SMALL = Fault("lr_too_small", Rank.OPTIMIZER + 310, "the learning rate is too small", explains=("weights_move",))
