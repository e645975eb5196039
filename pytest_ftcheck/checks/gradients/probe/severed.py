"""Tensors without gradient: does the output depend on them all the same, and does a zero gate multiply their branch?"""

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
from ....instruments.batches import row_count, split, take_rows
from ....instruments.global_state import preserved_globals
from ....instruments.reader import Reader
from ....instruments.undisturbed import perturbed, quiet
from ..record import MissingGradient

#: Rows of the batch that are used, at most.
ROWS = 8
#: Size of the noise, as a share of the tensor's own rms: one to which a smooth function responds smoothly, and one that crosses the
#: steps of a comparison, a rounding or an argmax.
SMALL_NOISE, FULL_NOISE = 0.02, 1.0
#: For a tensor of zeros, the rms of the noise.
NOISE_ON_ZEROS = 0.02
#: Blocks tested one by one, at most; more are put together.
BLOCKS = 12
#: Elements of which a copy is made, at most.
MOST = 300_000_000
#: Gates tried one by one, at most.
GATES = 8
#: Elements of a buffer that may be a gate, at most.
GATE_ELEMENTS = 4096
#: Tensors whose gradient is exactly zero at this share of the steps are tested, too, if there were so many steps.
MOSTLY, MANY = 2 / 3, 10
#: Attributes that may multiply a branch, if they are zero.
_FACTOR = re.compile(r"gate|scal|alpha|gamma|lambda|lamb|coef|factor|strength|weight|mix|residual|beta", re.IGNORECASE)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Gate = tuple[str, Callable[[], None]]


class MissingGradients:
    """Tests whether the output depends on the tensors that had no gradient, or one of exactly zero, at any step."""

    def __init__(self, model: nn.Module, reader: Reader, batch: Any, most: int = ROWS) -> None:
        rows = row_count(split(batch)[0]) or 0
        self.model, self.reader = model, reader
        self.batch = take_rows(batch, range(most)) if rows > most else batch
        self.gates_before = {name for name, _ in _gates(model)}

    def measure(self, tensors: Sequence[Tensor]) -> list[MissingGradient]:
        """One record for each block whose tensors change the output, or would if a gate were open; none for the others."""
        largest_share = max((_share(t) for t in tensors if t.gradients.max_norm > 0), default=0.0)
        candidates = [t for t in tensors if _without_gradient(t, largest_share)]
        named = dict(self.model.named_parameters())
        candidates = [t for t in candidates if t.name in named and named[t.name].is_floating_point()]
        if not candidates or largest_share == 0 or sum(t.numel for t in candidates) > MOST:
            return []
        found = []
        gradients = self._largest_gradients([named[t.name] for t in candidates])
        # where backward gives a gradient, the loop takes it away: that is another fault
        missing = [t for t, g in zip(candidates, gradients, strict=True) if g == 0]
        if missing:
            found += self._dependent(missing, named)
        explained = {n for m in found for n in m.tensors}
        gated = [t for t in missing if _kind(t) == "zero" and t.name not in explained]
        return found + (self._gated(gated, named) if gated else [])

    # ------------------------------------------------------------------ gradients
    def _largest_gradients(self, parameters: Sequence[nn.Parameter]) -> list[float]:
        with quiet(self.model, grad=True), preserved_globals():
            loss = self.reader.loss(self.batch)[0]
            if not loss.requires_grad:
                return [math.nan] * len(parameters)
            grads = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        return [0.0 if g is None else float(_dense(g).abs().max()) for g in grads]

    # ------------------------------------------------------------------ dependence
    def _dependent(self, tensors: Sequence[Tensor], named: dict[str, nn.Parameter]) -> list[MissingGradient]:
        logits, repeated = self._logits(), self._logits()
        rms = float(logits.square().mean().sqrt()) if logits is not None else 0.0
        if logits is None or repeated is None or not math.isfinite(rms) or rms == 0:
            return []
        no_noise = float((logits - repeated).abs().max()) / rms

        def change(names: Sequence[str], noise_level: float) -> float:
            chosen = [named[n] for n in names]
            generator = torch.Generator().manual_seed(9173)  # ours: the user's random state is not drawn from
            with perturbed(chosen), torch.no_grad():
                for p in chosen:
                    size = float(p.detach().float().square().mean().sqrt()) or NOISE_ON_ZEROS
                    noise = torch.randn(p.shape, generator=generator, device="cpu") * (noise_level * size)
                    p.data.add_(noise.to(p.device, p.dtype))
                noisy = self._logits()
            difference = float("nan") if noisy is None else float((noisy - logits).abs().max()) / rms
            return difference if math.isfinite(difference) else 0.0

        least = max(LEAST, MARGIN * no_noise)
        if change([t.name for t in tensors], FULL_NOISE) <= least:
            return []
        found = []
        for kind in ("none", "zero", "seldom"):
            for names in _blocks([t.name for t in tensors if _kind(t) == kind]):
                full_noise = change(names, FULL_NOISE)
                if full_noise > least:
                    hooked = any(_hooked(named[n]) for n in names)
                    small_noise = change(names, SMALL_NOISE)
                    found.append(MissingGradient(tuple(names), kind, small_noise, full_noise, no_noise, hooked))
        return found

    def _logits(self) -> torch.Tensor | None:
        with quiet(self.model), preserved_globals():
            logits = self.reader.logits(self.batch)
        return logits.detach().double().cpu() if isinstance(logits, torch.Tensor) else None

    # ------------------------------------------------------------------ gates
    def _gated(self, tensors: Sequence[Tensor], named: dict[str, nn.Parameter]) -> list[MissingGradient]:
        gates = [(name, open_) for name, open_ in _gates(self.model) if name in self.gates_before]
        parameters = [named[t.name] for t in tensors]
        if not gates or not any(self._opened(gates, parameters)):
            return []
        remaining, found = list(tensors), []
        for gate in gates[:GATES]:
            reached = self._opened([gate], [named[t.name] for t in remaining])
            names = tuple(t.name for t, r in zip(remaining, reached, strict=True) if r)
            if names:
                found.append(MissingGradient(names, "zero", 0.0, 0.0, 0.0, False, gate[0]))
                remaining = [t for t in remaining if t.name not in names]
            if not remaining:
                break
        return found

    def _opened(self, gates: Sequence[Gate], parameters: Sequence[nn.Parameter]) -> list[bool]:
        with _gates_restored(self.model):
            with torch.no_grad():
                for _, open_ in gates:
                    open_()
            try:
                return [math.isfinite(g) and g > 0 for g in self._largest_gradients(parameters)]
            except Exception:  # noqa: BLE001 - the attribute was no factor
                return [False] * len(parameters)


