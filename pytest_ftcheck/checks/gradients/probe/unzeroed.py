"""In a loop that we do not run: is the gradient of the step before still there when the optimizer takes the next one?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..record import Leftover

#: Tensors, and elements of each, that are looked at; the first steps that are: what adds up shows from the second on.
TENSORS, ELEMENTS = 4, 1024
STEPS = 6


class Leftovers:
    """Hooks on a few tensors: what backward() brings since the step before, and what the optimizer finds.

    Nothing is patched and nothing is changed. The hooks are taken off after `STEPS` steps, or by `close`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        live = [p for p in parameters if p.requires_grad and p.is_floating_point() and p.numel()]
        some = [live[i * (len(live) - 1) // max(1, TENSORS - 1)] for i in range(TENSORS)] if live else []
        self.parameters = list({id(p): p for p in some}.values())
        self.found: list[Leftover] = []
        self._arrived: dict[int, torch.Tensor] = {}
        self._left: dict[int, torch.Tensor] = {}
        self._steps = 0
        self._over = False
        self._handles: list[Any] = [p.register_hook(self._hook(p)) for p in self.parameters]  # type: ignore[no-untyped-call]
        self._global = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]

    def _hook(self, p: nn.Parameter) -> Callable[[torch.Tensor], None]:
        place = id(p)

        def note(gradient: torch.Tensor) -> None:
            if self._over:
                return
            try:
                new = _some(gradient)
                self._arrived[place] = self._arrived[place] + new if place in self._arrived else new
            except Exception:  # noqa: BLE001 - inside the user's backward(): nothing may escape
                self._over = True

        return note

    def _mine(self, optimizer: Optimizer) -> list[nn.Parameter]:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return [p for p in self.parameters if id(p) in held and p.grad is not None]

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self._over:
            return
        try:
            known = [p for p in self._mine(optimizer) if id(p) in self._arrived and id(p) in self._left]
            if known:
                found = torch.cat([_some(p.grad) for p in known if p.grad is not None])
                own = torch.cat([self._arrived[id(p)] for p in known])
                kept = own + torch.cat([self._left[id(p)] for p in known])
                cosines = torch.stack([_cosine(found, own), _cosine(found, kept)]).tolist()
                if all(c == c for c in cosines):
                    self.found.append(Leftover(self._steps, *cosines))
        except Exception:  # noqa: BLE001 - inside the user's step()
            self._over = True

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self._over:
            return
        try:
            mine = self._mine(optimizer)
            if not mine:
                return
            self._left = {id(p): _some(p.grad) for p in mine if p.grad is not None}
            self._arrived = {}
            self._steps += 1
            if self._steps >= STEPS:  # the hooks of the optimizers are being gone through: those stay till the end
                self._over = True
                self._unhook()
        except Exception:  # noqa: BLE001
            self._over = True

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._left, self._arrived = [], {}, {}

    def close(self) -> None:
        """Take all hooks off; may be called twice."""
        self._over = True
        self._unhook()
        for handle in self._global:
            handle.remove()
        self._global = []


def _some(gradient: torch.Tensor) -> torch.Tensor:
    """The same few elements each time, as a copy."""
    if gradient.layout is not torch.strided:
        raise TypeError("a sparse gradient")
    flat = gradient.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // ELEMENTS)].to("cpu", torch.float64, copy=True)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    cosine: torch.Tensor = torch.dot(a, b) / (torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))
    return cosine
