"""Snapshots of what a user hands over: a model, an optimizer, a scheduler, a loader. `Undo` restores them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..core.formatting import describe_type, one_line, text_of
from .batches import tensors_in
from .kept_attributes import KeptGenerator, ObjectAttributes, configs_in, kind_of, refill
from .kept_tensors import KeptFlags, KeptLeaf, KeptTensor, small
from .sharded_tensors import memory_of
from .undisturbed import modules_of, named_tensors_of
from .undo import NotRestored, Restorable, restore_or_name


class _Parts:
    """Several things kept together; one that cannot be restored does not prevent the others."""

    def __init__(self) -> None:
        self.parts: list[Restorable] = []

    def restore(self) -> None:
        """Everything as it was when the snapshot was taken.

        :raises NotRestored: naming what could not be restored.
        """
        problems: list[str] = []
        for part in self.parts:
            restore_or_name(part, problems)
        if problems:
            raise NotRestored("; ".join(problems))


class _KeptParameter(KeptTensor):
    """A parameter: its values, flag, gradient, hooks and attributes.

    The run works on an old gradient itself: a loop may hold its memory in other ways, too (views of one flat buffer, a list of
    gradients), and zeroes it there.
    """

    __slots__ = ("attributes", "flags", "hooks")
    _HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")

    def __init__(self, p: torch.Tensor, name: str, *, values: bool) -> None:
        if values:
            super().__init__(p, name)
        else:
            self.tensor, self.name, self.memory, self.values = p, name, memory_of(p), None
        self.flags = KeptFlags(p)
        self.attributes = dict(vars(p))
        self.hooks = [(h, table, dict(table or ())) for h in self._HOOKS for table in [getattr(p, h, None)]]

    def lend_gradient(self) -> None:
        """A run that zeroes an old gradient in place takes its graph (``create_graph=True``) away for good: it does it to a copy."""
        grad = self.tensor.grad
        if grad is not None and not grad.is_leaf:
            self.tensor.grad = grad.clone()

    def restore(self) -> bool:
        """The parameter as it was when the snapshot was taken."""
        p = self.tensor
        differed = super().restore()
        refill(vars(p), self.attributes)
        for name, table, hooks in self.hooks:
            if getattr(p, name, None) is not table:
                setattr(p, name, table)
            if table is not None:
                refill(table, hooks)
        return self.flags.restore() or differed


class ModelSnapshot(_Parts):
    """A module as it is now: values, gradients, buffers, modes, flags, hooks, plain attributes and its configs.

    :param values: False: all but the parameters' values.
    :param known: ids of parameters that another snapshot keeps; those of this one are added.
    """

    def __init__(self, model: nn.Module, *, values: bool = True, known: set[int] | None = None) -> None:
        super().__init__()
        known = set() if known is None else known
        modules = modules_of(model)
        self._parameters = kept_parameters(named_tensors_of(model, "_parameters"), known, values=values)
        self.parts += self._parameters
        buffers = [KeptLeaf(b, n) for n, b in named_tensors_of(model, "_buffers")]
        self.parts += buffers
        kept = known | {id(b.tensor) for b in buffers}

        def keep(value: Any) -> bool:
            return small(value) and id(value) not in kept

        self.parts += [ObjectAttributes(owner, keep) for owner in (*modules, *configs_in(modules))]

    def begin(self) -> None:
        """Lend the parameters copies of those gradients that could not be restored."""
        for kept in self._parameters:
            kept.lend_gradient()


def kept_parameters(
    named: Iterable[tuple[str, torch.Tensor]], known: set[int], *, values: bool = True
) -> list[_KeptParameter]:
    """Those of these parameters that are not known, which they are then."""
    new = [(n, p) for n, p in named if id(p) not in known]
    known |= {id(p) for _, p in new}
    return [_KeptParameter(p, n, values=values) for n, p in new]


class OptimizerSnapshot(_Parts):
    """An optimizer as it is now: groups, state, hooks, the attributes that schedulers put on it, and the tensors that it trains.

    :param known: ids of parameters that another snapshot keeps.
    """

    def __init__(self, optimizer: Optimizer, known: set[int] | None = None) -> None:
        super().__init__()
        known = set() if known is None else known
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        self._parameters = kept_parameters((("a tensor of the optimizer", p) for p in trained), known)
        self.parts += self._parameters
        ids = {id(p) for p in trained} | known

        def keep(value: Any) -> bool:
            return isinstance(value, torch.Tensor) and id(value) not in ids

        self.parts.append(ObjectAttributes(optimizer, keep))
        self.parts.append(_Others(optimizer))

    def begin(self) -> None:
        """As in `ModelSnapshot`."""
        for kept in self._parameters:
            kept.lend_gradient()


def _copied(value: Any, what: str) -> Any:
    """A deep copy; ``ValueError`` for what refuses to be copied, for it could not be restored."""
    try:
        return copy.deepcopy(value)
    except Exception as error:
        why = f"{type(error).__name__}: {one_line(text_of(error), 200)}"
        raise ValueError(
            f"{what} is {describe_type(value)} that cannot be copied ({why}), and so could not be restored: pass a function that makes it"
        ) from error


class _Others:
    """What an optimizer's state holds besides numbers, tensors and containers: kept as deep copies."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.entries = [
            (state, key, _copied(value, f"optimizer: its state {key!r}"))
            for state in optimizer.state.values()
            if isinstance(state, dict)
            for key, value in state.items()
            if kind_of(type(value)) == "other" and not isinstance(value, torch.Tensor)
        ]

    def restore(self) -> None:
        """The entries as they were."""
        for state, key, value in self.entries:
            state[key] = value


