"""What weight decay did to the sampled elements at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from ..instruments.optimizers import decouples_decay, family_of
from ..instruments.sampled_elements import SampledElements
from .watched_parameters import WatchedParameter


class WeightDecay:
    """Recomputes the pull of weight decay: exact where decay is decoupled, and for SGD, whose momentum is followed."""

    def __init__(self, sampled: SampledElements, live: Sequence[WatchedParameter]) -> None:
        self._sampled, self._live = sampled, live
        self._momentum: torch.Tensor | None = None
        self._begun: set[int] = set()  # places whose momentum has begun

    def at_step(
        self,
        optimizer: Optimizer,
        lrs: tuple[float, ...],
        held: dict[int, int],
        values: torch.Tensor,
    ) -> torch.Tensor | None:
        """The change that decay made; None: there is none, or it cannot be separated from the gradient's.

        :param held: id of a parameter -> index of its group.  :param values: the elements before the step.
        """
        settings = [self._separable(optimizer, group) for group in optimizer.param_groups]
        if not any(settings):
            return None
        change = self._sampled.zeros()
        if self._momentum is None and any(s and s[1] for s in settings):
            self._momentum = self._sampled.zeros()
        before, pieces = self._sampled.split(values), self._sampled.split(change)
        buffers = self._sampled.split(self._momentum) if self._momentum is not None else None
        for place, w in enumerate(self._live):
            index = held.get(id(w.parameter))
            # torch's optimizers skip a parameter that has no gradient, decay included
            decay = settings[index] if index is not None and w.parameter.grad is not None else None
            if decay is None or index is None:
                continue
            strength, momentum = decay
            if momentum and buffers is not None:
                group, buffer = optimizer.param_groups[index], buffers[place]
                dampening = float(group.get("dampening", 0)) if place in self._begun else 0.0
                self._begun.add(place)
                buffer.mul_(momentum).add_(before[place], alpha=strength * (1 - dampening))
                pull = before[place] * strength + momentum * buffer if group.get("nesterov") else buffer
                torch.mul(pull, -lrs[index], out=pieces[place])
            else:
                torch.mul(before[place], -lrs[index] * strength, out=pieces[place])
        return change

    @staticmethod
    def _separable(optimizer: Optimizer, group: dict[str, Any]) -> tuple[float, float] | None:
        """Weight decay and momentum of a group where its pull can be recomputed; else None."""
        strength, decoupled = float(group.get("weight_decay") or 0.0), decouples_decay(optimizer, group)
        momentum = 0.0 if decoupled else float(group.get("momentum") or 0.0)
        return (strength, momentum) if strength and (decoupled or family_of(optimizer) == "sgd") else None
