"""What each rank of a distributed run did; the records of all ranks stand side by side after `watch.gather`.

Tensors are recorded as sketches: sums of a fixed sample of their elements under fixed random weights. Equal tensors have equal sketches,
the sketch of a mean is the mean of the sketches, and the squared distance of two sketches estimates that of the sampled elements
(Achlioptas 2003, Database-friendly random projections).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.measurement import Measurement

#: How the model was called: by the DDP wrapper; by it, inside ``no_sync()``; by nobody else.
WRAPPED, NO_SYNC, BARE = "wrapped", "no_sync", "bare"


@dataclass(frozen=True)
class RankWeights:
    """One parameter of one rank."""

    name: str
    shape: tuple[int, ...]
    #: Elements that this rank holds: fewer than the shape has where it holds a shard.
    elements: int
    #: Sketches before the first optimizer step, and at the end; empty where the tensor differs between ranks by design (a shard).
    first: tuple[float, ...] = ()
    last: tuple[float, ...] = ()
    sharded: bool = False
    #: Which part of a sharded tensor it is: ranks with the same numbers hold the same elements (coordinates in the mesh).
    part: tuple[int, ...] = ()


@dataclass(frozen=True)
class RankStep:
    """One optimizer step of one rank: sketches of a few tensors (`Rank.sampled`), one after another."""

    step: int
    #: Weights before the step.
    weights: tuple[float, ...] = ()
    #: Gradients as backward computed them on this rank alone, in all backward passes since ``zero_grad()``; as the optimizer got them.
    local: tuple[float, ...] = ()
    gradients: tuple[float, ...] = ()
    #: How the model was last called in training before the step: `WRAPPED`, `NO_SYNC` or `BARE`; empty: it was not.
    call: str = ""
    #: Product of the factors by which ``clip_grad_norm_`` multiplied the gradients.
    clipped: float = 1.0
    #: Sum over the backward passes of (what backward was called on) / (the mean of torch's loss over the rows): 1 where the loss is the
    #: mean over this rank's rows. None: not known.
    loss_weight: float | None = None


@dataclass(frozen=True)
class RankScheduler:
    """A learning-rate scheduler of the optimizer."""

    name: str
    #: How often it stepped for each optimizer step, from the first of these to the last.
    pace: float


@dataclass(frozen=True)
class RankGroup:
    """One parameter group, as in `Group`."""

    weight_decay: float
    settings: dict[str, float]


@dataclass(frozen=True)
class RankRun:
    """What the trace of a rank says of it beside its record."""

    steps: int
    groups: tuple[RankGroup, ...] = ()
    #: Learning rate of each group at the steps ``lrs_at``.
    lrs_at: tuple[int, ...] = ()
    lrs: tuple[tuple[float, ...], ...] = ()
    #: First iteration whose loss is NaN or infinite; None: none is.
    first_nonfinite_loss: int | None = None
    iterations: int = 0
    stopped: str | None = None


@dataclass(frozen=True)
class Rank:
    """The record of one rank."""

    rank: int
    #: All parameters of the model.
    weights: tuple[RankWeights, ...] = ()
    #: Names of the tensors in the sketches of each step.
    sampled: tuple[str, ...] = ()
    steps: tuple[RankStep, ...] = ()
    #: First step whose gradients of this rank alone (`RankStep.local`) have a NaN or infinity; None: none.
    first_nonfinite_local: int | None = None
    #: Checksums of the rows of each training call of the model, the first 512 calls: without regard to the order of the rows, and with it.
    rows: tuple[int, ...] = ()
    rows_in_order: tuple[int, ...] = ()
    #: Training calls of the model.
    calls: int = 0
    #: Parameters are shards (FSDP), along one dimension of the mesh; along several, or by tensor parallelism.
    sharded: bool = False
    sharded_otherwise: bool = False
    #: A DDP wrapper around the model, or around a module that contains it, exists at the end of the loop.
    wrapped: bool = False
    #: A ``DistributedSampler`` that shuffles exists, and none of them was ever given another epoch than 0.
    epoch_never_set: bool = False
    schedulers: tuple[RankScheduler, ...] = ()
    #: Filled in when the ranks are merged.
    run: RankRun | None = None


@dataclass(frozen=True)
class Ranks(Measurement, probe="ranks"):
    """The ranks of a distributed run."""

    #: Processes in the run; after gathering, those that were gathered.
    size: int
    #: This rank's own record; after gathering those of all ranks, in order.
    ranks: tuple[Rank, ...]
    gathered: bool = False
