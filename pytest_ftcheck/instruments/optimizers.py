"""What can be read off an optimizer from outside: its family, settings and state, its scheduler, and which optimizer replaced which."""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer as TorchOptimizer

#: Optimizers whose step moves a weight by about one learning rate at most (Kingma and Ba 2015, section 2.1).
_ADAM = ("adam", "lion", "lamb")
#: Tensors whose optimizer state is read for its count of updates.
STATES = 16
#: Containers of more items are data, and are not searched for optimizers.
MOST_PARTS = 10_000


# ---------------------------------------------------------------------- the optimizer
def wrapped_optimizers(optimizer: Any) -> list[Any]:
    """The optimizer and those it wraps (Accelerate's ``.optimizer``, others' ``.base_optimizer``), outermost first."""
    found: list[Any] = []
    while optimizer is not None and not any(optimizer is o for o in found):
        found.append(optimizer)
        optimizer = getattr(optimizer, "optimizer", None) or getattr(optimizer, "base_optimizer", None)
    return found


def held_optimizers(optimizer: TorchOptimizer) -> list[TorchOptimizer]:
    """The optimizer and all that its attributes lead to (values, and items of lists, tuples and dicts), each once.

    >>> p = torch.nn.Parameter(torch.ones(1))
    >>> outer, inner = torch.optim.SGD([p]), torch.optim.Adam([p])
    >>> outer.parts = {"others": [inner, outer]}
    >>> [type(o).__name__ for o in held_optimizers(outer)]
    ['SGD', 'Adam']
    """
    found: list[TorchOptimizer] = []
    seen: dict[int, Any] = {}
    todo: list[Any] = [optimizer]
    while todo:
        value = todo.pop(0)
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, TorchOptimizer):
            found.append(value)
            todo += wrapped_optimizers(value)  # some wrappers are read through a property
            todo += [v for name, v in vars(value).items() if name not in ("state", "param_groups")]
        elif isinstance(value, (list, tuple, dict)) and len(value) <= MOST_PARTS:
            todo += value.values() if isinstance(value, dict) else value
    return found


def family_of(optimizer: TorchOptimizer) -> str:
    """``adam``, ``sgd`` or ``other``, from the names of the classes of the optimizer whose steps are seen."""
    names = [c.__name__.lower() for c in type(_stepping(optimizer)).__mro__ if c not in (TorchOptimizer, object)]
    if any("radam" in name for name in names):  # its rectification holds the first steps far below the learning rate
        return "other"
    if any(key in name for name in names for key in _ADAM):
        return "adam"
    return "sgd" if any("sgd" in name for name in names) else "other"


def name_of(optimizer: Any) -> str:
    """Name of the innermost optimizer's class."""
    return type(_innermost(optimizer)).__name__


def classes_of(optimizer: Any) -> tuple[str, ...]:
    """Class names of the innermost optimizer: its own and, where that is not torch's, those it derives from, up to the first of torch's."""
    classes = [
        c for c in type(_innermost(optimizer)).__mro__ if issubclass(c, TorchOptimizer) and c is not TorchOptimizer
    ]
    of_torch = [i for i, c in enumerate(classes) if c.__module__.startswith("torch.optim")]
    return tuple(c.__name__ for c in classes[: of_torch[0] + 1 if of_torch else None])


def _stepping(optimizer: Any) -> Any:
    """The optimizer whose steps torch's hooks see: a wrapper that was never initialised as one (Accelerate's) passes them on."""
    while "_optimizer_step_pre_hooks" not in vars(optimizer) and isinstance(
        inner := getattr(optimizer, "optimizer", None), TorchOptimizer
    ):
        optimizer = inner
    return optimizer


