"""The faults that the checks of gradients find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

NONFINITE_START = Fault(
    "nonfinite_start",
    Rank.BROKEN_START + 10,
    "weights or buffers hold NaN or infinity before the first step",
    explains=(
        Symptom.BLOWS_UP,
        Symptom.LOSS_WRONG,
        "head_init",
    ),
    confidence="certain",
)
GRADIENTS_SWITCHED_OFF = Fault(
    "gradients_switched_off",
    Rank.LOSS_DISCONNECTED + 10,
    "gradients are switched off and never on again",
    explains=(
        Symptom.STANDS_STILL,
        Symptom.LOSS_WRONG,
    ),
    confidence="certain",
)
LOSS_CUT_OFF = Fault(
    "loss_cut_off",
    Rank.LOSS_DISCONNECTED + 20,
    "the loss is cut off from the logits",
    explains=(
        Symptom.STANDS_STILL,
        Symptom.LOSS_WRONG,
    ),
    confidence="certain",
)
LOSS_IS_FLAT = Fault(
    "loss_is_flat",
    Rank.LOSS_DISCONNECTED + 70,
    "the loss does not change with any weight",
    explains=(
        Symptom.STANDS_STILL,
        Symptom.LOSS_WRONG,
    ),
    confidence="certain",
)
BACKWARD_REACHES_NOTHING = Fault(
    "backward_reaches_nothing",
    Rank.GRADIENTS + 10,
    "the graph is cut: the loss that the loop calls backward() on does not reach the weights, or backward() is never called",
    explains=(Symptom.STANDS_STILL,),
    confidence="certain",
)
GRADS_GONE_BEFORE_STEP = Fault(
    "grads_gone_before_step",
    Rank.GRADIENTS + 20,
    "gradients are cleared before the optimizer steps",
    explains=(Symptom.STANDS_STILL,),
    confidence="certain",
)
NO_GRADIENT_AT_ALL = Fault(
    "no_gradient_at_all",
    Rank.GRADIENTS + 30,
    "no gradient reaches any parameter",
    explains=(Symptom.STANDS_STILL,),
    confidence="certain",
)
NAN_GRADIENTS_REPLACED = Fault(
    "nan_gradients_replaced",
    Rank.GRADIENTS + 40,
    "NaN gradients are replaced by zeros",
    explains=(
        Symptom.STANDS_STILL,
        "all_finite",
    ),
)
MICRO_BATCHES_LOST = Fault(
    "micro_batches_lost",
    Rank.GRADIENTS + 50,
    "only the last of the accumulated batches counts",
    explains=("optimizer_covers_model",),
    confidence="certain",
)
BATCHES_NOT_ACCUMULATED = Fault(
    "batches_not_accumulated",
    Rank.GRADIENTS + 60,
    "batches that should be accumulated are not",
    explains=("optimizer_covers_model",),
    confidence="certain",
)
GRADS_NEVER_ZEROED = Fault(
    "grads_never_zeroed",
    Rank.GRADIENTS + 70,
    "gradients are never zeroed and add up",
    explains=(
        Symptom.BLOWS_UP,
        "optimizer_settings",
    ),
    confidence="certain",
)
ACCUMULATION_NOT_AVERAGED = Fault(
    "accumulation_not_averaged",
    Rank.GRADIENTS + 80,
    "accumulated gradients are summed, not averaged",
    explains=(
        Symptom.BLOWS_UP,
        "optimizer_settings",
    ),
    confidence="certain",
)
ACCUMULATION_DIVIDED_TWICE = Fault(
    "accumulation_divided_twice", Rank.GRADIENTS + 90, "accumulated gradients are divided twice", confidence="certain"
)
GRADS_STILL_SCALED = Fault(
    "grads_still_scaled",
    Rank.GRADIENTS + 100,
    "gradients are still scaled when the optimizer steps",
    explains=(
        Symptom.BLOWS_UP,
        "optimizer_settings",
    ),
    confidence="certain",
)
CLIPPED_TO_NOTHING = Fault(
    "clipped_to_nothing",
    Rank.GRADIENTS + 110,
    "gradients are clipped to nothing",
    explains=(
        Symptom.STANDS_STILL,
        "optimizer_settings",
    ),
    confidence="certain",
)
CLIPPING_WITHOUT_EFFECT = Fault(
    "clipping_without_effect",
    Rank.GRADIENTS + 120,
    "gradient clipping has no effect",
    explains=("optimizer_settings",),
    confidence="certain",
)
GRADS_NEGATED = Fault(
    "grads_negated",
    Rank.GRADIENTS + 130,
    "gradients have the wrong sign",
    explains=(Symptom.BLOWS_UP,),
    confidence="certain",
)
GRADIENT_REVERSED = Fault(
    "gradient_reversed",
    Rank.GRADIENTS + 140,
    "gradients are reversed on the way",
    explains=(
        Symptom.BLOWS_UP,
        "grads_match_reference",
    ),
)
GRADS_REMOVED = Fault(
    "grads_removed", Rank.GRADIENTS + 150, "gradients are removed on the way", explains=(Symptom.STANDS_STILL,)
)
GRADS_ONE_STEP_LATE = Fault(
    "grads_one_step_late", Rank.GRADIENTS + 160, "gradients arrive one step late", explains=("weights_move",)
)
GRADS_OF_ANOTHER = Fault("grads_of_another", Rank.GRADIENTS + 170, "gradients are those of something else")
ADAPTERS_SILENT = Fault(
    "adapters_silent", Rank.GRADIENTS + 180, "the adapters contribute nothing", explains=(Symptom.STANDS_STILL,)
)
GATE_ZERO = Fault(
    "gate_zero",
    Rank.GRADIENTS + 190,
    "a branch is multiplied by zero: no gradient passes the gate",
    explains=(Symptom.STANDS_STILL,),
)
GRADIENT_BLOCKED = Fault(
    "gradient_blocked",
    Rank.GRADIENTS + 200,
    "gradients are set to zero on the way: by a hook, a mask or a step function",
    explains=(
        Symptom.STANDS_STILL,
        "units_alive",
    ),
)
GRAPH_CUT = Fault(
    "graph_cut",
    Rank.GRADIENTS + 210,
    "the graph is cut: the output depends on tensors that get no gradient",
    explains=(Symptom.STANDS_STILL,),
)
LAYERS_NOT_USED = Fault(
    "layers_not_used", Rank.GRADIENTS + 220, "layers take no part in the loss", explains=(Symptom.STANDS_STILL,)
)
NOT_IN_GRAPH = Fault(
    "not_in_graph", Rank.GRADIENTS + 230, "parameters take no part in the loss", explains=(Symptom.STANDS_STILL,)
)
CUT_BELOW_HEAD = Fault(
    "cut_below_head", Rank.GRADIENTS + 240, "the graph is cut between base and head", explains=(Symptom.STANDS_STILL,)
)
EPS_UNDERFLOW = Fault(
    "eps_underflow",
    Rank.OPTIMIZER + 190,
    "the optimizer's eps is zero in the parameters' dtype",
    explains=(Symptom.BLOWS_UP,),
    confidence="certain",
)
GRADIENT_SATURATED = Fault(
    "gradient_saturated",
    Rank.OPTIMIZER + 320,
    "a saturated function lets hardly any gradient through",
    explains=(
        Symptom.STANDS_STILL,
        "units_alive",
    ),
)
GRADS_VANISH = Fault(
    "grads_vanish",
    Rank.HEAD + 60,
    "gradients vanish on their way down",
    explains=(
        Symptom.STANDS_STILL,
        Symptom.INPUT_LOST,
    ),
)
LAYER_STAYS_ZERO = Fault(
    "layer_stays_zero", Rank.HEAD + 80, "a layer is zero and stays zero", explains=(Symptom.STANDS_STILL,)
)
NONFINITE_FORWARD = Fault(
    "nonfinite_forward",
    Rank.OUTCOME + 10,
    "the forward pass or the loss gives NaN or infinity",
    explains=(Symptom.BLOWS_UP,),
)
NONFINITE_BACKWARD = Fault(
    "nonfinite_backward", Rank.OUTCOME + 20, "the backward pass gives NaN or infinity", explains=(Symptom.BLOWS_UP,)
)
NONFINITE_UPDATE = Fault(
    "nonfinite_update", Rank.OUTCOME + 30, "the optimizer's step gives NaN or infinity", explains=(Symptom.BLOWS_UP,)
)
NONFINITE_BUFFER = Fault(
    "nonfinite_buffer", Rank.OUTCOME + 40, "a running statistic holds NaN or infinity", explains=(Symptom.BLOWS_UP,)
)
GRADS_EXPLODE = Fault("grads_explode", Rank.OUTCOME + 70, "gradients explode", explains=(Symptom.BLOWS_UP,))
NONFINITE = Fault("nonfinite", Rank.OUTCOME + 80, "gradients are not finite", explains=(Symptom.BLOWS_UP,))
GRADIENT_ZERO = Fault(
    "gradient_zero", Rank.OUTCOME + 90, "gradients are exactly zero", explains=(Symptom.STANDS_STILL,)
)
GRADIENT_NEGLIGIBLE = Fault(
    "gradient_negligible", Rank.OUTCOME + 100, "gradients are negligible", explains=(Symptom.STANDS_STILL,)
)
