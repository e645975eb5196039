"""What is to be known of an optimizer from outside: its kind, its settings, what it wraps."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any

import torch
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


# ---- folded from training.handling
#: Tensors whose optimizer state is read for its count of updates.
STATES = 16


class Handling:
    """Notes which optimizers come and go.

    An optimizer that is made anew takes over the tensors of the one before, which never steps again.
    """

    def __init__(self) -> None:
        self.rebuilt = 0
        self._seen = 0
        self._order: weakref.WeakKeyDictionary[TorchOptimizer, int] = weakref.WeakKeyDictionary()
        self._last: tuple[int, frozenset[int]] | None = None  # number and tensors of the one that stepped last
        self._takeovers: list[int] = []  # numbers of those that were taken over from

    def stepped(self, optimizer: TorchOptimizer, tensors: Iterable[int]) -> None:
        """An optimizer made a step on these tensors of the model."""
        number = self._order.get(optimizer)
        if self._last is not None and number == self._last[0]:
            return
        held = frozenset(tensors)
        if number is None:
            number = self._order[optimizer] = self._seen
            self._seen += 1
            if self._last is not None and held and held == self._last[1]:
                self._takeovers.append(self._last[0])
                self.rebuilt += 1
        elif number in self._takeovers:  # it steps again: they take turns
            self._takeovers.remove(number)
            self.rebuilt -= 1
        self._last = number, held


class Scheduling:
    """A scheduler beside the optimizer that it should drive; None: none was handed over."""

    def __init__(self, scheduler: Any, mine: set[int], optimizer: TorchOptimizer) -> None:
        self.name = None if scheduler is None else type(scheduler).__name__
        self.ahead = 0
        self._scheduler = scheduler
        self._start = self._now()
        self._begun: int | None = None
        driven = None if scheduler is None else getattr(scheduler, "optimizer", None)
        self.elsewhere = (
            isinstance(driven, TorchOptimizer)
            and id(driven) not in mine
            and not any(g is h for g in driven.param_groups for h in optimizer.param_groups)
        )

    def _now(self) -> int | None:
        found = getattr(self._scheduler, "last_epoch", None)
        if found is None:
            found = getattr(getattr(self._scheduler, "scheduler", None), "last_epoch", None)
        return found if isinstance(found, int) and not isinstance(found, bool) else None

    def begin(self) -> None:
        """A new iteration begins."""
        self._begun = self._now()

    def stepping(self, *, first: bool) -> None:
        """The optimizer is about to step, ``first``: for the first time, in the first iteration that was told."""
        if self._scheduler is None:
            return
        now = self._now()
        since = self._start if first else self._begun
        self.ahead += now is not None and since is not None and now > since


def chains_of(optimizer: Any) -> list[Any]:
    """The optimizer and those that it wraps, outermost first."""
    found: list[Any] = []
    while optimizer is not None and not any(optimizer is o for o in found):
        found.append(optimizer)
        optimizer = getattr(optimizer, "optimizer", None) or getattr(optimizer, "base_optimizer", None)
    return found


def state_steps(optimizer: Any, tensors: Iterable[torch.Tensor]) -> int | None:
    """The most updates that the optimizer's state counts for one of the tensors; None: it keeps no count."""
    inner = chains_of(optimizer)[-1]
    state = getattr(inner, "state", None)
    if not isinstance(state, dict):
        return None
    if not state and type(inner).__module__.startswith("torch.optim.adam"):
        return 0  # these keep one as soon as they step
    known, counts = False, [0]
    for p in list(tensors)[:STATES]:
        held = state.get(p)
        step = held.get("step") if isinstance(held, dict) else None
        if isinstance(step, torch.Tensor) and step.numel() == 1:
            step = float(step)
        if isinstance(step, (int, float)) and not isinstance(step, bool):
            known = True
            counts.append(int(step))
    return max(counts) if known else None