def _innermost(optimizer: Any) -> Any:
    while isinstance(getattr(optimizer, "optimizer", None), TorchOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def state_steps(optimizer: Any, tensors: Iterable[torch.Tensor]) -> int | None:
    """The most updates that the optimizer's state counts for one of the tensors; None: it keeps no count."""
    inner = wrapped_optimizers(optimizer)[-1]
    state = getattr(inner, "state", None)
    if not isinstance(state, dict):
        return None
    if not state and type(inner).__module__.startswith("torch.optim.adam"):
        return 0  # these count from their first step on
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


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``optimizer.step`` requires a closure (LBFGS)."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def expects_metric(scheduler: Any) -> bool:
    """Whether ``scheduler.step`` takes a metric (ReduceLROnPlateau)."""
    return "metrics" in inspect.signature(scheduler.step).parameters


# ---------------------------------------------------------------------- its parameter groups
def lr_of(group: dict[str, Any]) -> float:
    """The learning rate of a group; NaN where it has none (an optimizer that finds its own)."""
    lr = group.get("lr")
    return math.nan if lr is None else float(lr)


def decouples_decay(optimizer: TorchOptimizer, group: dict[str, Any]) -> bool:
    """Whether weight decay shrinks the weight directly instead of joining the gradient."""
    if "decoupled_weight_decay" in group:
        return bool(group["decoupled_weight_decay"])
    names = {c.__name__.lower() for c in type(optimizer).__mro__}
    return any("adamw" in n or "lion" in n for n in names) or "adafactor" in names


def settings_of(group: dict[str, Any]) -> dict[str, float]:
    """A group's other scalar settings; tuples become one setting an item (``betas[0]``)."""
    out: dict[str, float] = {}
    for key, value in group.items():
        if key == "maximize" and value:
            out[key] = 1.0  # the one switch that reverses the direction of every step
        if key in ("params", "lr", "weight_decay", "initial_lr") or isinstance(value, (bool, str)):
            continue
        if isinstance(value, (int, float)):
            out[key] = float(value)
        elif isinstance(value, (tuple, list)):
            out.update({f"{key}[{i}]": float(v) for i, v in enumerate(value) if isinstance(v, (int, float))})
    return out


# ---------------------------------------------------------------------- over a run
class OptimizerReplacements:
    """Counts optimizers that were replaced: a new one steps on the same tensors, and the old one never steps again."""

    def __init__(self) -> None:
        #: Replacements that lasted.
        self.count = 0
        self._order: weakref.WeakKeyDictionary[TorchOptimizer, int] = weakref.WeakKeyDictionary()
        self._next_number = 0
        self._last: tuple[int, frozenset[int]] | None = None  # number and tensors of the one that stepped last
        self._replaced: list[int] = []  # numbers of those that a new one replaced

    def stepped(self, optimizer: TorchOptimizer, tensors: Iterable[int]) -> None:
        """An optimizer took a step on these tensors of the model."""
        number = self._order.get(optimizer)
        if self._last is not None and number == self._last[0]:
            return
        held = frozenset(tensors)
        if number is None:
            number = self._order[optimizer] = self._next_number
            self._next_number += 1
            if self._last is not None and held and held == self._last[1]:
                self._replaced.append(self._last[0])
                self.count += 1
        elif number in self._replaced:  # it steps again: the two alternate
            self._replaced.remove(number)
            self.count -= 1
        self._last = number, held


class SchedulerOrder:
    """Whether the scheduler steps before the optimizer, and whether it drives this optimizer at all.

    :param scheduler: the scheduler that was passed; None: none was.
    """

    def __init__(self, scheduler: Any) -> None:
        self.name = None if scheduler is None else type(scheduler).__name__
        #: Optimizer steps before which, in the same iteration, the scheduler had stepped already.
        self.stepped_first = 0
        self._scheduler = scheduler
        self._epoch_at_start = self._epoch()
        self._epoch_of_iteration: int | None = None
        driven = None if scheduler is None else getattr(scheduler, "optimizer", None)
        self._driven = driven if isinstance(driven, TorchOptimizer) else None

    def drives_another_than(self, optimizers: Iterable[Any]) -> bool:
        """Whether it drives an optimizer that is none of these, and that these do not wrap."""
        known = list(optimizers)
        return self._driven is not None and bool(known) and not any(self._drives(o) for o in known)

    def _drives(self, optimizer: Any) -> bool:
        driven = self._driven
        if driven is None or any(driven is o for o in wrapped_optimizers(optimizer)):
            return True
        return any(g is h for g in driven.param_groups for h in optimizer.param_groups)

    def _epoch(self) -> int | None:
        found = getattr(self._scheduler, "last_epoch", None)
        if found is None:
            found = getattr(getattr(self._scheduler, "scheduler", None), "last_epoch", None)
        return found if isinstance(found, int) and not isinstance(found, bool) else None

    def iteration_begins(self) -> None:
        """A new iteration begins."""
        self._epoch_of_iteration = self._epoch()

    def optimizer_steps(self, optimizer: Any, *, first: bool) -> None:
        """This optimizer has stepped; ``first``: it is the first step, in the first known iteration."""
        if self._scheduler is None:
            return
        now = self._epoch()
        before = self._epoch_at_start if first else self._epoch_of_iteration
        self.stepped_first += now is not None and before is not None and now > before and self._drives(optimizer)
