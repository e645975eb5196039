"""Some elements of some gradients, to see by which factor all of them change."""

from __future__ import annotations

import torch
from torch import nn

from ....instruments.undisturbed import parameters_of

#: Tensors that are read, from all over the model, and elements of each.
TENSORS = 8
ELEMENTS = 64
#: Gradients change by one factor if what is left beside it is less than this share of them: bfloat16 rounds to 2^-9.
ROUNDING = 0.01


class GradientSample:
    """Some elements of the gradients that a model has now.

    >>> model = nn.Linear(3, 2)
    >>> GradientSample(model).is_zero
    True
    >>> model(torch.ones(1, 3)).sum().backward()
    >>> sample = GradientSample(model)
    >>> for p in model.parameters():
    ...     _ = p.grad.mul_(0.25)
    >>> sample.factor()
    0.25
    """

    def __init__(self, model: nn.Module) -> None:
        # those of sharded tensors are left alone: reading them is a message to all processes
        found = [p for p in parameters_of(model) if type(p.grad) is torch.Tensor and not p.grad.is_sparse]
        step = max(1, -(-len(found) // TENSORS))
        self._parameters = found[::step]
        self._values = [_some(p) for p in self._parameters]

    @property
    def is_zero(self) -> bool:
        """No gradient is there, or all are zero."""
        return not any(bool(v.any()) for v in self._values if v is not None)

    def factor(self) -> float | None:
        """What all gradients have been multiplied by since; None: not by one factor, or it is not known."""
        was, now = [], []
        for parameter, value in zip(self._parameters, self._values, strict=True):
            new = _some(parameter)
            if value is None or new is None or new.shape != value.shape:
                return None
            was.append(value)
            now.append(new)
        if not was:
            return None
        a, b = torch.cat([v.cpu() for v in was]), torch.cat([v.cpu() for v in now])
        if torch.allclose(a, b, rtol=0, atol=0, equal_nan=True):
            return 1.0
        square = float(a @ a)
        if not square > 0:
            return None
        factor = float(a @ b) / square
        left = float((b - factor * a).norm())
        return factor if left <= ROUNDING * float(b.norm()) else None


def _some(parameter: nn.Parameter) -> torch.Tensor | None:
    grad = parameter.grad
    if grad is None:
        return None
    flat = grad.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // ELEMENTS))].double().clone()
