"""The faults that the checks of gradients find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

#: What settles most questions of NaN and infinity.
DETECT_ANOMALY = "run the bad batch under torch.autograd.set_detect_anomaly(True)"

NONFINITE_START = Fault(
    "nonfinite_start",
    Rank.BROKEN_START + 10,
    "weights hold NaN or infinity before the first step",
    cause="{tensor} was not finite before the run: it was never initialized, or its checkpoint is broken",
    remedy="initialize {tensor}, or load it from an intact checkpoint",
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
    "gradients are switched off and never switched on again",
    remedy="evaluate inside `with torch.no_grad():`, which switches gradients on again when it ends",
    explains=(
        Symptom.STANDS_STILL,
        Symptom.LOSS_WRONG,
    ),
    confidence="certain",
)
LOSS_CUT_OFF = Fault(
    "loss_cut_off",
    Rank.LOSS_DISCONNECTED + 20,
    "the graph is cut between the loss and the weights",
    remedy="compute the loss from the model's own output tensor, with gradients enabled, without .detach(), .data or .item()",
    explains=(
        Symptom.STANDS_STILL,
        Symptom.LOSS_WRONG,
    ),
    confidence="certain",
)
LOSS_WITHOUT_OUTPUT = Fault(
    "loss_without_output",
    Rank.LOSS_DISCONNECTED + 25,
    "the loss does not depend on the model's output",
    cause="backward() is only called on a penalty of the weights (weight decay, L1, L2): the loss of the model's output is computed and "
    "dropped, or overwritten",
    remedy="call backward() on the loss of the model's output plus the penalty",
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
    cause="the loss has a graph but is constant: softmax over a single output, clamp or round before the loss, a factor of zero, or every "
    "label ignored",
    remedy="check what lies between the logits and the loss: a small change of one logit should change the loss",
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
    cause="the loop calls backward() on a loss that is cut off from the weights (.item(), .detach(), torch.no_grad(), or a new tensor, to "
    "which requires_grad=True gives no graph), or never calls it",
    remedy="call backward() on the loss as the loss function returns it",
    explains=(Symptom.STANDS_STILL,),
    confidence="certain",
)
GRADS_GONE_BEFORE_STEP = Fault(
    "grads_gone_before_step",
    Rank.GRADIENTS + 20,
    "gradients are cleared before the optimizer steps",
    cause="zero_grad() is called between backward() and optimizer.step(), or backward() is not called on this loss",
    remedy="order the loop as zero_grad(), backward(), step()",
    explains=(Symptom.STANDS_STILL,),
    confidence="certain",
)
NO_GRADIENT_AT_ALL = Fault(
    "no_gradient_at_all",
    Rank.GRADIENTS + 30,
    "no gradient reaches any parameter",
    cause="no tensor had a gradient when the optimizer stepped: loss.backward() is not called, or zero_grad() is called between it and "
    "optimizer.step()",
    remedy="order the loop as zero_grad(), loss.backward(), optimizer.step()",
    explains=(Symptom.STANDS_STILL,),
    confidence="certain",
)
NAN_GRADIENTS_REPLACED = Fault(
    "nan_gradients_replaced",
    Rank.GRADIENTS + 40,
    "NaN gradients are replaced by zeros",
    cause="something replaces NaN gradients (torch.nan_to_num, a mask), so those tensors learn nothing from such batches",
    remedy=f"remove the replacement and find the cause: {DETECT_ANOMALY} and look for sqrt or norm at 0, 0/0 and log(0)",
    explains=(
        Symptom.STANDS_STILL,
        "all_finite",
    ),
)
MICRO_BATCHES_LOST = Fault(
    "micro_batches_lost",
    Rank.GRADIENTS + 50,
    "only the last of the accumulated micro-batches counts",
    cause="zero_grad() is called between the batches of a step, so {share} of the rows never reach the weights",
    remedy="call zero_grad() only after optimizer.step(), under accelerator.accumulate(), too",
    explains=("optimizer_covers_model",),
    confidence="certain",
)
BATCHES_NOT_ACCUMULATED = Fault(
    "batches_not_accumulated",
    Rank.GRADIENTS + 60,
    "gradient accumulation is declared, but the optimizer steps at every batch",
    cause="the loss is divided by {batches}, but optimizer.step() is called at every batch",
    remedy="step and zero_grad only when (i + 1) % {batches} == 0",
    explains=("optimizer_covers_model",),
    confidence="certain",
)
GRADS_NEVER_ZEROED = Fault(
    "grads_never_zeroed",
    Rank.GRADIENTS + 70,
    "gradients are never zeroed and add up over the steps",
    cause="zero_grad() is never called, or is called on another optimizer, so the gradients of all steps add up",
    remedy="call optimizer.zero_grad() once a step",
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
    cause="the loss of each batch is not divided by the number of accumulated batches",
    remedy="call (loss / {batches}).backward(); in the compute_loss of a Trainer, return the sum of the losses / num_items_in_batch (if it "
    "is None, transformers 4.46 and 4.47 add up the means: upgrade to 4.48 or later); in Lightning's training_step, return the mean loss, "
    "which Lightning divides itself",
    explains=(
        Symptom.BLOWS_UP,
        "optimizer_settings",
    ),
    confidence="certain",
)
ACCUMULATION_DIVIDED_TWICE = Fault(
    "accumulation_divided_twice",
    Rank.GRADIENTS + 90,
    "accumulated gradients are divided twice",
    cause="the loss is divided by the number of accumulated batches twice: by the framework and by the loop",
    remedy="divide once: a Trainer, Lightning and accelerator.backward() divide by the number of accumulated batches themselves",
    confidence="certain",
)
GRADS_STILL_SCALED = Fault(
    "grads_still_scaled",
    Rank.GRADIENTS + 100,
    "gradients are still multiplied by the loss scale when the optimizer steps",
    cause="scaler.scale(loss).backward() is followed by optimizer.step() instead of scaler.step(optimizer)",
    remedy="scaler.step(optimizer); scaler.update()",
    explains=(
        Symptom.BLOWS_UP,
        "optimizer_settings",
    ),
    confidence="certain",
)
CLIPPED_TO_NOTHING = Fault(
    "clipped_to_nothing",
    Rank.GRADIENTS + 110,
    "gradients are clipped to almost nothing",
    cause="max_norm is far too small: it is the norm of all gradients together, not an eps or a learning rate",
    remedy="clip to a norm of about 1",
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
    cause="clip_grad_norm_ is called before backward() or after step(), gets other parameters, or is not called",
    remedy="call clip_grad_norm_(model.parameters(), max_norm) between backward() (after scaler.unscale_) and step()",
    explains=("optimizer_settings",),
    confidence="certain",
)
GRADS_NEGATED = Fault(
    "grads_negated",
    Rank.GRADIENTS + 130,
    "gradients have the wrong sign",
    cause="there is one minus sign too many: backward() on -loss, maximize=True together with it, or gradients negated by hand",
    remedy="remove the minus sign: the optimizer descends on its own",
    explains=(Symptom.BLOWS_UP,),
    confidence="certain",
)
GRADIENT_REVERSED = Fault(
    "gradient_reversed",
    Rank.GRADIENTS + 140,
    "gradients are reversed in the backward pass",
    cause="the backward pass does not match the forward pass: the sign is wrong in a gradient-reversal layer, a custom autograd.Function "
    "or a hook",
    remedy="check the custom backward with torch.autograd.gradcheck",
    explains=(
        Symptom.BLOWS_UP,
        "grads_match_reference",
    ),
)
GRADS_REMOVED = Fault(
    "grads_removed",
    Rank.GRADIENTS + 150,
    "gradients are removed between backward() and the optimizer step",
    cause="something sets these gradients to zero or None: a mask, manual freezing, a hook, or a loss of the loop's own that leaves these "
    "tensors out",
    remedy="check what the loop does with .grad, and what its own loss depends on",
    explains=(Symptom.STANDS_STILL,),
)
GRADS_ONE_STEP_LATE = Fault(
    "grads_one_step_late",
    Rank.GRADIENTS + 160,
    "gradients arrive one step late",
    cause="optimizer.step() is called before backward(), so each step uses the gradient of the batch before",
    remedy="order the loop as zero_grad(), backward(), step()",
    explains=("weights_move",),
)
GRADS_OF_ANOTHER = Fault(
    "grads_of_another",
    Rank.GRADIENTS + 170,
    "some tensors get the gradient of something else",
    cause="gradients are assigned in another order than the parameters, come from another batch or model, or some have the wrong sign",
    remedy="check what the loop writes into .grad: zip(parameters, gradients) must pair each parameter with its own gradient",
)
ADAPTERS_SILENT = Fault(
    "adapters_silent",
    Rank.GRADIENTS + 180,
    "the adapters contribute nothing",
    cause="the adapters' output is multiplied by zero ({tensors}): a scaling of 0 (alpha // rank), disabled adapters, or two matrices that "
    "are both zero",
    remedy="set scaling = alpha / rank, initialize one of the two matrices away from zero, and enable the adapters",
    explains=(Symptom.STANDS_STILL,),
)
GATE_ZERO = Fault(
    "gate_zero",
    Rank.GRADIENTS + 190,
    "a branch is multiplied by zero: no gradient passes the gate",
    cause="{gate} is exactly zero and multiplies the branch of {tensors}; with 1 instead, a gradient would pass",
    remedy="make {gate} a trainable parameter, or start it above zero (a gate of zero learns if its branch is not zero)",
    explains=(Symptom.STANDS_STILL,),
)
GRADIENT_BLOCKED = Fault(
    "gradient_blocked",
    Rank.GRADIENTS + 200,
    "gradients are set to zero on the way: by a hook, a mask or a step function",
    cause="{reason} sets the gradient of {tensors} to exactly zero, although {effect}",
    remedy="remove the hook or mask, or find what multiplies this gradient",
    explains=(
        Symptom.STANDS_STILL,
        "units_alive",
    ),
)
GRAPH_CUT = Fault(
    "graph_cut",
    Rank.GRADIENTS + 210,
    "the graph is cut: the output depends on tensors that get no gradient",
    cause="{reason} cuts the graph: no gradient reaches {tensors}, although {effect}",
    remedy="let these tensors reach the loss unchanged (or as x + (hard - x).detach()), or freeze them with requires_grad_(False)",
    explains=(Symptom.STANDS_STILL,),
)
LAYERS_NOT_USED = Fault(
    "layers_not_used",
    Rank.GRADIENTS + 220,
    "layers take no part in the loss",
    cause="{layers} takes no part in the loss, unlike the layers below: the features are taken too early (hidden_states[k] instead of "
    "hidden_states[-1]), or the forward pass skips it",
    remedy="take the features from the last layer (last_hidden_state, hidden_states[-1]), or remove the layers that are not needed",
    explains=(Symptom.STANDS_STILL,),
)
NOT_IN_GRAPH = Fault(
    "not_in_graph",
    Rank.GRADIENTS + 230,
    "parameters take no part in the loss",
    cause="another layer is used instead, the loss is not computed from their output, or the graph is cut above them",
    remedy="compute the loss from the output of these layers; freeze or remove them if they are not needed",
    explains=(Symptom.STANDS_STILL,),
)
CUT_BELOW_HEAD = Fault(
    "cut_below_head",
    Rank.GRADIENTS + 240,
    "the graph is cut between base and head",
    cause="the features reach the head through .detach(), .data, torch.no_grad() or numpy, or the base is frozen at run time",
    remedy="pass the base's output tensor to the head unchanged, or freeze the base with requires_grad_(False)",
    explains=(Symptom.STANDS_STILL,),
)
#: The same where all that is trained below the head is adapters: the embeddings are frozen.
ADAPTERS_CHECKPOINTED_AWAY = CUT_BELOW_HEAD.because(
    "gradient checkpointing with use_reentrant=True gives layers no gradient whose inputs need none, and the embeddings are frozen; or the "
    "features reach the head through .detach() or torch.no_grad()",
    "call model.enable_input_require_grads(), or checkpoint with gradient_checkpointing_kwargs={'use_reentrant': False}; pass the base's "
    "output tensor to the head unchanged",
)
EPS_UNDERFLOW = Fault(
    "eps_underflow",
    Rank.OPTIMIZER + 190,
    "the optimizer's eps is zero in the parameters' dtype",
    cause="{tensor} is float16, in which the eps of {optimizer} ({eps}) is 0: a gradient whose square underflows divides 0 by 0 at the "
    "first step",
    remedy="keep the parameters in float32 and use torch.autocast; never call model.half() for training",
    explains=(Symptom.BLOWS_UP,),
    confidence="certain",
)
PARAMETRIZATION_DECAYED = Fault(
    "parametrization_decayed",
    Rank.OPTIMIZER + 315,
    "weight decay moves values that a parametrization takes as constants",
    cause="{tensor} had a gradient before it was decayed, and exactly none since: the weight that its parametrization computes depends on "
    "it no longer. Weight decay ({decay}) moves all values, also those that a parametrization keeps for itself: "
    "parametrizations.orthogonal stores signs on the diagonal and casts them to int, so that a 1 that was decayed becomes 0, and the "
    "weight is zero",
    remedy="no weight decay for *.parametrizations.*.original, in a parameter group of their own; or orthogonal(..., "
    "orthogonal_map='cayley'), which stores no signs",
    explains=(Symptom.STANDS_STILL, Symptom.INPUT_LOST, "units_alive", "loss_stable"),
)
GRADIENT_SATURATED = Fault(
    "gradient_saturated",
    Rank.OPTIMIZER + 320,
    "a saturated softmax, sigmoid or tanh passes almost no gradient",
    cause="the input of a softmax, sigmoid or tanh is far too large, so that it saturates: the gradient of {tensors} is exactly zero "
    "at {share} of the steps, although {effect}",
    remedy="look for a division by a temperature or an eps before it: scores should be of the order of 1",
    explains=(
        Symptom.STANDS_STILL,
        "units_alive",
    ),
)
GRADS_VANISH = Fault(
    "grads_vanish",
    Rank.HEAD + 60,
    "gradients vanish on their way to the lower layers",
    cause="each layer between {above} and {below} passes on 1/{factor} of its gradient: saturating activations (sigmoid, tanh) or small "
    "weights in a row, without a residual connection or a normalization layer",
    remedy="between {below} and {above}, use ReLU or GELU, weights of std 1/sqrt(fan-in), fewer layers, or a residual connection",
    explains=(
        Symptom.STANDS_STILL,
        Symptom.INPUT_LOST,
    ),
)
LAYER_STAYS_ZERO = Fault(
    "layer_stays_zero",
    Rank.HEAD + 80,
    "a layer is zero and stays zero",
    cause="{layer} is zero and stays zero, so no gradient passes through it",
    remedy="initialize {layer} away from zero, or train it",
    explains=(Symptom.STANDS_STILL,),
)
NONFINITE_FORWARD = Fault(
    "nonfinite_forward",
    Rank.OUTCOME + 10,
    "the forward pass or the loss gives NaN or infinity",
    cause="it begins in the forward pass or the loss: log(0), 0/0, an overflow, or weights that a large learning rate blew up",
    remedy=f"{DETECT_ANOMALY}; lower the learning rate and keep parameters in float32",
    explains=(Symptom.BLOWS_UP,),
)
NONFINITE_BACKWARD = Fault(
    "nonfinite_backward",
    Rank.OUTCOME + 20,
    "the backward pass gives NaN or infinity",
    cause="it begins in the backward pass: sqrt or norm at 0, a row of a mask that is all -inf, or an overflow in low precision",
    remedy=f"{DETECT_ANOMALY}; lower the learning rate and keep parameters in float32",
    explains=(Symptom.BLOWS_UP,),
)
NONFINITE_UPDATE = Fault(
    "nonfinite_update",
    Rank.OUTCOME + 30,
    "the optimizer's step gives NaN or infinity",
    cause="the gradients were finite, so the optimizer's step or a write to the weights is the origin",
    remedy="lower the learning rate, keep parameters in float32, and find what writes to the weights outside optimizer.step()",
    explains=(Symptom.BLOWS_UP,),
)
NONFINITE_BUFFER = Fault(
    "nonfinite_buffer",
    Rank.OUTCOME + 40,
    "a running statistic holds NaN or infinity",
    cause="{buffer} is a running statistic: the NaN or infinity of one bad batch stays in it",
    remedy="find the batch that is not finite and drop it, or reset the running statistics",
    explains=(Symptom.BLOWS_UP,),
)
GRADS_EXPLODE = Fault(
    "grads_explode",
    Rank.OUTCOME + 70,
    "gradients explode",
    cause="the steps are too large for this loss, and each step makes the next gradient larger",
    remedy="lower the learning rate, add warm-up, or clip the gradient norm to 1",
    explains=(Symptom.BLOWS_UP,),
)
NONFINITE = Fault(
    "nonfinite",
    Rank.OUTCOME + 80,
    "gradients are not finite",
    cause="gradients are NaN or infinite from step {step} on; assert_all_finite says where it begins",
    remedy="lower the learning rate, or look for log(0), sqrt(0), division by zero and overflow in low precision",
    explains=(Symptom.BLOWS_UP,),
)
GRADIENT_ZERO = Fault(
    "gradient_zero",
    Rank.OUTCOME + 90,
    "gradients are exactly zero",
    cause="they are part of the graph, but something multiplies their gradient by zero: dead ReLUs (a large negative bias, a large step), "
    "zero weights above them, a saturated or constant output, or a mask or weight of zero",
    remedy="check the activations above them: how many are exactly zero for every input?",
    explains=(Symptom.STANDS_STILL,),
)
GRADIENT_NEGLIGIBLE = Fault(
    "gradient_negligible",
    Rank.OUTCOME + 100,
    "gradients are negligible",
    remedy="compare the gradient norms layer by layer: where do they fall?",
    explains=(Symptom.STANDS_STILL,),
)
