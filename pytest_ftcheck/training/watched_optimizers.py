"""The optimizers that train the watched model: those that were given, or else each one that steps on tensors of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch.optim import Optimizer

from ..instruments.optimizers import family_of, lr_of, wrapped_optimizers


class WatchedOptimizers:
    """Several optimizers, whose parameter groups are numbered through.

    :param given: the user's optimizers, or wrappers of them; empty: each optimizer is adopted when it first steps on tensors of the model
        that no adopted one holds. One that takes over the tensors of another replaces it, and is not adopted.
    :param in_model: ids of the model's parameters.
    """

    def __init__(self, given: Sequence[Optimizer], in_model: Collection[int]) -> None:
        self.all: list[Optimizer] = list(given)
        self._adopts, self._in_model = not given, in_model
        self._foreign: list[Optimizer] = []
        self._place = {id(o): place for place, outer in enumerate(given) for o in wrapped_optimizers(outer)}

    def __contains__(self, optimizer: Optimizer) -> bool:
        return id(optimizer) in self._place

    def place(self, optimizer: Optimizer) -> int:
        """Its place among the watched ones."""
        return self._place[id(optimizer)]

    def adopt(self, optimizer: Optimizer) -> bool:
        """Watch this one from now on, if it is one to adopt."""
        if not self._adopts or optimizer in self:
            return False
        own = ids_held(optimizer)
        if own.isdisjoint(self._in_model) or not own.isdisjoint(self.held()):
            return False
        self._add(optimizer)
        return True

    def _add(self, optimizer: Optimizer) -> None:
        self._place[id(optimizer)] = len(self.all)
        self.all.append(optimizer)

    def step_elsewhere(self, optimizer: Optimizer) -> None:
        """An optimizer stepped that holds no tensor of the model."""
        if self._adopts and len(self._foreign) < 2 and not any(optimizer is o for o in self._foreign):
            self._foreign.append(optimizer)

    def adopt_the_only_one(self) -> None:
        """At the end, where none was adopted: the one optimizer that stepped, though it holds no tensor of the model (as one that was built
        before the model was copied)."""
        if not self.all and len(self._foreign) == 1:
            self._add(self._foreign[0])

    def innermost(self) -> list[Any]:
        """Each of them without its wrappers."""
        return [wrapped_optimizers(o)[-1] for o in self.all]

    def held(self) -> set[int]:
        """Ids of all tensors that they hold now."""
        return {i for optimizer in self.all for i in ids_held(optimizer)}

    def offset(self, place: int) -> int:
        """Number of the first group of the optimizer at this place."""
        return sum(len(o.param_groups) for o in self.all[:place])

    def lrs(self) -> tuple[float, ...]:
        """The learning rate of each group of all of them."""
        return tuple(lr_of(group) for o in self.all for group in o.param_groups)

    def family(self) -> str:
        """As `family_of`; ``other`` where they differ, or none is known."""
        families = {family_of(o) for o in self.all}
        return families.pop() if len(families) == 1 else "other"


def ids_held(optimizer: Optimizer) -> set[int]:
    """Ids of the tensors in its groups."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


class Together(Optimizer):
    """Several optimizers, or none, read as one: it has the groups and the state of all, and never steps."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.param_groups = [group for o in optimizers for group in o.param_groups]
        self.defaults: dict[str, Any] = {}
        self.state = {p: s for o in optimizers for p, s in o.state.items()}  # type: ignore[assignment]


def as_one(optimizers: Sequence[Optimizer]) -> Optimizer:
    """The optimizer, where there is one; else `Together`."""
    return optimizers[0] if len(optimizers) == 1 else Together(optimizers)
