"""The faults that the checks of the weights find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

NOT_FROZEN = Fault(
    "not_frozen",
    Rank.PARAMETERS + 70,
    "parameters that should stay frozen are trained",
    cause="requires_grad is True for {tensors}: the code that freezes them was not called, or ran before they existed",
    remedy="call requires_grad_(False) on them before the optimizer is built",
    explains=("optimizer_covers_model", "optimizer_settings", "weights_kept"),
    confidence="certain",
)
FREEZE_WITHOUT_EFFECT = Fault(
    "freeze_without_effect",
    Rank.PARAMETERS + 65,
    "a freeze has no effect",
    cause="requires_grad = False was set on {module}, where torch never reads it: it is an attribute of tensors, not of modules",
    remedy="call requires_grad_(False), with the underscore, on {module} before the optimizer is built",
    explains=("optimizer_covers_model", "optimizer_settings", "weights_kept"),
    confidence="certain",
)
WEIGHTS_OVERWRITTEN = Fault(
    "weights_overwritten",
    Rank.WEIGHTS + 10,
    "weights are overwritten between optimizer steps",
    cause="averaged weights (EMA) are copied into the model, a state_dict is loaded again, or values saved before {optimizer}.step() are "
    "written back",
    remedy="look for copy_, load_state_dict and .data = inside the loop; keep an average in a copy of the model",
    explains=("weights_move", "frozen_stay_frozen"),
    confidence="certain",
)
WEIGHTS_RESET = Fault(
    "weights_reset",
    Rank.WEIGHTS + 20,
    "weights are reset between optimizer steps",
    cause="weights are initialized again, or a checkpoint is loaded, about every {steps} steps, as at the start of each epoch",
    remedy="look for load_state_dict, copy_ and apply(init) inside the loop, and move them before it",
    explains=("weights_move", "frozen_stay_frozen"),
    confidence="certain",
)
CONSTRAINT_TOO_TIGHT = Fault(
    "constraint_too_tight",
    Rank.WEIGHTS + 22,
    "a constraint on the weights takes back most of the updates",
    cause="after each step the weights are clamped, or scaled to a norm, to bounds that leave little room to learn: a limit in the wrong "
    "unit, or one that the pretrained weights do not meet",
    remedy="compare the bound of clamp_, renorm or of the division by a norm with the values and norms that the weights begin with",
    explains=("weights_move", "loss_decreases", "logits_unbounded", "grads_nonzero"),
)
WEIGHTS_ROUNDED = Fault(
    "weights_rounded",
    Rank.WEIGHTS + 23,
    "weights are rounded after each step, and most of the updates with them",
    cause="the loop rounds the weights that {optimizer} updates, to numbers that lie farther apart than its steps are long: most of what "
    "it adds is lost again",
    remedy="let {optimizer} update weights in float32, and round a copy for the forward pass; or round up or down at random, so that the "
    "updates are kept on average",
    explains=("weights_move", "loss_decreases"),
)
RESTORE_WITHOUT_EFFECT = Fault(
    "restore_without_effect",
    Rank.WEIGHTS + 25,
    "load_state_dict restores nothing: it is given the model's own weights",
    cause="the state was kept without a copy (best = model.state_dict()): it holds the parameters' own memory, which each step changes, "
    "so what is restored as the best or the first state is the last one",
    remedy="keep a copy: best = copy.deepcopy(model.state_dict()), or write it to a file with torch.save",
    confidence="certain",
)
FROZEN_WRITTEN = Fault(
    "frozen_written",
    Rank.WEIGHTS + 30,
    "frozen parameters are overwritten",
    cause="requires_grad=False stops gradients, not writes: an EMA, load_state_dict, or an optimizer that still holds an old .grad writes "
    "to them",
    remedy="freeze parameters before the optimizer is built, and exclude them from whatever else writes to weights",
    explains=("weights_kept",),
    confidence="certain",
)
FROZEN_STATISTICS_DRIFT = Fault(
    "frozen_statistics_drift",
    Rank.WEIGHTS + 40,
    "running statistics of a frozen module change",
    cause="{buffer} is a running statistic: a frozen BatchNorm in train mode keeps updating it",
    remedy="call .eval() on the frozen module after every model.train()",
    confidence="certain",
)
WEIGHTS_STILL = Fault(
    "weights_still",
    Rank.OUTCOME + 110,
    "the weights do not move",
    cause="no measurement explains it: {optimizer}.step() may not write to {tensor}",
    remedy="check what the optimizer does with these tensors",
    explains=(Symptom.STANDS_STILL,),
)
