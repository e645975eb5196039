"""Train many copies of a head at once, each with its own initial weights, learning rate and seed.

Heads are computed in groups that fit into the cache, all steps of one group before the next. That makes it fast, more than the number of
heads in one product does. Groups are spread over as many threads as torch is set to use, each computing with one.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from ..instruments.environment import thread_share
from ..instruments.global_state import GlobalHooks, GlobalState
from ..instruments.inference import InferenceMode
from ..instruments.undo import Undo
from .batched_heads import BufferPool, StackedHeads, losses_of, parameters_of
from .batched_optimizers import Adam, Sgd, clip
from .features import Features
from .jobs import Job, Plan, Run, judged_rows, order_of, schemes_first, std
from .layers import Layer, Unstackable, read_layers, template_of
from .one_by_one import labels_by_output, train_one_by_one

#: Bytes of one group of heads (weights, gradients, two moments). Measured with benchmarks/inits.py on heads of 148,000 weights: from
#: 8 to 40 MB a step of a head takes the same time; from 60 MB on it takes 1.5 times as long: they no longer fit into the caches.
GROUP_BYTES = 24 * 2**20
#: Heads in a group, at most: beyond that, the overhead of a call no longer matters, and activations grow.
GROUP_HEADS = 256
#: With fewer heads a seed, heads of several seeds are computed together, though each has rows of its own.
SHARED = 4
#: Bytes of initial weights that are kept for other learning rates with the same scheme and seed.
KEPT_BYTES = 128 * 2**20
#: Optimizers that `batched_optimizers` has.
BATCHED_OPTIMIZERS = ("adamw", "adam", "sgd")
VECTORISED = "vectorised"


def train_heads(
    head: nn.Module,
    features: Features,
    jobs: Sequence[Job],
    plan: Plan,
    *,
    vectorise: bool = True,
    group: int | None = None,
) -> tuple[list[Run], str]:
    """The runs of all jobs, in their order, and how they were computed: ``vectorised``, or ``one by one: ...`` with the reason.

    The head is not changed, nor any random state. Rows come in the same order either way; dropout masks are drawn from a generator of
    the job's seed, and are not those of ``nn.Dropout`` (without dropout both ways agree to rounding).

    :param group: heads in a group; None: as many as fit `GROUP_BYTES`.
    :raises ValueError: the head does not take these features.
    """
    return Undo(GlobalState(), GlobalHooks()).after(lambda: _train_heads(head, features, jobs, plan, vectorise, group))


def _train_heads(
    head: nn.Module, features: Features, jobs: Sequence[Job], plan: Plan, vectorise: bool, group: int | None
) -> tuple[list[Run], str]:
    with InferenceMode(False):
        template = template_of(head)
        layers, reason = _read(template, features, plan) if vectorise else ((), "vectorise=False")
        if reason:
            return list(train_one_by_one(head, features, jobs, plan)), f"one by one: {reason}"
        groups = _groups(jobs, group or _heads_in_a_group(layers))
        trainer = _GroupTrainer(template, layers, features, plan)
        return _train_groups(trainer, jobs, groups), VECTORISED


def _read(template: nn.Module, features: Features, plan: Plan) -> tuple[tuple[Layer, ...], str]:
    """The layers of a copy of the head, whose weights the schemes set; or why they cannot be stacked."""
    try:
        layers = read_layers(template)
        _check_shapes(layers, features)
    except Unstackable as why:
        return (), str(why)
    if plan.recipe.optimizer not in BATCHED_OPTIMIZERS:
        return (), f"{plan.recipe.optimizer!r} has no batched version ({', '.join(BATCHED_OPTIMIZERS)} have)"
    return layers, ""


def _train_groups(trainer: _GroupTrainer, jobs: Sequence[Job], groups: Sequence[Sequence[int]]) -> list[Run]:
    """The runs of all groups, in threads. On Ctrl-C each thread ends after its step."""
    found: dict[int, Run] = {}
    # a GPU has one queue: further threads would wait for it
    workers = min(thread_share(), len(groups)) if trainer.x.device.type == "cpu" else 1
    torch.set_num_threads(1)  # ours compute with one each; the caller restores the number
    with ThreadPoolExecutor(workers, "ftcheck", initializer=_flush_denormals) as pool:
        try:
            for numbers, runs in zip(
                groups, pool.map(lambda g: trainer.train([jobs[i] for i in g]), groups), strict=True
            ):
                found.update(zip(numbers, runs, strict=True))
        finally:
            trainer.stop.set()
            pool.shutdown(cancel_futures=True)  # skip the groups that are left
    return [found[i] for i in range(len(jobs))]


def seeds_of_a_task(
    head: nn.Module, features: Features, seeds: Sequence[int], jobs_a_seed: int, plan: Plan, *, vectorise: bool
) -> list[tuple[int, ...]]:
    """The seeds in parts that can be trained apart from each other, each in the groups that `train_heads` makes of all of them.

    :raises ValueError: the head does not take these features.
    """
    layers, reason = _read(template_of(head), features, plan) if vectorise else ((), "vectorise=False")
    most = 1 if reason else _heads_in_a_group(layers)
    if reason or jobs_a_seed >= min(SHARED, most):
        return [(seed,) for seed in seeds]
    ordered, size = sorted(seeds), most // math.gcd(most, jobs_a_seed)  # so many seeds fill whole groups
    return [tuple(ordered[i : i + size]) for i in range(0, len(ordered), size)]


def _check_shapes(layers: Sequence[Layer], features: Features) -> None:
    """:raises ValueError: the first layer takes another width, or the last gives another number of outputs."""
    matrices = [parameters_of([layer])[0] for layer in layers if layer.kind == "linear"]
    takes, outputs, classes = matrices[0].shape[1], matrices[-1].shape[0], features.classes
    if takes != features.width:
        raise ValueError(f"head: its first linear layer takes {takes} features, those given have {features.width}")
    expected = features.y.shape[1] if features.y.dim() == 2 else 1 if features.task == "regression" else classes or 2
    one_logit = features.task == "single_label" and outputs == 1 and (classes or 2) == 2
    enough = outputs >= expected if features.task == "single_label" and outputs > 1 else outputs == expected
    if not enough and not one_logit:
        raise ValueError(f"head: its last linear layer gives {outputs} outputs, the labels need {expected}")


def _heads_in_a_group(layers: Sequence[Layer]) -> int:
    each = 4 * sum(p.numel() * p.element_size() for layer in layers for p in layer.tensors())
    return max(1, min(GROUP_HEADS, GROUP_BYTES // max(1, each)))


def _groups(jobs: Sequence[Job], most: int) -> list[list[int]]:
    """Numbers of the jobs that are computed together: of one seed where it has enough jobs, so that all heads share their rows."""
    ordered = schemes_first(jobs)
    by_seed: dict[int, list[int]] = {}
    for i in ordered:
        by_seed.setdefault(jobs[i].seed, []).append(i)
    out, rest = [], []
    for mine in by_seed.values():
        if len(mine) >= min(SHARED, most):
            parts = -(-len(mine) // most)
            out += [mine[round(k * len(mine) / parts) : round((k + 1) * len(mine) / parts)] for k in range(parts)]
        else:
            rest += mine
    return out + [rest[i : i + most] for i in range(0, len(rest), most)]


# ---------------------------------------------------------------------- threads
def _flush_denormals() -> None:
    """Numbers below 1e-38 become zero, in this thread alone: the squared gradients of a confident head are such numbers, and a
    processor takes ten times as long for each of them."""
    torch.set_flush_denormal(True)


# ---------------------------------------------------------------------- one group
class _Stopped(Exception):
    """The caller was interrupted, so this group is of no use."""


@dataclass
class _Start:
    """Initial weights under one scheme and seed, and their loss and logits before training."""

    tensors: list[torch.Tensor]
    loss: float
    logits: torch.Tensor
    stds: tuple[float, float]


class _GroupTrainer:
    """Trains groups of heads, and holds what they share; used by several threads at once."""

    def __init__(self, template: nn.Module, layers: Sequence[Layer], features: Features, plan: Plan) -> None:
        self.template, self.layers, self.features, self.plan = template, layers, features, plan
        x, y = judged_rows(*features.judged[:2])
        self.dtype = next(p.dtype for layer in layers if layer.kind == "linear" for p in layer.tensors())
        self.x, self.y = features.x.to(self.dtype), features.y
        self.columns = self.x.t().contiguous()
        self.judged_x, self.judged_y = x.to(self.dtype).t().contiguous(), labels_by_output(y)
        #: Set: the group that is trained ends after its step.
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._pools = threading.local()
        self._starts: OrderedDict[tuple[object, int], _Start] = OrderedDict()
        self.own = parameters_of(layers)
        firsts = [layer.kind == "linear" and i == 0 for layer in layers for i, _ in enumerate(layer.tensors())]
        matrices = [i for i, is_matrix in enumerate(firsts) if is_matrix]
        self.ends = matrices[0], matrices[-1]

    def start(self, job: Job) -> _Start:
        """Initial weights of a job; drawn once for all learning rates."""
        key = (job.scheme, job.seed if job.scheme is not None else 0)
        with self._lock:  # the template is written to
            if key in self._starts:
                self._starts.move_to_end(key)
                return self._starts[key]
            if job.scheme is None:
                tensors = self.own
            else:
                job.scheme.apply(self.template, seed=job.seed)
                tensors = parameters_of(self.layers)
            start = self._measure_start(tensors)
            self._starts[key] = start
            each = sum(t.numel() * t.element_size() for t in tensors)
            while len(self._starts) > max(1, KEPT_BYTES // each):
                self._starts.popitem(last=False)
            return start

    def _measure_start(self, tensors: list[torch.Tensor]) -> _Start:
        with torch.no_grad():
            logits = StackedHeads(self.layers, [tensors]).forward(self.judged_x)
            loss = float(losses_of(self.features.task, logits, self.judged_y)[0])
            stds = tuple(std(tensors[i]) for i in self.ends)
        return _Start(tensors, loss, logits[0].t().cpu(), (stds[0], stds[1]))

    def train(self, jobs: Sequence[Job]) -> list[Run]:
        """All steps of one group of heads."""
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(self.x.device.type, enabled=False):
            starts = [self.start(job) for job in jobs]
            pool: BufferPool = self._pools.__dict__.setdefault("pool", BufferPool())
            heads = StackedHeads(self.layers, [s.tensors for s in starts], pool)
            return self._train(jobs, starts, heads, pool)

    def _optimizer(self, heads: StackedHeads, lrs: Sequence[float], pool: BufferPool) -> Adam | Sgd:
        recipe = self.plan.recipe
        if recipe.optimizer == "sgd":
            return Sgd(heads.trained, lrs, recipe.weight_decay, momentum=self.plan.momentum)
        return Adam(heads.trained, lrs, recipe.weight_decay, decoupled=recipe.optimizer == "adamw", pool=pool)

    def _train(self, jobs: Sequence[Job], starts: Sequence[_Start], heads: StackedHeads, pool: BufferPool) -> list[Run]:
        recipe, task = self.plan.recipe, self.features.task
        batches = _Batches(self.x, self.columns, self.y, [j.seed for j in jobs], self.plan)
        optimizer = self._optimizer(heads, [j.lr for j in jobs], pool)
        masks = _Masks(self.layers, batches, self.x.device) if heads.drops else None
        evaluated = set(self.plan.evaluated_steps)
        losses, descents, norms = [], [], torch.zeros(len(jobs))
        for step in range(recipe.steps):
            if self.stop.is_set():
                raise _Stopped
            x, y = batches.take()
            # up to the first dropout training and evaluation are the same: computed once
            middle = heads.forward(x, last=heads.prefix) if masks is not None and heads.prefix else x
            done = heads.prefix if masks is not None else 0
            each = losses_of(task, heads.forward(middle, masks, first=done), y)
            before = each.detach()
            if step in evaluated and masks is not None:
                with torch.no_grad():
                    before = losses_of(task, heads.forward(middle.detach(), first=done), y)
            each.sum().backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                if recipe.max_grad_norm is not None or step == 0:
                    total = clip(heads.trained, recipe.max_grad_norm)
                    norms = total if step == 0 else norms
                optimizer.step(recipe.lr_factor(step))
                losses.append(each.detach())
                if step in evaluated:
                    descents.append((step, before, losses_of(task, heads.forward(x), y)))
        with torch.no_grad():
            return self._measure(starts, heads, losses, descents, norms)

    def _measure(
        self,
        starts: Sequence[_Start],
        heads: StackedHeads,
        losses: list[torch.Tensor],
        descents: list[tuple[int, torch.Tensor, torch.Tensor]],
        norms: torch.Tensor,
    ) -> list[Run]:
        dead: list[torch.Tensor] = []
        logits = heads.forward(self.judged_x, dead=dead)
        last = losses_of(self.features.task, logits, self.judged_y).tolist()
        share = torch.cat(dead, dim=1).double().mean(1).tolist() if dead else [None] * heads.heads
        curves = torch.stack(losses).t().tolist()
        finite = torch.stack([torch.isfinite(torch.linalg.vector_norm(v.flatten(1), dim=1)) for v in heads.values]).all(
            0
        )
        finite &= torch.isfinite(logits).flatten(1).all(1)
        befores = torch.stack([b for _, b, _ in descents]).t().tolist()
        afters = torch.stack([a for _, _, a in descents]).t().tolist()
        steps = [s for s, _, _ in descents]
        moved = []
        for end in self.ends:
            pairs = zip(heads.values[end], (s.tensors[end] for s in starts), strict=True)
            moved.append([float(torch.dist(now, begun)) / now.numel() ** 0.5 for now, begun in pairs])
        rows = logits.transpose(1, 2).cpu()
        return [
            Run(
                losses=tuple(curves[k]),
                first=starts[k].loss,
                last=last[k],
                descents=tuple(zip(steps, befores[k], afters[k], strict=True)),
                grad_norm=float(norms[k]),
                std_first=starts[k].stds[0],
                std_last=starts[k].stds[1],
                moved_first=moved[0][k],
                moved_last=moved[1][k],
                dead=share[k],
                finite=bool(finite[k]) and all(map(math.isfinite, curves[k])),
                logits_first=starts[k].logits,
                logits_last=rows[k],
            )
            for k in range(heads.heads)
        ]


class _Batches:
    """Rows of every step, shared by all heads of a group where they have one seed."""

    def __init__(
        self, x: torch.Tensor, columns: torch.Tensor, y: torch.Tensor, seeds: Sequence[int], plan: Plan
    ) -> None:
        self.x, self.y, self.columns = x, y, columns
        self.seeds = list(dict.fromkeys(seeds))
        #: For every head the number of its seed.
        self.of_head = torch.tensor([self.seeds.index(s) for s in seeds], device=x.device)
        self.orders = [order_of(len(x), plan.batch_size, plan.recipe.steps, s) for s in self.seeds]

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the next step ``[width, rows]`` and labels, or with the heads in front."""
        rows = torch.stack([next(order) for order in self.orders]).to(self.x.device)
        if len(self.seeds) == 1:
            return self.columns.index_select(1, rows[0]), labels_by_output(self.y[rows[0]])
        x, y = self.x[rows].transpose(1, 2)[self.of_head], self.y[rows][self.of_head]
        return x.contiguous(), y.transpose(1, 2) if y.dim() == 3 else y


class _Masks:
    """Dropout masks: for each seed from a generator of its own, so that they do not depend on how heads are grouped."""

    def __init__(self, layers: Sequence[Layer], batches: _Batches, device: torch.device) -> None:
        self.layers, self.batches, self.device = layers, batches, device
        self.generators = [torch.Generator(device=device).manual_seed(s) for s in batches.seeds]

    def __call__(self, number: int, values: torch.Tensor) -> torch.Tensor:
        """Factors for the values ``[..., units, rows]`` of one layer: 0 or 1 / (1 - p)."""
        rate = self.layers[number].rate
        if rate >= 1:
            return torch.zeros_like(values)
        masks = [
            torch.rand(values.shape[-2:], generator=g, device=self.device, dtype=values.dtype).ge_(rate).div_(1 - rate)
            for g in self.generators
        ]
        return masks[0] if len(masks) == 1 else torch.stack(masks)[self.batches.of_head]
