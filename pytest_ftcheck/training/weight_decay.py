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
        if self._momentum is None and any(s and s[1] for s in settings):
            self._momentum = self._sampled.zeros()
        if (factor := self._one_factor(settings, lrs, held)) is not None:
            return values * factor  # of thousands of tensors the pieces cost more than the numbers
        change = values.clone()
        before, pieces = self._sampled.split(values), self._sampled.split(change)
        buffers = () if self._momentum is None else self._sampled.split(self._momentum)
        pulled, factors, still = list[torch.Tensor](), list[float](), list[torch.Tensor]()
        for place, w in enumerate(self._live):
            index = held.get(id(w.parameter))
            # torch's optimizers skip a parameter that has no gradient, decay included
            decay = settings[index] if index is not None and w.parameter.grad is not None else None
            if decay is None or index is None:
                still.append(pieces[place])
            elif decay[1]:
                group, strength = optimizer.param_groups[index], decay[0]
                # SGD adds it to the gradient, whose momentum it has a part in
                dampening = float(group.get("dampening", 0)) if place in self._begun else 0.0
                self._begun.add(place)
                buffer = buffers[place].mul_(decay[1]).add_(before[place], alpha=strength * (1 - dampening))
                pull = before[place] * strength + decay[1] * buffer if group.get("nesterov") else buffer
                torch.mul(pull, -lrs[index], out=pieces[place])
            else:
                pulled.append(pieces[place])
                factors.append(-lrs[index] * decay[0])
        if pulled:
            torch._foreach_mul_(pulled, factors)
        if still:
            torch._foreach_zero_(still)
        return change

    def _one_factor(
        self, settings: Sequence[tuple[float, float] | None], lrs: tuple[float, ...], held: dict[int, int]
    ) -> float | None:
        """What decay multiplied all elements by; None: not all by one factor."""
        factors = {None if s is None or s[1] else -lr * s[0] for s, lr in zip(settings, lrs, strict=True)}
        if len(factors) != 1 or any(w.parameter.grad is None or id(w.parameter) not in held for w in self._live):
            return None
        return factors.pop()

    @staticmethod
    def _separable(optimizer: Optimizer, group: dict[str, Any]) -> tuple[float, float] | None:
        """Weight decay and momentum of a group where its pull can be recomputed; else None."""
        strength, decoupled = float(group.get("weight_decay") or 0.0), decouples_decay(optimizer, group)
        momentum = 0.0 if decoupled else float(group.get("momentum") or 0.0)
        return (strength, momentum) if strength and (decoupled or family_of(optimizer) == "sgd") else None
