"""In a watched loop: is the gradient of the step before still there when the optimizer takes the next one?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ....instruments.uncompiled import between_graphs
from ..record import WatchedStep

#: Tensors, elements of each, and first steps that are compared: gradients that add up show from the second step on.
TENSORS, ELEMENTS = 4, 1024
STEPS = 6


class WatchedGradients:
    """Hooks on a few tensors: what backward() has brought since the step before, and what the optimizer finds.

    Nothing is patched or changed. The hooks are removed after `STEPS` steps, or by `close`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        live = [p for p in parameters if p.requires_grad and p.is_floating_point() and p.numel()]
        some = [live[i * (len(live) - 1) // max(1, TENSORS - 1)] for i in range(TENSORS)] if live else []
        self.parameters = list({id(p): p for p in some}.values())
        self.steps: list[WatchedStep] = []
        self._fresh: dict[int, torch.Tensor] = {}
        self._previous: dict[int, torch.Tensor] = {}
        self._step = 0
        self._over = False
        self._handles: list[Any] = [p.register_hook(self._hook(p)) for p in self.parameters]  # type: ignore[no-untyped-call]
        self._global = [
            register_optimizer_step_pre_hook(between_graphs(self._before_step)),
            register_optimizer_step_post_hook(between_graphs(self._after_step)),
        ]

    def _hook(self, p: nn.Parameter) -> Callable[[torch.Tensor], None]:
        key = id(p)

        def note(gradient: torch.Tensor) -> None:
            if self._over:
                return
            try:
                new = _sampled(gradient)
                self._fresh[key] = self._fresh[key] + new if key in self._fresh else new
            except Exception:  # noqa: BLE001 - inside the user's backward(): nothing may escape
                self._over = True

        return note

    def _held(self, optimizer: Optimizer) -> list[nn.Parameter]:
        ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [p for p in self.parameters if id(p) in ids and p.grad is not None]

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self._over:
            return
        try:
            compared = [p for p in self._held(optimizer) if id(p) in self._fresh and id(p) in self._previous]
            if compared:
                found = torch.cat([_sampled(p.grad) for p in compared if p.grad is not None])
                fresh = torch.cat([self._fresh[id(p)] for p in compared])
                accumulated = fresh + torch.cat([self._previous[id(p)] for p in compared])
                cosines = torch.stack([_cosine(found, fresh), _cosine(found, accumulated)]).tolist()
                if all(c == c for c in cosines):
                    self.steps.append(WatchedStep(self._step, *cosines))
        except Exception:  # noqa: BLE001 - inside the user's step()
            self._over = True

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self._over:
            return
        try:
            held = self._held(optimizer)
            if not held:
                return
            self._previous = {id(p): _sampled(p.grad) for p in held if p.grad is not None}
            self._fresh = {}
            self._step += 1
            if self._step >= STEPS:  # torch is iterating over the optimizers' hooks: those stay until `close`
                self._over = True
                self._unhook()
        except Exception:  # noqa: BLE001
            self._over = True

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._previous, self._fresh = [], {}, {}

    def close(self) -> None:
        """Removes all hooks; may be called twice."""
        self._over = True
        self._unhook()
        for handle in self._global:
            handle.remove()
        self._global = []


def _sampled(gradient: torch.Tensor) -> torch.Tensor:
    """The same few elements each time, as a copy."""
    if gradient.layout is not torch.strided:
        raise TypeError("a sparse gradient")
    flat = gradient.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // ELEMENTS)].to("cpu", torch.float64, copy=True)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    cosine: torch.Tensor = torch.dot(a, b) / (torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))
    return cosine
