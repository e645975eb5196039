"""The faults that the checks of the optimizer find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

# ------------------------------------------------------------------ which parameters it steps, and whether it steps
NO_STEP_TAKEN = Fault(
    "no_step_taken",
    Rank.PARAMETERS + 10,
    "the optimizer never steps",
    cause="optimizer.step() is never reached: it is missing, accumulation is longer than the run, or a GradScaler skips every step",
    remedy="call {optimizer}.step() in the loop, or run longer than one accumulation cycle",
    explains=(Symptom.STANDS_STILL, "lr_follows_schedule", "optimizer_covers_model", "optimizer_settings"),
    confidence="certain",
)
STALE_OPTIMIZER = Fault(
    "stale_optimizer",
    Rank.PARAMETERS + 20,
    "the optimizer holds tensors that are not in the model",
    cause="{optimizer} was built before the layer was replaced, resized, copied or wrapped, and still updates the old tensors",
    remedy="build {optimizer} after the model is complete (new head, resized embeddings, adapters, device, wrapping)",
    explains=(Symptom.STANDS_STILL, "optimizer_settings"),
    confidence="certain",
)
REPLACED_IN_LOOP = Fault(
    "replaced_in_loop",
    Rank.PARAMETERS + 30,
    "a layer is replaced during training",
    cause="the loop creates the layer again (model.head = nn.Linear(...)), which discards what the optimizer has trained",
    remedy="create the layer once, before the optimizer; to reset it, write into the existing tensors",
    explains=(Symptom.STANDS_STILL, "weights_kept"),
    confidence="certain",
)
NOT_IN_OPTIMIZER = Fault(
    "not_in_optimizer",
    Rank.PARAMETERS + 40,
    "parameters that should learn are in no optimizer group",
    cause="{optimizer} was built from only some of the model's parameters, or before these were added or unfrozen",
    remedy="build {optimizer} over model.parameters() once the model is complete, or call optimizer.add_param_group(); "
    "if they should not learn, freeze them with requires_grad_(False)",
    explains=(Symptom.STANDS_STILL, "optimizer_settings"),
    confidence="certain",
)
NEVER_THAWED = Fault(
    "never_thawed",
    Rank.PARAMETERS + 50,
    "parameters that should have been unfrozen stay frozen",
    cause="requires_grad was never switched back on, or not for these parameters",
    remedy="call requires_grad_(True) on them, and make sure that the optimizer holds them",
    explains=(Symptom.STANDS_STILL, "optimizer_covers_model"),
    confidence="certain",
)
FROZEN_BY_MISTAKE = Fault(
    "frozen_by_mistake",
    Rank.PARAMETERS + 60,
    "parameters that should learn are frozen",
    cause="the code that freezes parameters also matches these, or runs after they were unfrozen",
    remedy="print [n for n, p in model.named_parameters() if p.requires_grad] after freezing; call requires_grad_(True) on these",
    explains=(Symptom.STANDS_STILL, "optimizer_covers_model", "optimizer_settings"),
    confidence="certain",
)
#: Advice, and the fault of a run that does not learn.
HEAD_PARTLY_FROZEN = Fault(
    "head_partly_frozen",
    Rank.PARAMETERS + 75,
    "a part of the head is frozen",
    cause="{frozen} keep their initial values while the rest of the head trains: the prefix that unfreezes matches too little, or the "
    "one that freezes too much",
    remedy="call requires_grad_(True) on every parameter of the head; if they should stay frozen, declare Intent(frozen={prefixes})",
    explains=(Symptom.STANDS_STILL, Symptom.INPUT_LOST),
    confidence="possible",
)
UNTIED = Fault(
    "untied",
    Rank.PARAMETERS + 80,
    "weights declared tied are separate tensors",
    cause="the tie was lost: one of them was replaced, re-initialized, deep-copied, or loaded with assign=True",
    remedy="after the last change, assign {second} = {first} again or call model.tie_weights(); then build the optimizer",
    explains=("optimizer_covers_model", "weights_move"),
    confidence="certain",
)
DUPLICATED_PARAMETERS = Fault(
    "duplicated_parameters",
    Rank.PARAMETERS + 90,
    "parameters are in the optimizer more than once",
    cause="overlapping parameter lists were concatenated (list(model.parameters()) + list(model.head.parameters())); torch only warns",
    remedy="pass each parameter once; for another learning rate, move them out of the first group into one of their own",
    explains=("optimizer_settings",),
    confidence="certain",
)
TWO_OPTIMIZERS = Fault(
    "two_optimizers",
    Rank.PARAMETERS + 100,
    "two optimizers step the same parameters",
    cause="the second optimizer was built over parameters that the first already holds",
    remedy="give each parameter to one optimizer",
    explains=("optimizer_settings", "weights_kept"),
    confidence="certain",
)
OPTIMIZER_REBUILT = Fault(
    "optimizer_rebuilt",
    Rank.PARAMETERS + 110,
    "the optimizer is rebuilt during training",
    cause="the optimizer is built inside the loop",
    remedy="build it once, before the loop",
    explains=("optimizer_covers_model", "lr_follows_schedule", "weights_move"),
    confidence="certain",
)
STATE_CLEARED = Fault(
    "state_cleared",
    Rank.OPTIMIZER + 234,
    "the optimizer's state is cleared during training",
    cause="the state is cleared or reloaded during training (optimizer.state.clear(), load_state_dict())",
    remedy="leave the state unchanged between steps",
    explains=("weights_move",),
    confidence="certain",
)

# ------------------------------------------------------------------ its settings and its schedule
MAXIMIZES = Fault(
    "maximizes",
    Rank.OPTIMIZER + 10,
    "the optimizer maximizes the loss",
    cause="maximize=True makes the optimizer ascend: it is for rewards and adversarial objectives, not for a loss",
    remedy="remove maximize=True",
    explains=(Symptom.LOSS_WRONG, Symptom.BLOWS_UP, "grads_match_reference"),
    confidence="certain",
)
MOMENTUM_TOO_LARGE = Fault(
    "momentum_too_large",
    Rank.OPTIMIZER + 20,
    "the momentum is so large that the velocity hardly decays, or never",
    cause="momentum={momentum}: mistyped, or given as a percentage",
    remedy="use a momentum below 1 (0.9 is usual)",
    explains=("weights_move", Symptom.BLOWS_UP),
    confidence="certain",
)
GRADIENT_DAMPED_AWAY = Fault(
    "gradient_damped_away",
    Rank.OPTIMIZER + 30,
    "dampening removes the gradient from the steps",
    cause="dampening={dampening} was taken for another setting: it is the share of each gradient that is left out",
    remedy="leave dampening at 0",
    explains=(Symptom.STANDS_STILL,),
    confidence="certain",
)
LR_ZERO = Fault(
    "lr_zero",
    Rank.OPTIMIZER + 40,
    "the learning rate is zero",
    cause="lr=0, a warm-up whose scheduler is never stepped, or a schedule that had already ended",
    remedy="step the scheduler after each optimizer step; print scheduler.get_last_lr() over the first steps",
    explains=(Symptom.STANDS_STILL, "lr_follows_schedule", "optimizer_covers_model", "optimizer_settings"),
    confidence="certain",
)
SCHEDULER_ON_ANOTHER_OPTIMIZER = Fault(
    "scheduler_on_another_optimizer",
    Rank.OPTIMIZER + 50,
    "the scheduler drives another optimizer",
    cause="the optimizer was rebuilt after the scheduler (in another cell, or by preparing or wrapping it)",
    remedy="build {scheduler} over the optimizer that steps",
    explains=("weights_move", "optimizer_covers_model"),
    confidence="certain",
)
SCHEDULER_BEFORE_OPTIMIZER = Fault(
    "scheduler_before_optimizer",
    Rank.OPTIMIZER + 60,
    "the scheduler steps before the optimizer",
    cause="the loop calls scheduler.step() before optimizer.step()",
    remedy="call scheduler.step() after optimizer.step()",
    confidence="certain",
)
SCHEDULER_TOO_OFTEN = Fault(
    "scheduler_too_often",
    Rank.OPTIMIZER + 70,
    "the scheduler steps too often",
    cause="the scheduler steps {pace} times per optimizer step: once per batch, once per process, or by repeated calls",
    remedy="call scheduler.step() once, right after optimizer.step()",
    explains=("weights_move",),
    confidence="certain",
)
SCHEDULER_TOO_SELDOM = Fault(
    "scheduler_too_seldom",
    Rank.OPTIMIZER + 80,
    "the scheduler steps too rarely",
    cause="the scheduler steps once per epoch, but its arguments count optimizer steps",
    remedy="call scheduler.step() after each optimizer step",
    explains=("weights_move",),
    confidence="certain",
)
GROUP_NOT_SCHEDULED = Fault(
    "group_not_scheduled",
    Rank.OPTIMIZER + 90,
    "a parameter group does not follow the schedule",
    cause="only some groups are scheduled (optimizer.param_groups[0]['lr'] = ..., a group added after the scheduler, a list of lambdas)",
    remedy="set the rate of every group: for g in optimizer.param_groups",
    explains=("weights_move",),
    confidence="certain",
)
LR_CONSTANT = Fault(
    "lr_constant",
    Rank.OPTIMIZER + 100,
    "the learning rate is constant although a schedule was declared",
    cause="no scheduler is stepped, or it drives another optimizer than the one that steps",
    remedy="build the scheduler over this optimizer and step it after each optimizer step",
    confidence="certain",
)
PEAK_LR_DIFFERS = Fault(
    "peak_lr_differs",
    Rank.OPTIMIZER + 110,
    "the peak learning rate differs from the declared one",
    cause="the optimizer was built with another rate ({ratio} times the declared one)",
    remedy="pass lr={peak}; check what overrides it later (a default, a config, a scheduler that sets its own)",
    explains=("weights_move", "lr_sensible", "optimizer_settings", Symptom.BLOWS_UP),
    confidence="certain",
)
WARMUP_DIFFERS = Fault(
    "warmup_differs",
    Rank.OPTIMIZER + 120,
    "the warm-up differs from the declared one",
    cause="the warm-up lasts {warmup:,} steps, not {declared:,}: it is longer than the run, or counted in other units",
    remedy="set num_warmup_steps={declared}, in optimizer steps",
    explains=("weights_move",),
    confidence="certain",
)
LR_NEGATIVE = Fault(
    "lr_negative",
    Rank.OPTIMIZER + 130,
    "the learning rate is negative: the optimizer ascends",
    cause="the schedule runs past its end (a linear or polynomial decay that is not clamped at zero), or a factor has the wrong sign",
    remedy="clamp the factor at zero (max(0.0, ...)); make the schedule as long as the run",
    explains=("lr_follows_schedule", "weights_move", Symptom.BLOWS_UP),
    confidence="certain",
)
DECAYS_TOO_EARLY = Fault(
    "decays_too_early",
    Rank.OPTIMIZER + 140,
    "the learning rate decays to zero before the end of the run",
    cause="the schedule is shorter than the run, or steps more often than the optimizer (a step size or decay given for epochs; a "
    "plateau scheduler that watches the wrong direction)",
    remedy="give the schedule the number of optimizer steps (batches per epoch x epochs / accumulation)",
    explains=("weights_move", "training_continues"),
    confidence="certain",
)
SCHEDULE_DIFFERS = Fault(
    "schedule_differs",
    Rank.OPTIMIZER + 150,
    "the learning rate does not follow the declared schedule",
    cause="the schedule has another shape, length, warm-up or end",
    remedy="compare the scheduler's arguments with the declaration: {declared}",
    confidence="certain",
)
LAYERWISE_LR_INVERTED = Fault(
    "layerwise_lr_inverted",
    Rank.OPTIMIZER + 160,
    "layer-wise learning rates are inverted",
    cause="the layer-wise decay counts layers from the wrong end",
    remedy="give the head the full rate, and multiply by the factor once for each layer below it",
    explains=("weights_move",),
    confidence="certain",
)
BETAS_SWAPPED = Fault(
    "betas_swapped",
    Rank.OPTIMIZER + 170,
    "the optimizer's betas are swapped or misplaced",
    cause="the two betas are swapped, or another setting was passed in their place",
    remedy="pass betas as a keyword; betas=(0.9, 0.999) is the default",
    explains=("weights_move", Symptom.BLOWS_UP),
    confidence="certain",
)
EPS_UNDERFLOWS = Fault(
    "eps_underflows",
    Rank.OPTIMIZER + 180,
    "the optimizer's eps is zero in the parameters' dtype",
    cause="{optimizer} divides by sqrt(v) + eps, and in float16 both underflow to 0: pure float16 parameters cannot be trained this way",
    remedy="keep the parameters in float32 and use torch.autocast with a GradScaler, or use bfloat16; otherwise set eps=1e-4",
    explains=(Symptom.BLOWS_UP,),
    confidence="certain",
)
EPS_DOMINATES = Fault(
    "eps_dominates",
    Rank.OPTIMIZER + 200,
    "the optimizer's eps dominates its steps",
    cause="eps={eps} is unusually large: another setting may have been passed in its place",
    remedy="leave eps at 1e-8, and pass the settings as keywords",
    explains=("weights_move",),
    confidence="certain",
)
DECAY_DOMINATES = Fault(
    "decay_dominates",
    Rank.OPTIMIZER + 210,
    "weight decay dominates the updates",
    cause="weight decay is {decay}: it erases what is learned within {steps} steps",
    remedy="lower it (torch's default for AdamW is 0.01; 0 to 0.1 is usual)",
    explains=("weights_move", "all_finite", Symptom.INPUT_LOST),
    confidence="certain",
)
OTHER_OPTIMIZER = Fault(
    "other_optimizer",
    Rank.OPTIMIZER + 220,
    "the optimizer is not the declared one",
    cause="{optimizer} was built instead",
    remedy="build torch.optim.{declared}, or declare {optimizer}",
    explains=("optimizer_covers_model",),
    confidence="certain",
)
WEIGHT_DECAY_DIFFERS = Fault(
    "weight_decay_differs",
    Rank.OPTIMIZER + 230,
    "weight decay differs from the declared one",
    cause="it was left at the default of {optimizer}, or set elsewhere",
    remedy="pass weight_decay={declared} as a keyword",
    confidence="certain",
)
DECAY_ON_NORMS = Fault(
    "decay_on_norms",
    Rank.OPTIMIZER + 240,
    "norms and biases have weight decay",
    cause="the list of names exempt from decay does not fit this model: none of its patterns matches {tensor}",
    remedy="select by kind, not by name: p.ndim < 2, or isinstance(module, (nn.LayerNorm, ...))",
    confidence="certain",
)
NOT_CLIPPED = Fault(
    "not_clipped",
    Rank.OPTIMIZER + 250,
    "gradients are not clipped, although clipping was declared",
    cause="clipping is missing, comes after the step or before backward, covers other tensors, or precedes scaler.unscale_()",
    remedy="call clip_grad_norm_(model.parameters(), {max_norm}) between backward() and step(); with a GradScaler, after "
    "scaler.unscale_(optimizer)",
    explains=("grads_match_reference",),
    confidence="certain",
)
CLIPPED_TOO_FAR = Fault(
    "clipped_too_far",
    Rank.OPTIMIZER + 260,
    "gradients are clipped further than declared",
    cause="they are clipped to {norm} (max_norm is the total norm, not eps), or before scaler.unscale_()",
    remedy="call clip_grad_norm_(model.parameters(), {max_norm}); with a GradScaler, after scaler.unscale_(optimizer)",
    explains=("grads_match_reference",),
    confidence="certain",
)
STEPS_TOO_SELDOM = Fault(
    "steps_too_seldom",
    Rank.OPTIMIZER + 270,
    "the optimizer steps less often than declared",
    cause="optimizer.step() is behind a condition that is rarely true (unintended accumulation, or a GradScaler that skips steps "
    "because gradients overflow)",
    remedy="step once every {batches}; with a GradScaler, print scaler.get_scale()",
    explains=("grads_match_reference",),
    confidence="certain",
)
STEPS_TOO_OFTEN = Fault(
    "steps_too_often",
    Rank.OPTIMIZER + 280,
    "the optimizer steps more often than declared",
    cause="optimizer.step() runs for every batch, or more than once per batch",
    remedy="step once every {batches}",
    explains=("grads_match_reference",),
    confidence="certain",
)
LR_TOO_LARGE = Fault(
    "lr_too_large",
    Rank.OPTIMIZER + 290,
    "the learning rate is too large",
    cause="the learning rate ({peak}) is too large for weights of rms {rms} with {optimizer}: the first steps erase the pretrained weights",
    remedy="lower the learning rate by a factor of 100 or more (1e-5 to 1e-3 is usual for Adam), with a warm-up",
    explains=(Symptom.BLOWS_UP, "logits_unbounded"),
    confidence="certain",
)
LR_BELOW_SPACING = Fault(
    "lr_below_spacing",
    Rank.OPTIMIZER + 300,
    "the dtype cannot represent the updates",
    cause="{dtype} cannot add an update of {lr} to weights of rms {rms}: it is less than half the spacing of its numbers",
    remedy="keep the parameters in float32 (dtype=torch.float32; transformers 5 loads the checkpoint's dtype) and use torch.autocast",
    explains=("weights_move",),
    confidence="certain",
)
LR_TOO_SMALL = Fault(
    "lr_too_small",
    Rank.OPTIMIZER + 310,
    "the learning rate is too small",
    cause="the learning rate peaks at {peak}, too small for weights of rms {rms}",
    remedy="raise the learning rate (1e-5 to 1e-3 is usual for Adam; SGD needs far more)",
    explains=("weights_move",),
)
