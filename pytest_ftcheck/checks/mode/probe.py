"""Run the model twice, in training and in evaluation mode: what is random when? And in which mode are its parts while it trains?"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...core.effect import Effect
from ...instruments.base_model import Inner, effect, find_inner, hidden_of, precision_of
from ...instruments.batches import row_count, split, take_rows
from ...instruments.parameter_roles import in_part
from ...instruments.probe import Probe, ProbeContext
from ...instruments.snapshots import quiet, same_bits
from ...instruments.tokens import find_tokens
from .record import DropoutSite, Modes, Statistics

#: Rows run twice, and iterations at the beginning, in the middle and at the end at which modes are read.
ROWS = 4
LOOKS = 3
#: Values of each parameter that are compared before and after the user's evaluation, about.
SAMPLED = 4096
#: Numbers of an input up to which it is compared from step to step.
CHECKED = 1_000_000
#: Values that a dropout takes out at least, where the same pattern twice means something.
LEAST_DROPPED = 8
#: Attributes that hold the rate of a dropout which a module applies itself.
RATES = ("dropout", "attention_dropout", "dropout_p", "dropout_rate", "hidden_dropout", "attn_dropout", "p")


@dataclass
class Site:
    """One place where something is dropped at random, while the run goes on."""

    name: str
    module: nn.Module
    kind: str
    rate: float
    #: The parameters around it, and the name of the module that has them: it matters while one of them is trained.
    owner: nn.Module
    place: str
    looks: int = 0
    off: list[int] = field(default_factory=list)


class ModesProbe(Probe):
    """Run the model twice, in training and in evaluation mode: what is random when?

    Modes are read right before and right after the step: a part counts as off when it is at both moments.
    """

    name = "modes"
    order = 20

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.sites = list(find_sites(context.model))
        middle = context.steps // 2
        self.when = {*range(LOOKS), *range(middle, middle + LOOKS), *range(context.steps - LOOKS, context.steps)}
        self.due = False
        self.open: tuple[int, bool, list[bool]] | None = None
        self.looked: list[int] = []
        self.root_off: list[int] = []
        self.norms = [_Norm(n, m, m.running_mean.detach().clone()) for n, m in batch_norms(context.model)]
        self.random_states: list[tuple[int, int]] = []
        self.given: int | None = None
        self.inputs: list[tuple[int, int]] = []
        self.listener: _Entries | None = None
        self.unmeasured: dict[str, str] = {}
        self.fields: dict[str, Any] = {}
        self.rows = min(ROWS, row_count(split(context.probe[0])[0]) or 0)

    def cost(self) -> float:
        """Two passes in each mode, and the user's evaluation once."""
        if self.context.evaluate is None:
            return 4.0 * self.rows
        held_out = self.context.held_out or self.context.probe
        return 4.0 * self.rows + sum(row_count(split(b)[0]) or 0 for b in held_out)

    def iteration(self, number: int, batch: Any) -> None:
        """Read the modes."""
        # with accumulation a step takes several iterations: until there is one, each is looked at
        self.due = self.due or number in self.when
        self.open = (number, self.context.model.training, [s.module.training for s in self.sites]) if self.due else None
        self.close()
        if self.due:
            self.listener = _Entries(self.context.model, self.context.device)
            self.given = _checksum(split(batch)[0])

    def stepped(self, number: int) -> None:  # noqa: ARG002
        """Read the modes again: off is what was off before the step and is off after it."""
        if self.open is None:
            return
        self.due = False
        if self.listener is not None:
            if self.listener.random is not None:
                self.random_states.append(self.listener.random)
            if self.listener.used is not None and self.given is not None:
                self.inputs.append((self.listener.used, self.given))
            self.close()
        for norm in self.norms:
            norm.looks += norm.module.training
        iteration, root, modes = self.open
        self.looked.append(iteration)
        if not root and not self.context.model.training:
            self.root_off.append(iteration)
        for site, on in zip(self.sites, modes, strict=True):
            if any(p.requires_grad for p in site.owner.parameters()):
                site.looks += 1
                if not on and not site.module.training:
                    site.off.append(iteration)

    def close(self) -> None:
        """No hook of ours is left."""
        if self.listener is not None:
            self.listener.remove()
            self.listener = None

    def after(self) -> None:
        """Twice in each mode, and the user's evaluation once."""
        model = self.context.model
        if self.rows:
            batch = take_rows(self.context.probe[0], range(self.rows))
            self._measure("evaluation", lambda: self._evaluation(batch))
            self._measure("training", lambda: self._training(batch))
        if self.context.evaluate is not None:
            model.train()  # a part that keeps to its own mode stays in it
            self._measure("evaluate", self._evaluate)

    def record(self) -> Modes | None:
        """What was measured."""
        alive = [t.name for t in self.context.tensors if t.gradients.max_norm > 0]
        return Modes(
            self.rows,
            tuple(self.looked),
            tuple(self.root_off),
            tuple(self._site(s, alive) for s in self.sites),
            random_states=tuple(s for s, _ in self.random_states),
            random_ends=tuple(e for _, e in self.random_states),
            inputs_used=tuple(u for u, _ in self.inputs),
            inputs_given=tuple(g for _, g in self.inputs),
            statistics=tuple(n.record() for n in self.norms if n.used() and n.looks == len(self.looked)),
            unmeasured=dict(self.unmeasured),
            **self.fields,
        )

    def _site(self, site: Site, alive: Sequence[str]) -> DropoutSite:
        part = "head" if in_part(site.name, self.context.head) else "base"
        # a teacher in evaluation mode is no part of what trains, whatever its requires_grad
        trained = any(not site.place or in_part(name, (site.place,)) for name in alive)
        looks, off = (site.looks, tuple(site.off)) if trained else (0, ())
        return DropoutSite(site.name, site.kind, site.rate, part, looks, off, trained)

    def _measure(self, part: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - one mode may fail where the other does not
            text = str(error).strip().splitlines()
            self.unmeasured[part] = f"{type(error).__name__}: {text[0][:160] if text else ''}"

    def _evaluation(self, batch: Any) -> None:
        """Evaluation mode: nothing should be random. Where something is: is it the base, and is that a library's?"""
        with quiet(self.context.model):
            found = self._twice(batch)
            if found is None:
                raise ValueError("the outputs are not finite")
            self.fields["evaluation"] = found
            if found.change == 0:
                return
            tokens = find_tokens(batch, self.context.intent.pad_token_id)
            if tokens is None:
                return
            for inner in find_inner(self.context.model):
                found = self._again(inner, batch, tokens.ids)
                if found is None:
                    continue
                self.fields["base"], self.fields["base_library"] = inner.name, inner.library
                self.fields["base_evaluation"] = found
                return

    def _again(self, inner: Inner, batch: Any, ids: torch.Tensor) -> Effect | None:
        """The base called twice with the very inputs that the model hands it: what comes before it may be random as well."""
        calls: list[tuple[Any, dict[str, Any]]] = []
        hook = inner.module.register_forward_pre_hook(lambda _m, a, k: calls.append((a, k)), with_kwargs=True)
        try:
            self.context.reader.logits(batch)
        finally:
            hook.remove()
        if not calls:
            return None
        args, kwargs = calls[0]
        one, two = (hidden_of(inner.module(*args, **kwargs), ids) for _ in range(2))
        return None if one is None or two is None else effect(one, two, None, precision_of(self.context.model))

    def _training(self, batch: Any) -> None:
        """Training mode: what is the model capable of?"""
        modes = [(m, m.training) for m in self.context.model.modules()]
        for module, _ in modes:
            module.training = True
        kind = (
            self.context.recipe.autocast if self.context.ours else None
        )  # in a type that is not the loop's a model might not run
        precision = torch.autocast(self.context.device.type, getattr(torch, kind)) if kind else contextlib.nullcontext()
        try:
            with precision, dropping(self.sites) as patterns:
                self.fields["training"] = self._twice(batch)
            self.fields["same_dropped"] = any(len(p) > 1 and len(set(p)) == 1 for p in patterns.values())
        finally:
            for module, mode in modes:
                module.training = mode

    def _twice(self, batch: Any) -> Effect | None:
        one, two = self.context.reader.logits(batch), self.context.reader.logits(batch)
        if one is None or two is None:
            raise ValueError("no logits are to be had from this model")
        return effect(one, two, None, precision_of(self.context.model))

    def _evaluate(self) -> None:
        """The user's evaluation: in which mode is the model when it is called there?"""
        model, evaluate = self.context.model, self.context.evaluate
        assert evaluate is not None
        before = {n: (_sample(p), p.requires_grad) for n, p in model.named_parameters() if p.device.type != "meta"}
        flags = [(p, p.requires_grad) for p in model.parameters()]
        try:
            with torch.enable_grad(), watched_modes(model, self.sites) as passes:
                evaluate(model)
                on = torch.is_grad_enabled()
            self.fields |= {
                "passes": len(passes),
                "passes_training": sum(training for training, _ in passes),
                "passes_random": sum(random for _, random in passes),
                "leaves_evaluation_mode": bool(passes) and not model.training,
                "leaves_gradients_off": not on,
            }
            now = {n: p for n, p in model.named_parameters() if n in before}
            self.fields["changes"] = tuple(n for n, p in now.items() if not same_bits(_sample(p), before[n][0]))
            self.fields["freezes"] = tuple(n for n, p in now.items() if p.requires_grad != before[n][1])
        finally:
            for p, flag in flags:
                if p.requires_grad != flag:
                    p.requires_grad_(flag)


@dataclass
class _Norm:
    """One batch normalisation while the run goes on."""

    name: str
    module: Any
    start: torch.Tensor
    batches: int | None = None
    looks: int = 0

    def __post_init__(self) -> None:
        self.batches = self._count()

    def _count(self) -> int | None:
        seen = getattr(self.module, "num_batches_tracked", None)
        return int(seen) if isinstance(seen, torch.Tensor) and seen.numel() == 1 else None

    def used(self) -> bool:
        """It saw batches in training mode."""
        return self.batches is not None and self.batches != self._count()

    def record(self) -> Statistics:
        now = self.module.running_mean
        changed = now is None or not same_bits(now.detach(), self.start)
        return Statistics(self.name, self.module.momentum, changed, self.looks)


class _Entries:
    """The model's last pass in training mode (those before it may be other probes'): the random states in which it began and ended,
    if it drew random numbers, and what it was given."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device = device
        self.random: tuple[int, int] | None = None
        self.used: int | None = None
        self._entered: int | None = None
        self._handles = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave),
        ]

    def _state(self) -> int:
        state = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()
        return zlib.crc32(state.numpy().tobytes())

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._entered = self._state() if module.training else None
        if module.training:
            self.used = _checksum((args, kwargs))

    def _leave(self, module: nn.Module, _args: Any, _out: Any) -> None:
        if module.training and self._entered is not None and (left := self._state()) != self._entered:
            self.random = self._entered, left

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _checksum(value: Any) -> int | None:
    """Of the first tensor of two dimensions or more in it; None: there is none."""
    if isinstance(value, torch.Tensor):
        if value.dim() < 2 or value.numel() > CHECKED:
            return None
        return zlib.crc32(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    items = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return next((c for v in items if (c := _checksum(v)) is not None), None)


def batch_norms(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Batch normalisations with running statistics, by name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            yield name, module


def _sample(p: torch.Tensor) -> torch.Tensor:
    """Values here and there of a tensor, those of a small one all of them."""
    return p.detach().reshape(-1)[:: max(1, p.numel() // SAMPLED)].clone()


@contextlib.contextmanager
def dropping(sites: Sequence[Site]) -> Iterator[dict[str, list[int]]]:
    """By dropout module, the pattern of what each of its calls takes out, if that is a fair number of values."""
    patterns: dict[str, list[int]] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_module: nn.Module, args: Any, out: Any) -> None:
            given = args[0] if args and isinstance(args[0], torch.Tensor) else None
            if given is None or not isinstance(out, torch.Tensor) or given.shape != out.shape or out.numel() > CHECKED:
                return
            gone = (out == 0) & (given != 0)
            if LEAST_DROPPED <= int(gone.sum()) < gone.numel():
                patterns.setdefault(name, []).append(zlib.crc32(gone.cpu().numpy().tobytes()))

        return look

    plain = [s for s in sites if isinstance(s.module, nn.modules.dropout._DropoutNd) and 0 < s.rate < 1]
    handles = [s.module.register_forward_hook(hook(s.name)) for s in plain]
    try:
        yield patterns
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def watched_modes(model: nn.Module, sites: list[Site]) -> Iterator[list[tuple[bool, bool]]]:
    """For every pass of the whole model inside the ``with``: is it in training mode, and is something in it random then?"""
    passes: list[tuple[bool, bool]] = []
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]

    def hook(_module: nn.Module, _args: Any) -> None:
        alive = any(s.module.training and s.rate > 0 for s in sites) or any(n.training for n in norms)
        passes.append((model.training, alive))

    handle = model.register_forward_pre_hook(hook)
    try:
        yield passes
    finally:
        handle.remove()


def find_sites(model: nn.Module) -> Iterator[Site]:
    """Every dropout of a model: modules of that kind, and modules with a rate that they apply themselves."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for name, module in modules.items():
        found = _rate(module)
        if found is None:
            continue
        place = name
        while place and next(modules[place].parameters(), None) is None:
            place = place.rpartition(".")[0]
        yield Site(name, module, *found, modules[place], place)


def _rate(module: nn.Module) -> tuple[str, float] | None:
    kind = type(module).__name__
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return kind, float(module.p)
    if isinstance(module, nn.RNNBase) and module.num_layers == 1:
        return None
    for attribute in RATES:
        value = module.__dict__.get(attribute)
        if isinstance(value, float) and not isinstance(value, bool) and 0 < value <= 1:
            return f"{kind}.{attribute}", value
    return None
