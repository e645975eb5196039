"""What is to be known of an optimizer from outside: its kind, its settings, what it wraps."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer as TorchOptimizer

#: Optimizers whose step moves a weight by about one learning rate at most (Kingma and Ba 2015, section 2.1).
_ADAM = ("adam", "lion", "lamb")


def family_of(optimizer: TorchOptimizer) -> str:
    """``adam``, ``sgd`` or ``other``, from the names of its classes."""
    names = [c.__name__.lower() for c in type(optimizer).__mro__ if c not in (TorchOptimizer, object)]
    if any("radam" in name for name in names):  # its rectification holds the first steps far below the learning rate
        return "other"
    if any(key in name for name in names for key in _ADAM):
        return "adam"
    return "sgd" if any("sgd" in name for name in names) else "other"


def chain(optimizer: Any) -> set[int]:
    """The optimizer and those it wraps (Accelerate's ``.optimizer``, others' ``.base_optimizer``)."""
    found: set[int] = set()
    while optimizer is not None and id(optimizer) not in found:
        found.add(id(optimizer))
        optimizer = getattr(optimizer, "optimizer", None) or getattr(optimizer, "base_optimizer", None)
    return found


def name_of(optimizer: Any) -> str:
    """Name of the innermost optimizer's class."""
    while isinstance(getattr(optimizer, "optimizer", None), TorchOptimizer):
        optimizer = optimizer.optimizer
    return type(optimizer).__name__


def classes_of(optimizer: Any) -> tuple[str, ...]:
    """Names that the innermost optimizer goes by: torch's own by their class, others by those they are derived from, too."""
    while isinstance(getattr(optimizer, "optimizer", None), TorchOptimizer):
        optimizer = optimizer.optimizer
    names = [c for c in type(optimizer).__mro__ if issubclass(c, TorchOptimizer) and c is not TorchOptimizer]
    own = [i for i, c in enumerate(names) if c.__module__.startswith("torch.optim")]
    return tuple(c.__name__ for c in names[: own[0] + 1 if own else None])


def rate_of(group: dict[str, Any]) -> float:
    """The learning rate of a group; NaN where it has none (an optimizer that finds its own)."""
    lr = group.get("lr")
    return math.nan if lr is None else float(lr)


def decouples(optimizer: TorchOptimizer, group: dict[str, Any]) -> bool:
    """Whether weight decay shrinks the weight directly instead of joining the gradient."""
    if "decoupled_weight_decay" in group:
        return bool(group["decoupled_weight_decay"])
    names = {c.__name__.lower() for c in type(optimizer).__mro__}
    return any("adamw" in n or "lion" in n for n in names) or "adafactor" in names


def settings_of(group: dict[str, Any]) -> dict[str, float]:
    """A group's other scalar settings, tuples spread out (``betas[0]``)."""
    out: dict[str, float] = {}
    for key, value in group.items():
        if key == "maximize" and value:
            out[key] = 1.0  # the one switch that turns the run round
        if key in ("params", "lr", "weight_decay", "initial_lr") or isinstance(value, (bool, str)):
            continue
        if isinstance(value, (int, float)):
            out[key] = float(value)
        elif isinstance(value, (tuple, list)):
            out.update({f"{key}[{i}]": float(v) for i, v in enumerate(value) if isinstance(v, (int, float))})
    return out
