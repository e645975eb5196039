"""Optimizers for stacked weights: as in ``torch.optim``, with one learning rate for each head."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from .batched_heads import BufferPool

#: Defaults of torch's own AdamW and Adam.
BETAS, EPS = (0.9, 0.999), 1e-8
#: torch's whole-step kernel for the CPU: one pass over memory instead of nine.
FUSED = hasattr(torch, "_fused_adamw_") and hasattr(torch, "_fused_adam_")

Pairs = Sequence[tuple[torch.Tensor, torch.Tensor]]
_Views = tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]


class Adam:
    """Adam (Kingma and Ba 2015) or, with ``decoupled``, AdamW (Loshchilov and Hutter 2019).

    :param pairs: ``(values, gradients)``, each ``[heads, ...]``.  :param lrs: learning rate of each head.
    :param pool: buffers for the moments; None: new ones.
    :param fused: use torch's fused kernel where neighbours share a learning rate; None: on the CPU.
    """

    def __init__(
        self,
        pairs: Pairs,
        lrs: Sequence[float],
        weight_decay: float,
        *,
        decoupled: bool = True,
        fused: bool | None = None,
        pool: BufferPool | None = None,
    ) -> None:
        self.pairs, self.lrs, self.weight_decay, self.decoupled = pairs, list(lrs), weight_decay, decoupled
        pool = pool or BufferPool()
        self.first = [pool.take(("first", i), v).zero_() for i, (v, _) in enumerate(pairs)]
        self.second = [pool.take(("second", i), v).zero_() for i, (v, _) in enumerate(pairs)]
        self.steps = 0
        on_cpu = all(v.device.type == "cpu" for v, _ in pairs)
        self.fused = FUSED and on_cpu if fused is None else fused
        self._count = torch.zeros(())
        # the same views at every step: making them costs as much as a step of a small head
        self._equal_lrs: list[tuple[float, _Views]] = []
        if self.fused:
            self._equal_lrs = [(self.lrs[low], self._views(low, high)) for low, high in _stretches(self.lrs)]
        self._rate = [_column(self.lrs, v) for v, _ in pairs]
        self._scratch = [] if self.fused else [torch.empty_like(v) for v, _ in pairs]

    def step(self, factor: float = 1.0) -> None:
        """One step at ``factor`` times each head's learning rate."""
        self.steps += 1
        if self.fused:
            self._step_fused(factor)
        else:
            self._step_in_passes(factor)

    def _views(self, low: int, high: int) -> _Views:
        """Values, gradients and moments of the heads ``low`` up to ``high``."""
        values, grads = [v[low:high] for v, _ in self.pairs], [g[low:high] for _, g in self.pairs]
        return values, grads, [m[low:high] for m in self.first], [s[low:high] for s in self.second]

    def _step_fused(self, factor: float) -> None:
        self._count.fill_(self.steps)
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        settings: dict[str, Any] = {
            "beta1": BETAS[0],
            "beta2": BETAS[1],
            "eps": EPS,
            "amsgrad": False,
            "maximize": False,
        }
        settings["weight_decay"] = self.weight_decay
        for lr, (values, grads, first, second) in self._equal_lrs:
            kernel(values, grads, first, second, [], [self._count] * len(values), lr=lr * factor, **settings)

    def _step_in_passes(self, factor: float) -> None:
        one, two = (1 - b**self.steps for b in BETAS)
        for (v, g), m, s, rate, scratch in zip(
            self.pairs, self.first, self.second, self._rate, self._scratch, strict=True
        ):
            lr = rate * factor
            if self.weight_decay:
                if self.decoupled:
                    v.mul_(1 - lr * self.weight_decay)
                else:
                    g = g.add(v, alpha=self.weight_decay)
            m.lerp_(g, 1 - BETAS[0])
            s.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            torch.sqrt(s, out=scratch).div_(two**0.5).add_(EPS)
            v.sub_(torch.div(m, scratch, out=scratch).mul_(lr / one))


class Sgd:
    """Stochastic gradient descent with momentum and L2 weight decay; arguments as those of :class:`Adam`."""

    def __init__(self, pairs: Pairs, lrs: Sequence[float], weight_decay: float, *, momentum: float = 0.0) -> None:
        self.pairs, self.weight_decay, self.momentum = pairs, weight_decay, momentum
        self.velocity = [torch.zeros_like(v) for v, _ in pairs] if momentum else []
        self._rate = [_column(lrs, v) for v, _ in pairs]

    def step(self, factor: float = 1.0) -> None:
        """One step at ``factor`` times each head's learning rate."""
        for i, (v, g) in enumerate(self.pairs):
            change = g.add(v, alpha=self.weight_decay) if self.weight_decay else g
            if self.momentum:
                change = self.velocity[i].mul_(self.momentum).add_(change)
            v.sub_(change * (self._rate[i] * factor))


def clip(pairs: Pairs, most: float | None) -> torch.Tensor:
    """Each head's total gradient norm, ``[heads]``, before it is clipped to ``most`` as ``clip_grad_norm_`` does it."""
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for _, g in pairs])
    total: torch.Tensor = torch.linalg.vector_norm(norms, dim=0)
    if most is not None:
        share = (most / (total + 1e-6)).clamp(max=1.0)
        if bool((share < 1).any()):
            for _, g in pairs:
                g.mul_(share.reshape(-1, *[1] * (g.dim() - 1)))
    return total


def _column(lrs: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(lrs), dtype=like.dtype, device=like.device).reshape(-1, *[1] * (like.dim() - 1))


def _stretches(lrs: Sequence[float]) -> list[tuple[int, int]]:
    """Stretches of equal learning rates.

    >>> _stretches([1e-3, 1e-3, 1e-2])
    [(0, 2), (2, 3)]
    """
    out, at = [], 0
    for _, same in itertools.groupby(lrs):
        count = len(list(same))
        out.append((at, at + count))
        at += count
    return out
