"""From what the recorder counted to the plain numbers of a `Trace`: tensors and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer as TorchOptimizer

from ..core.observations import Gradients, Group, Motion, Optimizer, Tensor
from ..instruments.optimizers import (
    SchedulerOrder,
    classes_of,
    decouples_decay,
    lr_of,
    name_of,
    settings_of,
    state_steps,
)
from ..instruments.sampled_elements import SampledElements
from ..instruments.sharded_tensors import stored_parameters
from ..instruments.tensor_bytes import digest
from ..instruments.tensor_statistics import rms, series, statistics_of
from .external_writes import ExternalWrites, share_retained
from .gradient_statistics import GradientStatistics
from .moving_averages import MovingAverages
from .watched_optimizers import WatchedOptimizers
from .watched_parameters import WatchedParameter

#: In place of an optimizer's name, where none was given and none stepped.
NO_OPTIMIZER = "optimizer"
#: Values that are sorted to compare two distributions, at most: with a million the standard error of a quantile is a thousandth of the
#: standard deviation, and sorting 6.4 million values took as long as six steps of the model they belong to.
SORTED = 2**20


@dataclass
class GroupRates:
    """Learning rates of one parameter group over the steps."""

    first: float | None = None
    peak: float = 0.0
    total: float = 0.0

    def add(self, lr: float) -> None:
        """The rate in force at one more step."""
        self.first = lr if self.first is None else self.first
        self.peak, self.total = max(self.peak, lr), self.total + lr


# ---------------------------------------------------------------------- tensors
def tensor_records(
    model: nn.Module,
    watched: Sequence[WatchedParameter],
    sampled: SampledElements,
    *,
    vectors: Mapping[str, torch.Tensor],
    gradients: GradientStatistics,
    max_update: torch.Tensor,
    writes: ExternalWrites,
    averages: MovingAverages,
    rows: Sequence[torch.Tensor],
    steps: int,
    optimizers: WatchedOptimizers,
    in_other_optimizers: AbstractSet[int],
) -> tuple[Tensor, ...]:
    """One `Tensor` a parameter.

    :param vectors: flat vectors of the sampled elements: ``start``, ``final`` and ``after_last_step`` (values), ``by_gradient`` and
        ``by_decay`` (sums of updates), ``had_gradient`` and ``counted`` (for what is retained).
    :param rows: norms of gradient, update and displacement at each recorded step.
    """
    gradients.to_cpu()
    largest_updates = max_update.tolist()
    between = [
        v.tolist()
        for v in (writes.squares, writes.count, writes.largest, writes.resets, writes.projections, writes.roundings)
    ]
    stacked = torch.stack(list(rows)).cpu().double() if rows else torch.zeros(0, 3, len(sampled.counts), device="cpu")
    pieces = {name: sampled.split(vector) for name, vector in vectors.items()}
    now = stored_parameters(model, every_name=True)
    held_now = optimizers.held()
    tensors = []
    last_values = statistics_of([w.parameter for w in watched])
    for w, last in zip(watched, last_values, strict=True):
        parameter = now.get(w.name)
        # as good as another parameter: what it is now cannot be compared with what it was
        resized = w.slot in sampled.resized
        replaced = resized or parameter is not w.parameter
        in_an_optimizer = id(parameter) in held_now or id(parameter) in in_other_optimizers
        known: dict[str, Any] = {
            "replaced": replaced,
            "orphaned": parameter is not None and replaced and not in_an_optimizer,
            "average_of": averages.name(w.slot),
            "in_other_optimizer": id(w.parameter) in in_other_optimizers,
            "group": None if w.group is None else optimizers.offset(w.group[0]) + w.group[1],
            "last": last,
        }
        if w.slot is None:
            tensors.append(_unsampled(w, steps, **known))
            continue
        slot = w.slot
        own = {name: split[slot] for name, split in pieces.items()}
        scale = 1 / math.sqrt(max(1, own["had_gradient"].numel()))
        first = None if resized else w.initial
        motion = _motion(w, first, own, largest_updates[slot], [values[slot] for values in between], scale)
        norms, updates, displacements = (stacked[:, i, slot] for i in range(3))
        tensors.append(
            _tensor(
                w,
                unchanged=None if w.digest is None else w.digest == digest(w.parameter),
                gradients=gradients.record(w, motion.share_with_gradient),
                motion=motion,
                grad_norms=series(norms),
                updates=series(updates * scale),
                displacements=series(displacements * scale),
                histograms=tuple(w.histograms),
                **known,
            )
        )
    return tuple(tensors)


def _motion(
    w: WatchedParameter,
    initial: torch.Tensor | None,
    own: Mapping[str, torch.Tensor],
    max_update: float,
    between: Sequence[float],
    scale: float,
) -> Motion:
    """How far a tensor moved; a head tensor that is larger than its sample is compared in full with ``initial``."""
    had_gradient = own["had_gradient"]
    hit = int(had_gradient.sum())
    if initial is not None:
        first, last = initial.reshape(-1).float(), w.values.reshape(-1).float()
    else:
        first, last = own["start"], own["final"]
    delta = last - first
    norm = float(torch.linalg.vector_norm(first))
    updates = own["by_gradient"] + own["by_decay"]
    squares, writes, largest_write, resets, projections, roundings = between
    return Motion(
        elements=delta.numel(),
        share_changed=int(torch.count_nonzero(delta)) / max(1, delta.numel()),
        share_with_gradient=hit / max(1, had_gradient.numel()),
        rms=rms(delta),
        largest=float(delta.abs().max()),
        relative=float(torch.linalg.vector_norm(delta)) / norm if norm > 0 else None,
        # whatever changed an element that never had a gradient, it was not the gradient
        by_gradient=rms(own["by_gradient"][had_gradient]) if hit else 0.0,
        by_decay=rms(own["by_decay"]) if hit else rms(updates),
        between_steps=math.sqrt(squares) * scale,
        max_update=max_update / math.sqrt(max(1, hit)),
        wasserstein=_distance(first, last),
        between_steps_writes=int(writes),
        between_steps_largest=largest_write * scale,
        resets=int(resets),
        projections=int(projections),
        roundings=int(roundings),
        retained=share_retained(own["after_last_step"], own["start"], updates, own["counted"]),
    )


def _distance(first: torch.Tensor, last: torch.Tensor) -> float:
    """Wasserstein distance of two sets of values; of those at every k-th place where they are more than `SORTED`."""
    step = -(-first.numel() // SORTED) | 1  # odd: rows of a matrix often have a length that is a power of two
    a, b = (values[::step].sort().values for values in (first, last))
    return float((a - b).abs().mean())


def _unsampled(w: WatchedParameter, steps: int, **known: Any) -> Tensor:
    """A tensor without floating-point values: only whether it changed is known."""
    same = w.digest == digest(w.parameter)
    return _tensor(
        w,
        unchanged=same,
        gradients=Gradients(steps, steps, 0, 0, None, None, 0.0, 0.0, 0.0),
        motion=Motion(0, float(not same), 0.0, 0.0, 0.0, None, 0.0, 0.0, 0.0, 0.0, 0.0),
        **known,
    )


def _tensor(w: WatchedParameter, **measured: Any) -> Tensor:
    return Tensor(
        name=w.name,
        aliases=w.aliases,
        part=w.part,
        role=w.role,
        shape=tuple(w.parameter.shape),
        shard=w.shard,
        frozen_in_name_by=w.frozen_in_name_by,
        dtype=str(w.parameter.dtype).removeprefix("torch."),
        trainable=w.trainable,
        trainable_last=w.parameter.requires_grad,
        first_step=w.first_step,
        lr_sum=w.lr_sum,
        lr_peak=w.lr_peak,
        entries=w.entries,
        first=w.first,
        **measured,
    )


# ---------------------------------------------------------------------- the optimizer
def optimizer_record(
    optimizers: WatchedOptimizers,
    live: Sequence[WatchedParameter],
    in_model: Collection[int],
    rates: Mapping[tuple[int, int], GroupRates],
    scheduler: SchedulerOrder,
    *,
    other_steps: int,
    rebuilt: int,
) -> Optimizer:
    """The watched optimizers at the end of the run, as one with the groups of all.

    :param in_model: ids of the model's parameters.  :param rates: learning rates by the optimizer's place and the index of the group.
    """
    groups, held_before = list[Group](), set[int]()
    for place, optimizer in enumerate(optimizers.all):
        for i, settings in enumerate(optimizer.param_groups):
            over_run = rates.get((place, i), GroupRates())
            groups.append(_group(len(groups), optimizer, settings, over_run, in_model, held_before))
    updates, gradients = max(
        (_updates(place, optimizer, live) for place, optimizer in enumerate(optimizers.all)),
        key=lambda counts: -1 if counts[0] is None else counts[1] - counts[0],
        default=(None, 0),
    )
    return Optimizer(
        " and ".join(dict.fromkeys(name_of(o) for o in optimizers.all)) or NO_OPTIMIZER,
        optimizers.family(),
        tuple(groups),
        other_steps,
        classes=tuple(dict.fromkeys(c for o in optimizers.all for c in classes_of(o))),
        rebuilt=rebuilt,
        state_steps=updates,
        gradient_steps=gradients,
        scheduler=scheduler.name,
        scheduler_of_other_optimizer=scheduler.drives_another_than(optimizers.all),
        scheduler_stepped_first=scheduler.stepped_first,
    )


def _group(
    index: int,
    optimizer: TorchOptimizer,
    settings: dict[str, Any],
    over_run: GroupRates,
    in_model: Collection[int],
    held_before: set[int],
) -> Group:
    """One group; ``held_before``: ids of the tensors in groups before it, to which its own are added."""
    lr = lr_of(settings)
    entries = [id(p) for p in settings["params"]]
    tensors = set(entries)
    of_model = sum(i in in_model for i in tensors)
    duplicates = len(entries) - len(tensors - held_before)
    held_before |= tensors
    return Group(
        index=index,
        lr_first=lr if over_run.first is None else over_run.first,
        lr_peak=lr if over_run.first is None else over_run.peak,
        lr_sum=over_run.total,
        weight_decay=float(settings.get("weight_decay") or 0.0),
        settings=settings_of(settings),
        tensors=of_model,
        not_in_model=len(tensors) - of_model,
        duplicates=duplicates,
        decoupled=decouples_decay(optimizer, settings),
    )


def _updates(place: int, optimizer: TorchOptimizer, live: Sequence[WatchedParameter]) -> tuple[int | None, int]:
    """Updates that its state counts, and the most steps at which one of its tensors had a gradient."""
    trained = [w for w in live if w.group is not None and w.group[0] == place and w.steps > w.without_gradient]
    trained.sort(key=lambda w: w.without_gradient - w.steps)  # those that had a gradient most often come first
    most = max((w.steps - w.without_gradient for w in trained), default=0)
    return state_steps(optimizer, [w.parameter for w in trained]), most