#: The output depends on a tensor if noise in it changes the logits by this share of their rms: an unused tensor changes no bit.
LEAST = 1e-3
#: ... and by this many times what two calls with the same input differ by.
MARGIN = 10.0


def _without_gradient(t: Tensor, largest_share: float) -> bool:
    """The optimizer holds it and found no gradient at any step, or at most steps at which other tensors had one; nothing else writes
    into it (a moving average kept by hand)."""
    g = t.gradients
    held = (t.group is not None or t.in_other_optimizer) and t.trainable and t.trainable_last and not t.replaced
    seldom = g.none == 0 and g.steps >= MANY and g.zero >= MOSTLY * g.steps and largest_share >= 1 - (1 - MOSTLY) / 2
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


def _blocks(names: Sequence[str]) -> list[list[str]]:
    """Names by block; where there are too many blocks, by stack of blocks, and then by the first segment."""
    for level in (block_of, lambda n: block_of(n).rpartition(".")[0], lambda n: n.partition(".")[0]):
        blocks: dict[str, list[str]] = {}
        for name in names:
            blocks.setdefault(level(name), []).append(name)
        if len(blocks) <= BLOCKS:
            return list(blocks.values())
    return [list(names)]


def _hooked(p: nn.Parameter) -> bool:
    return bool(p._backward_hooks) or bool(getattr(p, "_post_accumulate_grad_hooks", None))


def _dense(g: torch.Tensor) -> torch.Tensor:
    return g.coalesce().values() if g.is_sparse else g


def _gates(model: nn.Module) -> Iterator[Gate]:
    """Small buffers, frozen scalars and attributes that are zero and may multiply a branch, each with a function that sets it to one."""
    for name, buffer in model.named_buffers():
        leaf = name.rpartition(".")[2]
        if (
            buffer.is_floating_point()
            and 0 < buffer.numel() <= GATE_ELEMENTS
            and leaf not in _STATISTICS
            and not buffer.any()
        ):
            yield name, lambda b=buffer: b.fill_(1.0)  # type: ignore[misc]
    for name, p in model.named_parameters():
        if not p.requires_grad and p.is_floating_point() and 0 < p.numel() <= GATE_ELEMENTS and not p.any():
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
def _gates_restored(model: nn.Module) -> Iterator[None]:
    """Buffers, frozen parameters and plain attributes may be changed inside; they are restored at the end."""
    attributes = [
        (m, {k: v for k, v in vars(m).items() if type(v) in (int, float) and v == 0}) for m in model.modules()
    ]
    small = [b for b in model.buffers() if b.numel() <= GATE_ELEMENTS]
    small += [p for p in model.parameters() if not p.requires_grad and p.numel() <= GATE_ELEMENTS]
    try:
        with perturbed(small):
            yield
    finally:
        for module, values in attributes:
            for key, value in values.items():
                setattr(module, key, value)
