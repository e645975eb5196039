"""The faults of a distributed run that one rank alone does not show, the most fundamental first."""

from __future__ import annotations

from ..spec import Fault, Rank, Symptom

NONFINITE_ON_ONE_RANK = Fault(
    "nonfinite_on_one_rank",
    Rank.BROKEN_START + 50,
    "NaN or infinity begins on one rank",
    cause="rank {rank} computes a loss or gradient that is not finite, from its own rows; averaging passes it on to all ranks",
    remedy="look at the rows of rank {rank} in that iteration: torch.isfinite(inputs).all() before the model is called",
    explains=(Symptom.BLOWS_UP, Symptom.LOSS_WRONG),
    confidence="certain",
)
RANKS_TRAIN_ALONE = Fault(
    "ranks_train_alone",
    Rank.PARAMETERS + 210,
    "each rank trains a model of its own",
    cause="no DistributedDataParallel is around the model, and nothing else averages gradients or weights",
    remedy="model = torch.nn.parallel.DistributedDataParallel(model), or accelerator.prepare(model)",
    confidence="certain",
)
WRAPPER_BYPASSED = Fault(
    "wrapper_bypassed",
    Rank.PARAMETERS + 220,
    "the module inside the DDP wrapper is called, so gradients are not averaged",
    cause="DDP averages gradients only of what its own forward computed, and the loop calls the module inside it",
    remedy="call the wrapper: model(inputs), not model.module(inputs)",
    confidence="certain",
)
NO_SYNC_LEFT_ON = Fault(
    "no_sync_left_on",
    Rank.PARAMETERS + 230,
    "no_sync() is on at the last backward pass before the step",
    cause="inside no_sync() gradients stay on their rank; the last micro-batch of each step is to be outside",
    remedy="leave no_sync() before the forward pass of the last micro-batch of each step",
    confidence="certain",
)
RANK_GRADIENTS_DIFFER = Fault(
    "rank_gradients_differ",
    Rank.PARAMETERS + 240,
    "the ranks step with different gradients",
    cause="something between backward() and optimizer.step() differs between ranks, or leaves gradients where they are: a branch on the "
    "rank, a hook, a part of the model that DDP does not see",
    remedy="print the norm of each gradient on each rank just before optimizer.step()",
)
START_WEIGHTS_DIFFER = Fault(
    "start_weights_differ",
    Rank.PARAMETERS + 250,
    "the ranks start from different weights",
    cause="the model is made or loaded on each rank under another seed, and nothing copies the weights of one rank to the others",
    remedy="wrap the model in DistributedDataParallel, which copies rank 0's weights, or broadcast them; else seed all ranks alike before "
    "it is made",
    confidence="certain",
)
RANK_SETTINGS_DIFFER = Fault(
    "rank_settings_differ",
    Rank.PARAMETERS + 260,
    "the ranks use different optimizer settings",
    cause="a setting depends on the rank, or on what only this rank measures (ReduceLROnPlateau on its own loss)",
    remedy="compute settings from what all ranks know; average a measured value over the ranks before a scheduler gets it",
    confidence="certain",
)
SAME_ROWS = Fault(
    "same_rows_on_all_ranks",
    Rank.DATA + 200,
    "all ranks train on the same rows",
    cause="the loader is not divided among the ranks: no DistributedSampler, no accelerator.prepare(loader), an IterableDataset that "
    "ignores the rank",
    remedy="DataLoader(..., sampler=DistributedSampler(dataset)), or accelerator.prepare(loader); divide an IterableDataset by rank",
    confidence="certain",
)
EPOCHS_IN_SAME_ORDER = Fault(
    "epochs_in_same_order",
    Rank.DATA + 210,
    "every epoch has the same order",
    cause="DistributedSampler draws the order from its seed and its epoch, and set_epoch() was never called",
    remedy="loader.sampler.set_epoch(epoch) at the start of each epoch",
    confidence="certain",
)
GRADIENTS_SUMMED = Fault(
    "rank_gradients_summed",
    Rank.GRADIENTS + 410,
    "the gradients of the ranks are summed, not averaged",
    cause="all_reduce adds up, and nothing divides by the number of ranks: the gradient is {factor} times that of one process on all rows",
    remedy="divide by the number of ranks (dist.ReduceOp.AVG), or let DistributedDataParallel average",
)
GRADIENTS_AVERAGED_TWICE = Fault(
    "rank_gradients_averaged_twice",
    Rank.GRADIENTS + 420,
    "the gradients of the ranks are averaged twice",
    cause="DistributedDataParallel divides by the number of ranks already, and the loop does so again: the gradient is {factor} times that "
    "of one process on all rows",
    remedy="do not divide the gradients by the number of ranks",
)
SCHEDULE_ONCE_A_RANK = Fault(
    "schedule_stepped_once_a_rank",
    Rank.OPTIMIZER + 400,
    "the learning-rate schedule ends too early: it is stepped once for each rank",
    cause="the schedule counts the steps of one rank, and is stepped {pace} times for each optimizer step, once for each of {ranks} ranks, "
    "as a scheduler from accelerator.prepare() is",
    remedy="build the schedule for ranks * steps (before prepare: len(loader) is that of one process), or step it once: "
    "Accelerator(step_scheduler_with_optimizer=False)",
    explains=("lr_follows_schedule",),
)
RANK_STEPS_DIFFER = Fault(
    "rank_steps_differ",
    Rank.OPTIMIZER + 410,
    "the ranks take different numbers of steps",
    cause="the loaders of the ranks have different lengths, or a rank skips or repeats optimizer.step()",
    remedy="drop_last=True or a DistributedSampler, which makes all ranks' parts equal; take each decision to step on all ranks alike",
    confidence="certain",
)
RANKS_DRIFT_APART = Fault(
    "ranks_drift_apart",
    Rank.WEIGHTS + 60,
    "the weights of the ranks drift apart",
    cause="gradients are the same on all ranks, and something else writes to the weights of some: an average (EMA), a checkpoint loaded on "
    "one rank, a constraint, an optimizer state that is not the same",
    remedy="look for what runs under `if rank == 0` and writes to weights or optimizer; do it on all ranks",
)
