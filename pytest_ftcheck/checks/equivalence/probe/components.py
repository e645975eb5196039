"""The state of a training, component by component: what a checkpoint has to hold, and what can be put back by hand."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ....instruments.kept_tensors import same_bits, set_values
from .module_state import ModuleState, is_plain, plain_copy, same

#: Components that are not named after a buffer or an attribute.
WEIGHTS, OPTIMIZER, SCHEDULER, RANDOM = "weights", "optimizer", "scheduler", "random"


class Components:
    """Weights, buffers, attributes, optimizer, scheduler and random states of a training as they are now."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        self._parameters = [(p, p.detach().clone()) for p in model.parameters()]
        self._modules = ModuleState(model)
        self._optimizer = _OptimizerState(optimizer)
        self._scheduler = None if scheduler is None else copy_scheduler(scheduler, optimizer, optimizer)
        self._of = optimizer
        self._random = random_states()

    def changed(self, scheduler: Any, optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
        """The components that are no longer the same, of objects that may be others."""
        names = self._modules.changed()
        persistent = [n for n in names if self._modules.persistent(n)]
        found = []
        if persistent or any(not same_bits(p.detach(), was) for p, was in self._parameters):
            found.append(WEIGHTS)
        if not self._optimizer.equals(optimizer):
            found.append(OPTIMIZER)
        if self._scheduler is not None and not _same_scheduler(self._scheduler, scheduler):
            found.append(SCHEDULER)
        if not same_random(self._random, random_states()):
            found.append(RANDOM)
        return (*found, *(n for n in names if n not in persistent))

    def put_back(self, names: Iterable[str], optimizer: torch.optim.Optimizer, scheduler: Any) -> Any:
        """Put these components back; returns the scheduler, which is a new one where it was among them."""
        chosen = set(names)
        if WEIGHTS in chosen:
            for p, was in self._parameters:
                set_values(p, was)
            self._modules.put_back(self._modules.persistent_names())
        if OPTIMIZER in chosen:
            self._optimizer.put_back(optimizer)
        if SCHEDULER in chosen and self._scheduler is not None:
            scheduler = copy_scheduler(self._scheduler, self._of, optimizer)
        self._modules.put_back(chosen - {WEIGHTS, OPTIMIZER, SCHEDULER, RANDOM})
        if RANDOM in chosen:
            set_random_states(self._random)
        return scheduler


class _OptimizerState:
    """State, settings and plain attributes of an optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.tensors = [p for g in optimizer.param_groups for p in g["params"]]
        self.state = self._entries(optimizer)
        self.groups = [{k: copy.deepcopy(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        self.attributes = {k: plain_copy(v) for k, v in vars(optimizer).items() if _own(k, v)}

    def _entries(self, optimizer: torch.optim.Optimizer) -> list[Any]:
        return [copy.deepcopy(optimizer.state[p]) if p in optimizer.state else None for p in self.tensors]

    def equals(self, other: torch.optim.Optimizer) -> bool:
        now = _OptimizerState(other)
        return (
            same(self.state, now.state)
            and _same_groups(self.groups, now.groups)
            and same(self.attributes, now.attributes)
        )

    def put_back(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.state.clear()
        for p, entry in zip(self.tensors, self.state, strict=True):
            if entry is not None:
                optimizer.state[p] = copy.deepcopy(entry)
        for group, was in zip(optimizer.param_groups, self.groups, strict=True):
            group.update(copy.deepcopy(was))
        for key, value in self.attributes.items():
            setattr(optimizer, key, plain_copy(value))


def _own(key: str, value: Any) -> bool:
    return key not in ("state", "param_groups", "defaults") and is_plain(value)


def _same_groups(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> bool:
    """Settings that are not plain are not compared."""
    plain = [[{k: v for k, v in g.items() if is_plain(v)} for g in groups] for groups in (one, other)]
    return same(plain[0], plain[1])


def _same_scheduler(one: Any, other: Any) -> bool:
    mine, theirs = vars(one), vars(other)
    for key, value in mine.items():
        if key == "_schedulers" and isinstance(value, list):
            if not all(_same_scheduler(a, b) for a, b in zip(value, theirs[key], strict=True)):
                return False
        elif is_plain(value) and not same(value, theirs.get(key)):
            return False
    return True


def copy_scheduler(scheduler: Any, of: torch.optim.Optimizer, optimizer: torch.optim.Optimizer) -> Any:
    """A copy of the scheduler of one optimizer, that drives another."""
    return copy.deepcopy(scheduler, {id(of): optimizer})


# ---------------------------------------------------------------------- random states
def random_states() -> dict[str, Any]:
    """The random states of python, numpy (if loaded) and torch on every device that is in use."""
    found: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if numpy := sys.modules.get("numpy"):
        found["numpy"] = numpy.random.get_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def set_random_states(states: dict[str, Any]) -> None:
    """Set what `random_states` returned."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "numpy" in states:
        sys.modules["numpy"].random.set_state(states["numpy"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


def same_random(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two random states are the same."""
    if not torch.equal(one["torch"], other["torch"]) or one["python"] != other["python"]:
        return False
    if "numpy" in one and "numpy" in other:
        a, b = one["numpy"], other["numpy"]
        if a[2:] != b[2:] or bool((a[1] != b[1]).any()):
            return False
    return all(torch.equal(a, b) for a, b in zip(one.get("cuda", ()), other.get("cuda", ()), strict=False))
