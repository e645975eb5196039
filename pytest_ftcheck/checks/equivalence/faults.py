"""The faults that the checks of equivalence find, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

# ---------------------------------------------------------------------- autocast
AUTOCAST_RAISES = Fault(
    "autocast_raises",
    Rank.GRADIENTS + 510,
    "the model cannot be computed under autocast",
    cause="an operation gets tensors of two dtypes: {where} keeps, or makes, one in float32 beside those of autocast",
    remedy="cast one to the dtype of the other (b.to(a.dtype)), or with torch.autocast(device, enabled=False) around it, on x.float()",
    confidence="certain",
)
AUTOCAST_NOT_FINITE = Fault(
    "autocast_not_finite",
    Rank.GRADIENTS + 520,
    "NaN or infinity under autocast",
    cause="{where} leaves the range of its dtype: a sum, a power, an exponential or a mask value too large for it, or an eps that is "
    "zero in it",
    remedy="compute it in float32 (with torch.autocast(device, enabled=False), on x.float()), or use bfloat16, whose range is float32's",
    explains=(Symptom.BLOWS_UP,),
    confidence="certain",
)
AUTOCAST_INACCURATE = Fault(
    "autocast_inaccurate",
    Rank.GRADIENTS + 530,
    "autocast changes the result by more than rounding",
    cause="{where} loses its digits in {dtype}: a difference of large numbers, a long sum, positions or counts above 256, or another "
    "branch for this dtype",
    remedy="compute it in float32: with torch.autocast(device, enabled=False) around it, on x.float()",
    confidence="certain",
)
AUTOCAST_GRADIENT_INACCURATE = Fault(
    "autocast_gradient_inaccurate",
    Rank.GRADIENTS + 540,
    "autocast changes the gradient by more than rounding",
    cause="the backward pass of what computes with {tensor}, or of what comes after it, differs by dtype: a custom autograd.Function, "
    "a hook, or gradients too small for {dtype}",
    remedy="torch.amp.custom_fwd and custom_bwd for an autograd.Function; a GradScaler for float16",
    confidence="certain",
)
# ---------------------------------------------------------------------- accumulation
STATE_CARRIED_OVER = Fault(
    "state_carried_over",
    Rank.INPUTS + 340,
    "state of one batch is used in the next",
    cause="{what} is kept from one forward pass to the next, so a batch depends on those before it",
    remedy="reset it at the start of each forward pass; keep it, detached, only where a batch continues the rows of the one before",
    confidence="certain",
)
LOSS_NOT_A_MEAN = Fault(
    "loss_not_a_mean",
    Rank.LOSS + 360,
    "the loss has a term that is no mean over the rows",
    cause="a term depends on the rows of a batch together: negatives from the batch, a statistic or a norm over the batch, a balance of "
    "experts, or a division by something that does not grow with the rows",
    remedy="make it a mean over rows, or use the large batch as it is: accumulation is another training",
)
STATISTICS_OF_MICRO_BATCHES = Fault(
    "statistics_of_micro_batches",
    Rank.ADVICE + 60,
    "batch normalisation uses the statistics of each micro-batch",
    cause="it normalises with the rows of its micro-batch alone: by design, but the large batch trains otherwise",
    remedy="a normalisation without batch statistics (LayerNorm, GroupNorm), frozen statistics (module.eval()), or larger micro-batches",
    confidence="certain",
)
WEIGHTS_OF_MICRO_BATCHES_DIFFER = Fault(
    "weights_of_micro_batches_differ",
    Rank.ADVICE + 70,
    "micro-batches have different weights in the loss of the large batch",
    cause="the loss is a weighted mean (over tokens, or with class weights), and its total weight differs from one micro-batch to another",
    remedy="sum the loss in each micro-batch (reduction='sum') and divide by the total weight of all of them",
    confidence="certain",
)
# ---------------------------------------------------------------------- resume
CHECKPOINT_FAILS = Fault(
    "checkpoint_fails",
    Rank.EVALUATION + 110,
    "the checkpoint cannot be saved or loaded",
    cause="{doing} raises",
    remedy="make state_dict() and load_state_dict() fit each other, or adapt the functions of checkpoint=",
    confidence="certain",
)
WEIGHTS_NOT_RESTORED = Fault(
    "weights_not_restored",
    Rank.EVALUATION + 120,
    "loading a checkpoint does not restore the weights",
    cause="the weights, or buffers of the state_dict, are not saved, not loaded, or are overwritten after loading",
    remedy="save model.state_dict(), and call model.load_state_dict() after the model is complete",
    confidence="certain",
)
STATE_NOT_IN_STATE_DICT = Fault(
    "state_not_in_state_dict",
    Rank.EVALUATION + 130,
    "the model keeps state that its state_dict does not hold",
    cause="{what}: a buffer registered with persistent=False, or a plain attribute, which training changes and a checkpoint loses",
    remedy="register_buffer(name, tensor) for tensors; get_extra_state() and set_extra_state() for all else",
    confidence="certain",
)
OPTIMIZER_NOT_RESTORED = Fault(
    "optimizer_not_restored",
    Rank.EVALUATION + 140,
    "resuming loses the optimizer's state",
    cause="momentum, Adam's moments and counts of steps begin again: the optimizer is not saved or not loaded, or keeps state outside its "
    "state_dict",
    remedy="save optimizer.state_dict(), and load it into an optimizer over the same parameters in the same order",
    confidence="certain",
)
SCHEDULER_NOT_RESTORED = Fault(
    "scheduler_not_restored",
    Rank.EVALUATION + 150,
    "resuming starts the learning-rate schedule again",
    cause="the scheduler is not saved or not loaded, or keeps state outside its state_dict",
    remedy="save scheduler.state_dict() and load it",
    confidence="certain",
)
RANDOM_STATES_NOT_RESTORED = Fault(
    "random_states_not_restored",
    Rank.ADVICE + 80,
    "a resumed training draws other random numbers",
    cause="the random states are not saved: dropout drops other values than without the interruption",
    remedy="save torch.get_rng_state() (and those of cuda, numpy and python) if runs must be repeatable",
    confidence="certain",
)
DATA_POSITION_LOST = Fault(
    "data_position_lost",
    Rank.ADVICE + 90,
    "a resumed training sees other batches",
    cause="the order is drawn anew when the loader is read again, so skipping what was seen leaves out other rows: some come twice in an "
    "epoch, some not at all",
    remedy="a loader with a state_dict (torchdata's StatefulDataLoader), or an order that depends on the epoch alone "
    "(generator.manual_seed(epoch))",
)
