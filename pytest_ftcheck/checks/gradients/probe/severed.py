"""Of tensors without gradient: does the output depend on them all the same, and does a zero somewhere shut their branch?"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ....core.formatting import block_of
from ....core.observations import Tensor
from ....instruments.batches import Reader, row_count, split, take_rows
from ....instruments.snapshots import perturbed, preserved_globals, quiet
from ..record import Silent

#: Rows looked at.
ROWS = 8
#: Strides of the perturbation, as a share of the tensor's own rms: one within which a smooth function changes smoothly, and one that
#: crosses the steps of a comparison, a rounding or an argmax.
NEAR, FAR = 0.02, 1.0
#: For a tensor of zeros, the rms of the perturbation.
FROM_ZERO = 0.02
#: Places looked at one by one, at most; more are put together.
PLACES = 12
#: Elements of which a copy is made, at most.
MOST = 300_000_000
#: Gates tried one by one, at most.
GATES = 8
#: Elements of a buffer that may be a gate, at most.
SMALL = 4096
#: Gradients of exactly zero at this share of the steps are looked at, of so many steps, ...
MOSTLY, MANY = 2 / 3, 10
#: ... if on the probe they are this small beside the largest element of any.
NOTHING = 1e-10
#: Attributes that may multiply a branch, if they are zero.
_FACTOR = re.compile(r"gate|scal|alpha|gamma|lambda|lamb|coef|factor|strength|weight|mix|residual|beta", re.IGNORECASE)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Gate = tuple[str, Callable[[], None]]


class SilentTensors:
    """What is to be known of the tensors that had no gradient, or one of exactly zero, at any step."""

    def __init__(self, model: nn.Module, reader: Reader, batch: Any) -> None:
        rows = row_count(split(batch)[0]) or 0
        self.model, self.reader = model, reader
        self.batch = take_rows(batch, range(ROWS)) if rows > ROWS else batch
        self.shut = {name for name, _ in _gates(model)}

    def look(self, tensors: Sequence[Tensor]) -> list[Silent]:
        """One `Silent` for each place whose tensors matter, or would if a gate were open; nothing for those that nothing depends on."""
        loudest = max((_share(t) for t in tensors if t.gradients.max_norm > 0), default=0.0)
        alive = loudest > 0
        silent = [t for t in tensors if _is_silent(t, loudest)]
        named = dict(self.model.named_parameters())
        silent = [t for t in silent if t.name in named and named[t.name].is_floating_point()]
        if not silent or not alive or sum(t.numel for t in silent) > MOST:
            return []
        found = []
        own = self._own_gradients([named[t.name] for t in silent])
        kept = [
            (t, g) for t, g in zip(silent, own, strict=True) if g == 0
        ]  # else the loop takes away what backward gives
        if kept:
            found += self._dependent([t for t, _ in kept], named)
        told = {n for s in found for n in s.tensors}
        shut = [t for t, _ in kept if _kind(t) == "zero" and t.name not in told]
        return found + (self._gated(shut, named) if shut else [])

    # ------------------------------------------------------------------ gradients
    def _own_gradients(self, parameters: Sequence[nn.Parameter]) -> list[float]:
        with quiet(self.model, grad=True), preserved_globals():
            loss = self.reader.loss(self.batch)[0]
            if not loss.requires_grad:
                return [math.nan] * len(parameters)
            grads = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        return [0.0 if g is None else float(_dense(g).abs().max()) for g in grads]

    # ------------------------------------------------------------------ dependence
    def _dependent(self, tensors: Sequence[Tensor], named: dict[str, nn.Parameter]) -> list[Silent]:
        here, again = self._logits(), self._logits()
        size = float(here.square().mean().sqrt()) if here is not None else 0.0
        if here is None or again is None or not math.isfinite(size) or size == 0:
            return []
        floor = float((here - again).abs().max()) / size

        def change(names: Sequence[str], stride: float) -> float:
            chosen = [named[n] for n in names]
            generator = torch.Generator().manual_seed(9173)  # ours: the user's random state is not drawn from
            with perturbed(chosen), torch.no_grad():
                for p in chosen:
                    rms = float(p.detach().float().square().mean().sqrt())
                    noise = torch.randn(p.shape, generator=generator) * (stride * (rms or FROM_ZERO))
                    p.data.add_(noise.to(p.device, p.dtype))
                there = self._logits()
            moved = float("nan") if there is None else float((there - here).abs().max()) / size
            return moved if math.isfinite(moved) else 0.0

        least = max(LEAST, MARGIN * floor)
        if change([t.name for t in tensors], FAR) <= least:
            return []
        found = []
        for kind in ("none", "zero", "seldom"):
            for names in _places([t.name for t in tensors if _kind(t) == kind]):
                far = change(names, FAR)
                if far > least:
                    hooked = any(_hooked(named[n]) for n in names)
                    found.append(Silent(tuple(names), kind, change(names, NEAR), far, floor, hooked))
        return found

    def _logits(self) -> torch.Tensor | None:
        with quiet(self.model), preserved_globals():
            logits = self.reader.logits(self.batch)
        return logits.detach().double().cpu() if isinstance(logits, torch.Tensor) else None

    # ------------------------------------------------------------------ gates
    def _gated(self, tensors: Sequence[Tensor], named: dict[str, nn.Parameter]) -> list[Silent]:
        gates = [(name, open_) for name, open_ in _gates(self.model) if name in self.shut]
        parameters = [named[t.name] for t in tensors]
        if not gates or not any(self._opened(gates, parameters)):
            return []
        left, found = list(tensors), []
        for gate in gates[:GATES]:
            reached = self._opened([gate], [named[t.name] for t in left])
            names = tuple(t.name for t, r in zip(left, reached, strict=True) if r)
            if names:
                found.append(Silent(names, "zero", 0.0, 0.0, 0.0, False, gate[0]))
                left = [t for t in left if t.name not in names]
            if not left:
                break
        return found

    def _opened(self, gates: Sequence[Gate], parameters: Sequence[nn.Parameter]) -> list[bool]:
        with _kept(self.model):
            with torch.no_grad():
                for _, open_ in gates:
                    open_()
            try:
                return [math.isfinite(g) and g > 0 for g in self._own_gradients(parameters)]
            except Exception:  # noqa: BLE001 - the attribute was no factor
                return [False] * len(parameters)


#: The output depends on a tensor if perturbing it changes the logits by this share of their rms: what is not used changes no bit.
LEAST = 1e-3
#: ... and by this many times what two calls with the same input differ by.
MARGIN = 10.0


def _is_silent(t: Tensor, loudest: float) -> bool:
    """The optimizer holds it, and found nothing at any step, or at most steps at which it did find something for others; nobody else
    writes into it (an average kept up by hand)."""
    g = t.gradients
    held = (t.group is not None or t.in_other_optimizer) and t.trainable and t.trainable_last and not t.replaced
    seldom = g.none == 0 and g.steps >= MANY and g.zero >= MOSTLY * g.steps and loudest >= 1 - (1 - MOSTLY) / 2
    return (
        held
        and t.numel > 0
        and g.steps > 0
        and not g.nonfinite
        and not t.motion.between_steps
        and (g.max_norm == 0 or seldom)
    )


def _share(t: Tensor) -> float:
    """Share of the steps at which it had a gradient that is not zero."""
    return 1 - (t.gradients.none + t.gradients.zero) / t.gradients.steps if t.gradients.steps else 0.0


def _kind(t: Tensor) -> str:
    g = t.gradients
    return "none" if g.none == g.steps else "zero" if g.max_norm == 0 else "seldom"


def _places(names: Sequence[str]) -> list[list[str]]:
    """Names by block; where there are too many blocks, by what comes before the number, and then by the first segment."""
    for level in (block_of, lambda n: block_of(n).rpartition(".")[0], lambda n: n.partition(".")[0]):
        places: dict[str, list[str]] = {}
        for name in names:
            places.setdefault(level(name), []).append(name)
        if len(places) <= PLACES:
            return list(places.values())
    return [list(names)]


def _hooked(p: nn.Parameter) -> bool:
    return bool(p._backward_hooks) or bool(getattr(p, "_post_accumulate_grad_hooks", None))


def _dense(g: torch.Tensor) -> torch.Tensor:
    return g.coalesce().values() if g.is_sparse else g


def _gates(model: nn.Module) -> Iterator[Gate]:
    """What is exactly zero and may multiply a branch, each with a way to set it to one: small buffers, frozen scalars, attributes."""
    for name, buffer in model.named_buffers():
        leaf = name.rpartition(".")[2]
        if buffer.is_floating_point() and 0 < buffer.numel() <= SMALL and leaf not in _STATISTICS and not buffer.any():
            yield name, lambda b=buffer: b.fill_(1.0)  # type: ignore[misc]
    for name, p in model.named_parameters():
        if not p.requires_grad and p.is_floating_point() and 0 < p.numel() <= SMALL and not p.any():
            leaf = name.rpartition(".")[2]
            if p.numel() == 1 or _FACTOR.search(leaf):
                yield name, lambda q=p: q.data.fill_(1.0)  # type: ignore[misc]
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch."):
            continue
        for key, value in vars(module).items():
            if type(value) in (int, float) and value == 0 and key[0] != "_" and _FACTOR.search(key):
                name = f"{path}.{key}" if path else key
                yield name, lambda m=module, k=key: setattr(m, k, 1.0)  # type: ignore[misc]


@contextlib.contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Buffers, frozen parameters and plain attributes may be changed inside."""
    attributes = [
        (m, {k: v for k, v in vars(m).items() if type(v) in (int, float) and v == 0}) for m in model.modules()
    ]
    small = [b for b in model.buffers() if b.numel() <= SMALL]
    small += [p for p in model.parameters() if not p.requires_grad and p.numel() <= SMALL]
    try:
        with perturbed(small):
            yield
    finally:
        for module, values in attributes:
            for key, value in values.items():
                setattr(module, key, value)
