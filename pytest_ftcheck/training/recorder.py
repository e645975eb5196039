"""Watch an optimizer at work: what the gradients were, what moved, by how much, and what for.

Attached to torch's global step hooks, so that it sees whichever optimizer steps on the model's parameters; the hook after the
step is the one to rely on, for with a closure there are no gradients before it. Nothing is patched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer as TorchOptimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..core.observations import (
    Buffer,
    Gradients,
    Group,
    Histogram,
    Iteration,
    Motion,
    Optimizer,
    Statistics,
    Step,
    Tensor,
)
from ..instruments.optimizers import (
    Handling,
    Scheduling,
    chain,
    classes_of,
    decouples,
    family_of,
    name_of,
    rate_of,
    settings_of,
    state_steps,
)
from ..instruments.parameter_roles import in_part, roles
from ..instruments.sampled_elements import (
    LARGE_BASE,
    LARGE_HEAD,
    SAMPLE_HEAD,
    Tracked,
    gradient_norm,
    row_stride,
    sample_size,
)
from ..instruments.tensor_statistics import (
    digest,
    histogram_of,
    index_of,
    nonfinite,
    plain,
    rms,
    series,
    short,
    statistics,
)
from .external_writes import Writes, kept

#: Series of per-tensor numbers keep at most this many steps; then every second one goes, and so on.
SERIES = 1024


@dataclass
class _Iteration:
    loss: float | torch.Tensor | None = None
    step: int | None = None
    steps: int = 0
    training: bool = True
    backward_error: str | None = None


@dataclass
class _Step:
    iteration: int | None
    lrs: tuple[float, ...]
    total: float | torch.Tensor
    unclipped: float | torch.Tensor | None
    training: bool
    by_watched_optimizer: bool


@dataclass
class _Watched:
    """One parameter, and the running numbers that are not vectors."""

    name: str
    aliases: tuple[str, ...]
    parameter: nn.Parameter
    part: str
    role: str
    stride: int
    trainable: bool
    slot: int | None  # place among the tracked, None for those that cannot be (not floating point)
    digest: int | None
    initial: torch.Tensor | None  # exact copy of a head tensor too large to be tracked whole
    first: Statistics
    group: int | None = None
    first_step: int | None = None
    lr_sum: float = 0.0
    lr_peak: float = 0.0
    steps: int = 0
    none: int = 0
    entries: int = 1
    histograms: list[Histogram] = field(default_factory=list)


@dataclass
class _GroupSeen:
    first: float | None = None
    peak: float = 0.0
    total: float = 0.0


class Recorder:
    """Records every optimizer step on a model's parameters between :meth:`attach` and :meth:`detach`.

    The cost of a step does not depend on how many were recorded; no copy of the model is made.
    """

    def __init__(self, model: nn.Module, optimizer: TorchOptimizer, head: Sequence[str], scheduler: Any = None) -> None:
        self.model, self.optimizer, self.head = model, optimizer, tuple(head)
        self.family = family_of(optimizer)
        self.iterations: list[_Iteration] = []
        self.steps: list[_Step] = []
        self.unclipped: float | torch.Tensor | None = None
        self.other_optimizer_steps = 0
        self.watched = self._watch()
        live = [w for w in self.watched if w.slot is not None]
        self._live = live
        sizes = [sample_size(w.parameter, w.part, w.role) for w in live]
        self.tracked = Tracked([w.parameter for w in live], sizes)
        for w in live:
            if w.part == "head" and w.parameter.numel() > SAMPLE_HEAD:
                w.initial = w.parameter.detach().clone()
        t = self.tracked
        self._start = t.values(t.zeros())
        self._before, self._after = t.zeros(), self._start.clone()
        self._grads, self._touched = t.zeros(), t.zeros(torch.bool)
        self._pushed, self._decayed = t.zeros(), t.zeros()
        self._decay_momentum: torch.Tensor | None = None
        n, device = len(live), t.device
        self._zero = torch.zeros(n, dtype=torch.float32, device=device)
        self._bad = torch.zeros(n, dtype=torch.float32, device=device)
        self._first_nonzero = torch.full((n,), -1.0, dtype=torch.float32, device=device)
        self._first_bad = torch.full((n,), -1.0, dtype=torch.float32, device=device)
        self._max_norm = torch.zeros(n, dtype=torch.float32, device=device)
        self._last_norm = torch.zeros(n, dtype=torch.float32, device=device)
        self._shown = torch.full((n,), -1.0, dtype=torch.float32, device=device)
        self._max_push = torch.zeros(n, dtype=torch.float32, device=device)
        self._writes = Writes(t)
        self._rows: list[torch.Tensor] = []  # one a recorded step: norms of gradient, update and displacement
        self._recorded: list[int] = []
        self._every = 1
        self._groups: dict[int, _GroupSeen] = {}
        self._by_id = {id(w.parameter): w for w in self.watched}
        self._mine = chain(optimizer)
        self._held_now: set[int] = set()
        self._elsewhere: set[int] = set()  # tensors that other optimizers were seen to hold
        self._handling = Handling()
        self._scheduling = Scheduling(scheduler, self._mine, optimizer)
        self._open = False
        self._next_histogram = 0
        self._converted = 0
        self._handles: list[Any] = []
        self._buffers = [(n, b, digest(b)) for n, b in model.named_buffers()]
        self._histograms(-1, exact=True)
        self._map_groups(optimizer, 0)

    # ------------------------------------------------------------------ set-up
    def _watch(self) -> list[_Watched]:
        names: dict[int, list[str]] = {}
        parameters: dict[int, nn.Parameter] = {}
        for name, p in self.model.named_parameters(remove_duplicate=False):
            names.setdefault(id(p), []).append(name)
            parameters[id(p)] = p
        role = roles(self.model)
        found, slot = [], 0
        for key, (name, *aliases) in names.items():
            p = parameters[key]
            part = "head" if any(in_part(n, self.head) for n in (name, *aliases)) else "base"
            floating = p.is_floating_point() and p.device.type != "meta" and p.numel() > 0
            found.append(
                _Watched(
                    name=name,
                    aliases=tuple(aliases),
                    parameter=p,
                    part=part,
                    role=role.get(name, "matrix"),
                    stride=row_stride(p, LARGE_HEAD if part == "head" else LARGE_BASE),
                    trainable=p.requires_grad,
                    slot=slot if floating else None,
                    digest=None if p.requires_grad else digest(p),
                    initial=None,
                    first=statistics(p),
                )
            )
            slot += floating
        return found

    def attach(self) -> None:
        """Start to record."""
        self._handles = [
            register_optimizer_step_pre_hook(self._pre),
            register_optimizer_step_post_hook(self._post),
        ]

    def detach(self) -> None:
        """Stop recording; safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # ------------------------------------------------------------------ what the loop tells
    def begin(self) -> None:
        """A new iteration begins."""
        self.iterations.append(_Iteration(training=self.model.training))
        self._scheduling.begin()
        if len(self.iterations) - self._converted > 64:
            self._convert_losses(keep=1)

    def tell(self, loss: Any, broken: str | None = None) -> None:
        """The loss of the current iteration (kept as it is for now: reading it would make a GPU wait)."""
        current = self.iterations[-1]
        current.loss = loss.detach() if isinstance(loss, torch.Tensor) else loss if loss is None else float(loss)
        current.backward_error = broken
        current.training = self.model.training

    def _convert_losses(self, keep: int = 0) -> None:
        end = len(self.iterations) - keep
        for iteration in self.iterations[self._converted : end]:
            if isinstance(iteration.loss, torch.Tensor):
                iteration.loss = float(iteration.loss)
        self._converted = max(self._converted, end)
        for step in self.steps[-128:]:
            if isinstance(step.unclipped, torch.Tensor):
                step.unclipped = float(step.unclipped)

    # ------------------------------------------------------------------ hooks
    def _concerns(self, optimizer: TorchOptimizer) -> bool:
        if id(optimizer) in self._mine:
            return True
        return any(id(p) in self._by_id for g in optimizer.param_groups for p in g["params"])

    def _pre(self, optimizer: TorchOptimizer, *_: Any) -> None:
        if self._open or not self._concerns(optimizer):
            return  # nested: an optimizer whose step() calls its parent's
        self._open = True
        self.tracked.values(self._before)
        if not torch.equal(self._before, self._after):
            self._writes.seen(self._before, self._after, self._start, first=not self.steps)

    def _post(self, optimizer: TorchOptimizer, *_: Any) -> None:
        if not self._open or not self._concerns(optimizer):
            return
        self._open = False
        with torch.no_grad():
            self._record(optimizer)

    def _record(self, optimizer: TorchOptimizer) -> None:
        number = len(self.steps)
        mine = id(optimizer) in self._mine
        self.other_optimizer_steps += not mine
        lrs = tuple(rate_of(g) for g in optimizer.param_groups)
        held = self._map_groups(optimizer, number)
        self._handling.stepped(optimizer, held.keys() & self._by_id.keys())
        if mine:
            self._scheduling.stepping(first=number == 0 and len(self.iterations) == 1)
        for index, lr in enumerate(lrs if mine else ()):
            seen = self._groups.setdefault(index, _GroupSeen())
            seen.first = lr if seen.first is None else seen.first
            seen.peak, seen.total = max(seen.peak, lr), seen.total + lr
        norms = self._gradient_norms(lrs, held, mine)
        finite = torch.isfinite(norms)
        present = norms >= 0  # False for a NaN too, which is present all the same
        self._zero += norms == 0
        bad = ~finite
        self._bad += bad
        self._first_nonzero = torch.where((self._first_nonzero < 0) & ((norms > 0) | bad), number, self._first_nonzero)
        self._first_bad = torch.where((self._first_bad < 0) & bad, number, self._first_bad)
        self._max_norm = torch.where(present & finite, torch.maximum(self._max_norm, norms), self._max_norm)
        self._last_norm = torch.where(present | bad, norms, self._last_norm)

        # at another optimizer's step the series keeps what was there: the tensor is not without gradient
        self._shown = torch.where(norms == -2, self._shown, norms)

        t = self.tracked
        t.values(self._after)
        t.gradients(self._grads)
        self._touched |= self._grads != 0  # NaN != 0, as it should be
        update = self._after - self._before
        decay = self._decay(optimizer, lrs, held)
        push = update if decay is None else update - decay
        if decay is not None:
            self._decayed += decay
        self._pushed += push
        self._max_push = torch.maximum(self._max_push, torch.nan_to_num(t.norms(push)))
        if number % self._every == 0:
            self._rows.append(torch.stack([self._shown, t.norms(update), t.norms(self._after - self._start)]))
            self._recorded.append(number)
            if len(self._rows) >= SERIES:
                self._rows, self._recorded, self._every = (
                    self._rows[::2],
                    self._recorded[::2],
                    2 * self._every,
                )
        if number == self._next_histogram:
            self._histograms(number)
            self._next_histogram = max(number + 1, math.ceil(1.5 * number))
        iteration = None
        if self.iterations:
            iteration = len(self.iterations) - 1
            self.iterations[-1].step, self.iterations[-1].steps = number, self.iterations[-1].steps + 1
        total = torch.linalg.vector_norm(torch.where(present | bad, norms, 0.0))
        self.steps.append(_Step(iteration, lrs, total, self.unclipped, self.model.training, mine))
        self.unclipped = None
        if len(self.steps) % 64 == 0:  # small tensors cost more memory than numbers
            for step in self.steps[-64:]:
                step.total = float(step.total)

    def _gradient_norms(self, lrs: tuple[float, ...], held: dict[int, int], mine: bool) -> torch.Tensor:
        """L2 norm of each gradient that this step is about; -1: there is none; -2: another optimizer's tensor."""
        places, norms, others = [], [], []
        for place, w in enumerate(self._live):
            group = held.get(id(w.parameter))
            if group is None and (not mine or id(w.parameter) in self._elsewhere):
                others.append(place)
                continue
            w.steps += 1
            if group is not None:
                w.lr_sum += lrs[group]
                w.lr_peak = max(w.lr_peak, lrs[group])
            grad = w.parameter.grad
            if grad is None:
                w.none += 1
            else:
                places.append(place)
                norms.append(gradient_norm(grad, w.stride).to(self.tracked.device, torch.float32))
        if len(places) == len(self._live):
            return torch.stack(norms)
        out = torch.full((len(self._live),), -1.0, dtype=torch.float32, device=self.tracked.device)
        if places:
            out[torch.tensor(places, device=out.device)] = torch.stack(norms)
        if others:
            out[torch.tensor(others, device=out.device)] = -2.0
        return out

    def _map_groups(self, optimizer: TorchOptimizer, number: int) -> dict[int, int]:
        """Which tensors this optimizer holds, and in which group; remembers it of the one that is watched."""
        held: dict[int, int] = {}
        entries: dict[int, int] = {}
        for index, group in enumerate(optimizer.param_groups):
            for p in group["params"]:
                held.setdefault(id(p), index)
                entries[id(p)] = entries.get(id(p), 0) + 1
        if id(optimizer) not in self._mine:
            self._elsewhere |= held.keys()
            return held
        for w in self.watched:
            where = held.get(id(w.parameter))
            if where is not None:
                w.first_step = number if w.first_step is None else w.first_step
                w.group = where
                w.entries = entries[id(w.parameter)]
        return held

    def _decay(self, optimizer: TorchOptimizer, lrs: tuple[float, ...], held: dict[int, int]) -> torch.Tensor | None:
        """What weight decay did at this step: exact where it is decoupled, and for SGD; None: nothing, or not separable."""
        separable = []
        for group in optimizer.param_groups:
            wd, decoupled = float(group.get("weight_decay") or 0.0), decouples(optimizer, group)
            momentum = 0.0 if decoupled else float(group.get("momentum") or 0.0)
            separable.append((wd, momentum) if wd and (decoupled or family_of(optimizer) == "sgd") else None)
        if not any(separable):
            return None
        out = self.tracked.zeros()
        if self._decay_momentum is None and any(s and s[1] for s in separable):
            self._decay_momentum = self.tracked.zeros()
        before, places = self.tracked.split(self._before), self.tracked.split(out)
        buffers = self.tracked.split(self._decay_momentum) if self._decay_momentum is not None else None
        for place, w in enumerate(self._live):
            index = held.get(id(w.parameter))
            # torch's optimizers pass over a parameter that has no gradient, decay and all
            settings = separable[index] if index is not None and w.parameter.grad is not None else None
            if settings is None or index is None:
                continue
            wd, momentum = settings
            if momentum and buffers is not None:
                group, buffer = optimizer.param_groups[index], buffers[place]
                first = w.first_step == len(self.steps)
                buffer.mul_(momentum).add_(
                    before[place], alpha=wd * (1 if first else 1 - float(group.get("dampening", 0)))
                )
                pull = before[place] * wd + momentum * buffer if group.get("nesterov") else buffer
                torch.mul(pull, -lrs[index], out=places[place])
            else:
                torch.mul(before[place], -lrs[index] * wd, out=places[place])
        return out

    def _histograms(self, number: int, *, exact: bool = False) -> None:
        values = self._start if number < 0 else self._after
        for w, sample in zip(self._live, self.tracked.split(values), strict=True):
            if w.trainable:
                source = w.parameter.detach().reshape(-1).float() if exact and w.part == "head" else sample
                if (histogram := histogram_of(number, source)) is not None:
                    w.histograms.append(histogram)

    # ------------------------------------------------------------------ the end
    def finish(self) -> dict[str, Any]:
        """The fields of a `Trace` that this recorder knows."""
        self._convert_losses()
        t = self.tracked
        final, ended, alive = t.values(t.zeros()), self._after, self._writes.standing(self._after)
        if not torch.equal(final, self._after):
            self._writes.after_the_last_step(final, self._after)
        rows = torch.stack(self._rows).cpu().double() if self._rows else torch.zeros(0, 3, len(self._live))
        exact = max(len(self.steps) - 1, 0)
        now = dict(self.model.named_parameters(remove_duplicate=False))
        self._held_now = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        vectors = {
            k: v.tolist()
            for k, v in {
                "zero": self._zero,
                "bad": self._bad,
                "first_nonzero": self._first_nonzero,
                "first_bad": self._first_bad,
                "max_norm": self._max_norm,
                "last_norm": self._last_norm,
                "max_push": self._max_push,
                "outside": self._writes.squares,
                "writes": self._writes.count,
                "largest_write": self._writes.largest,
                "resets": self._writes.resets,
            }.items()
        }
        pieces = [t.split(v) for v in (self._start, final, self._touched, self._pushed, self._decayed, ended, alive)]
        if self.steps:
            self._after = final
            for w in self.watched:
                if w.histograms and w.histograms[-1].step == exact:
                    w.histograms.pop()
            self._histograms(exact, exact=True)
        tensors = tuple(
            self._tensor(w, now, vectors, [p[w.slot] for p in pieces], rows[:, :, w.slot])
            if w.slot is not None
            else self._untracked(w, now)
            for w in self.watched
        )
        return {
            "head": self.head,
            "optimizer": self._optimizer(),
            "iterations": tuple(
                Iteration(plain(i.loss), i.step, i.steps, i.training, i.backward_error) for i in self.iterations
            ),
            "steps": tuple(
                Step(s.iteration, s.lrs, short(float(s.total)), plain(s.unclipped), s.training, s.by_watched_optimizer)
                for s in self.steps
            ),
            "recorded": tuple(self._recorded),
            "tensors": tensors,
            "buffers": self._buffer_records(),
        }

    def _tensor(
        self,
        w: _Watched,
        now: dict[str, nn.Parameter],
        v: dict[str, list[float]],
        pieces: list[torch.Tensor],
        rows: torch.Tensor,
    ) -> Tensor:
        slot, p = w.slot, w.parameter
        assert slot is not None
        start, final, touched, pushed, decayed, ended, alive = pieces
        hit = int(touched.sum())
        share = hit / max(1, touched.numel())
        if w.initial is not None:
            a, b = w.initial.reshape(-1).float(), p.detach().reshape(-1).float()
        else:
            a, b = start, final
        # an element that never got a gradient was moved by something else, whatever the optimizer calls it
        by_gradient = rms(pushed[touched]) if hit else 0.0
        by_decay = rms(decayed) if hit else rms(pushed + decayed)
        delta = b - a
        norm_a = float(torch.linalg.vector_norm(a))
        scale = 1 / math.sqrt(max(1, touched.numel()))
        motion = Motion(
            elements=delta.numel(),
            share_changed=int(torch.count_nonzero(delta)) / max(1, delta.numel()),
            share_with_gradient=share,
            rms=rms(delta),
            largest=float(delta.abs().max()),
            relative=float(torch.linalg.vector_norm(delta)) / norm_a if norm_a > 0 else None,
            by_gradient=by_gradient,
            by_decay=by_decay,
            between_steps=math.sqrt(v["outside"][slot]) * scale,
            max_update=v["max_push"][slot] / math.sqrt(max(1, hit)),
            wasserstein=float((a.sort().values - b.sort().values).abs().mean()),
            between_steps_writes=int(v["writes"][slot]),
            between_steps_largest=v["largest_write"][slot] * scale,
            resets=int(v["resets"][slot]),
            retained=kept(ended, start, pushed + decayed, alive),
        )
        gradients = Gradients(
            steps=w.steps,
            none=w.none,
            zero=int(v["zero"][slot]),
            nonfinite=int(v["bad"][slot]),
            first_nonzero=index_of(v["first_nonzero"][slot]),
            first_nonfinite=index_of(v["first_bad"][slot]),
            max_norm=v["max_norm"][slot],
            last_norm=v["last_norm"][slot],
            max_rms=v["max_norm"][slot] / math.sqrt(max(1.0, share * p.numel())),
            stride=w.stride,
        )
        return self._described(
            w,
            now,
            unchanged=None if w.digest is None else w.digest == digest(p),
            gradients=gradients,
            motion=motion,
            grad_norms=series(rows[:, 0]),
            updates=series(rows[:, 1] * scale),
            displacements=series(rows[:, 2] * scale),
            histograms=tuple(w.histograms),
        )

    def _untracked(self, w: _Watched, now: dict[str, nn.Parameter]) -> Tensor:
        same = w.digest == digest(w.parameter)
        return self._described(
            w,
            now,
            unchanged=same,
            gradients=Gradients(len(self.steps), len(self.steps), 0, 0, None, None, 0.0, 0.0, 0.0),
            motion=Motion(0, float(not same), 0.0, 0.0, 0.0, None, 0.0, 0.0, 0.0, 0.0, 0.0),
        )

    def _described(self, w: _Watched, now: dict[str, nn.Parameter], **measured: Any) -> Tensor:
        """What is known of a tensor without measuring it at every step, and what was measured."""
        p, here = w.parameter, now.get(w.name)
        return Tensor(
            name=w.name,
            aliases=w.aliases,
            part=w.part,
            role=w.role,
            shape=tuple(p.shape),
            dtype=str(p.dtype).removeprefix("torch."),
            trainable=w.trainable,
            trainable_last=p.requires_grad,
            group=w.group,
            first_step=w.first_step,
            lr_sum=w.lr_sum,
            lr_peak=w.lr_peak,
            replaced=here is not p,
            entries=w.entries,
            in_other_optimizer=id(p) in self._elsewhere,
            orphaned=here is not None and here is not p and id(here) not in self._held_now | self._elsewhere,
            first=w.first,
            last=statistics(p),
            **measured,
        )

    def _optimizer(self) -> Optimizer:
        groups, known = list[Group](), set[int]()
        for index, group in enumerate(self.optimizer.param_groups):
            seen = self._groups.get(index, _GroupSeen())
            now = rate_of(group)
            members = [id(p) for p in group["params"]]
            unique = set(members)
            mine = sum(i in self._by_id for i in unique)
            duplicates = len(members) - len(unique - known)
            known |= unique
            groups.append(
                Group(
                    index=index,
                    lr_first=now if seen.first is None else seen.first,
                    lr_peak=seen.peak if seen.first is not None else now,
                    lr_sum=seen.total,
                    weight_decay=float(group.get("weight_decay") or 0.0),
                    settings=settings_of(group),
                    tensors=mine,
                    not_in_model=len(unique) - mine,
                    duplicates=duplicates,
                    decoupled=decouples(self.optimizer, group),
                )
            )
        held = [w for w in self._live if w.group is not None and w.steps > w.none]
        held.sort(key=lambda w: w.none - w.steps)  # those that had a gradient most often
        return Optimizer(
            name_of(self.optimizer),
            self.family,
            tuple(groups),
            self.other_optimizer_steps,
            classes=classes_of(self.optimizer),
            rebuilt=self._handling.rebuilt,
            state_steps=state_steps(self.optimizer, [w.parameter for w in held]),
            gradient_steps=max((w.steps - w.none for w in held), default=0),
            scheduler=self._scheduling.name,
            scheduler_of_other_optimizer=self._scheduling.elsewhere,
            scheduler_stepped_first=self._scheduling.ahead,
        )

    def _buffer_records(self) -> tuple[Buffer, ...]:
        frozen = {w.name: not w.trainable and not w.parameter.requires_grad for w in self.watched}
        for w in self.watched:
            frozen.update(dict.fromkeys(w.aliases, frozen[w.name]))
        now = dict(self.model.named_buffers())
        return tuple(
            Buffer(
                name=name,
                part="head" if in_part(name, self.head) else "base",
                frozen=_lives_in_frozen(name, frozen),
                unchanged=name in now and digest(now[name]) == was,
                nonfinite=nonfinite(now[name]) if name in now else 0,
            )
            for name, _, was in self._buffers
        )


def _lives_in_frozen(buffer: str, frozen: dict[str, bool]) -> bool:
    """Whether the innermost module around the buffer that has parameters has only frozen ones."""
    prefix = buffer
    while prefix:
        prefix = prefix.rpartition(".")[0]
        inside = [f for n, f in frozen.items() if not prefix or n.startswith(prefix + ".")]
        if inside:
            return all(inside)
    return False
