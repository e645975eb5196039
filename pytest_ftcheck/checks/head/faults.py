"""The faults that the checks of head find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

HEAD_UNINITIALISED = Fault(
    "head_uninitialised",
    Rank.BROKEN_START + 20,
    "the head was never initialised",
    explains=(
        Symptom.BLOWS_UP,
        Symptom.LOSS_WRONG,
    ),
    confidence="certain",
)
PRETRAINED_NOT_LOADED = Fault(
    "pretrained_not_loaded", Rank.START + 10, "the pretrained weights are not loaded", confidence="certain"
)
PRETRAINED_PARTLY_LOST = Fault(
    "pretrained_partly_lost", Rank.START + 20, "a part of the pretrained weights is not loaded", confidence="certain"
)
PRETRAINED_OTHER_SHAPE = Fault(
    "pretrained_other_shape",
    Rank.START + 30,
    "pretrained tensors have another shape than the model's",
    confidence="certain",
)
PRETRAINED_SCALED = Fault(
    "pretrained_scaled", Rank.START + 40, "the pretrained weights were scaled", confidence="certain"
)
PRETRAINED_SHUFFLED = Fault(
    "pretrained_shuffled", Rank.START + 50, "pretrained tensors are in each other's place", confidence="certain"
)
PRETRAINED_CHANGED = Fault(
    "pretrained_changed", Rank.START + 60, "the pretrained weights were changed before training", confidence="certain"
)
HEAD_ALL_ZERO = Fault(
    "head_all_zero",
    Rank.START + 70,
    "the whole head starts at zero",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
HEAD_INIT_CONSTANT = Fault(
    "head_init_constant",
    Rank.START + 80,
    "the head starts with constant weights",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
HEAD_SYMMETRIC = Fault(
    "head_symmetric",
    Rank.START + 90,
    "hidden units of the head start alike and stay alike",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
HEAD_INIT_HUGE = Fault(
    "head_init_huge",
    Rank.START + 100,
    "the head's initial weights are too large",
    explains=(
        "initial_loss",
        Symptom.BLOWS_UP,
        "logits_unbounded",
    ),
    confidence="certain",
)
HEAD_BIAS_NOT_ZERO = Fault(
    "head_bias_not_zero",
    Rank.START + 110,
    "a hidden layer of the head starts with a bias that is not zero",
    explains=(Symptom.INPUT_LOST,),
    confidence="certain",
)
HEAD_INIT_TORCH_DEFAULT = Fault(
    "head_init_torch_default",
    Rank.START + 120,
    "the initialisation matched nothing: the head has torch's default",
    confidence="certain",
)
HEAD_INIT_INITIALIZER_RANGE = Fault(
    "head_init_initializer_range",
    Rank.START + 130,
    "the head was initialised again with the model's own range",
    confidence="certain",
)
HEAD_INIT_NOT_DECLARED = Fault(
    "head_init_not_declared", Rank.START + 140, "the head does not start as declared", confidence="certain"
)
OUTSIDE_THE_MODEL = Fault(
    "outside_the_model",
    Rank.START + 150,
    "trained tensors are no part of the model",
    explains=(
        Symptom.STANDS_STILL,
        "optimizer_covers_model",
    ),
    confidence="certain",
)
UNITS_DEAD_BIAS = Fault(
    "units_dead_bias",
    Rank.HEAD + 10,
    "the head's hidden units are dead: a bias silences them",
    explains=(Symptom.INPUT_LOST,),
)
UNITS_DEAD_FROM_START = Fault(
    "units_dead_from_start",
    Rank.HEAD + 20,
    "the head's hidden units are dead from the start",
    explains=(Symptom.INPUT_LOST,),
)
UNITS_DEAD = Fault("units_dead", Rank.HEAD + 30, "hidden units of the head are dead", explains=(Symptom.INPUT_LOST,))
UNITS_DIED = Fault(
    "units_died", Rank.HEAD + 40, "the head's hidden units died in training", explains=(Symptom.INPUT_LOST,)
)
UNITS_SATURATED = Fault(
    "units_saturated", Rank.HEAD + 50, "the head's hidden units are saturated", explains=(Symptom.INPUT_LOST,)
)
SIGNAL_LOST_IN_HEAD = Fault(
    "signal_lost_in_head", Rank.HEAD + 70, "the head loses what tells rows apart", explains=(Symptom.INPUT_LOST,)
)
NOT_SAVED = Fault("not_saved", Rank.EVALUATION + 40, "trained tensors are not in the state dict", confidence="certain")
BUFFER_NOT_SAVED = Fault(
    "buffer_not_saved", Rank.EVALUATION + 50, "a buffer that matters is not saved", confidence="certain"
)
RELOAD_CHANGES_LOGITS = Fault(
    "reload_changes_logits",
    Rank.EVALUATION + 60,
    "the model answers differently after saving and loading",
    confidence="certain",
)
DOES_NOT_LOAD = Fault("does_not_load", Rank.EVALUATION + 70, "the saved state does not load", confidence="certain")
LINEAR_AFTER_LINEAR = Fault(
    "linear_after_linear", Rank.ADVICE + 10, "two linear layers of the head follow each other without an activation"
)
HEAD_REDUNDANT = Fault("head_redundant", Rank.ADVICE + 10, "the head is redundant")
HEAD_WASTES_FEATURES = Fault(
    "head_wastes_features", Rank.ADVICE + 10, "the head does not use all that its features tell"
)