class SchedulerSnapshot(_Parts):
    """A learning-rate scheduler as it is now."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        if hasattr(scheduler, "state_dict"):
            self.parts.append(_LoadedState(scheduler))
        if hasattr(scheduler, "__dict__"):
            self.parts.append(ObjectAttributes(scheduler))


class _LoadedState:
    """What a scheduler itself says it needs: it may hold other schedulers."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.state = scheduler, _copied(scheduler.state_dict(), "scheduler: its state_dict()")

    def restore(self) -> None:
        """The state as it was."""
        self.scheduler.load_state_dict(copy.deepcopy(self.state))

    def __str__(self) -> str:
        return f"the state of a {type(self.scheduler).__name__}"


class BatchFlags(_Parts):
    """``requires_grad`` and ``.grad`` of the tensors in these batches: a forward pass may switch them on (``x.requires_grad_()``)."""

    def __init__(self, batches: Iterable[Any]) -> None:
        super().__init__()
        self.parts += [KeptFlags(t) for batch in batches for t in tensors_in(batch) if t.is_leaf]


class LoaderSnapshot(_Parts):
    """The random generators of a DataLoader, its samplers, its data set and its collate function: iterating draws from them."""

    def __init__(self, batches: Any) -> None:
        super().__init__()
        found: dict[int, KeptGenerator] = {}
        for owner in _sources(batches):
            for value in _attributes(owner):
                if kind_of(type(value)) == "generator" and id(value) not in found:
                    found[id(value)] = KeptGenerator(value)
        self.generators = list(found.values())
        self.parts += self.generators

    def reseed(self, seed: int) -> None:
        """Seed torch's generators among them."""
        for kept in self.generators:
            if isinstance(kept.generator, torch.Generator):
                kept.generator.manual_seed(seed)


def _sources(batches: Any) -> list[Any]:
    """The loader and what it reads from, and what these read from."""
    found: dict[int, Any] = {}
    todo = [batches]
    while todo:
        owner = todo.pop()
        if owner is None or id(owner) in found or isinstance(owner, (list, tuple, str, dict, torch.Tensor)):
            continue
        found[id(owner)] = owner
        names = ("sampler", "batch_sampler", "dataset", "collate_fn", "data_source", "__self__")
        todo += [getattr(owner, name, None) for name in names]
        several = getattr(owner, "datasets", None)
        todo += several if isinstance(several, (list, tuple)) else []
    return list(found.values())


def _attributes(owner: Any) -> Iterable[Any]:
    values = getattr(owner, "__dict__", {})
    return values.values() if isinstance(values, dict) else ()
