"""Blocks in which a model is measured, and after which it is as before."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .global_state import GlobalState
from .inference import InferenceMode
from .kept_attributes import configs_in, keep_attributes
from .kept_tensors import FreshMemory, KeptTensors, restore_flags
from .other_processes import alone
from .undo import Undo

#: The weights of a model with more parameters are not copied as a precaution.
COPIED = 20_000_000
#: Model -> names of weights that its forward pass was found to change.
_WRITTEN: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


class _Probing:
    """How many `undisturbed` blocks are open in this process."""

    open = 0

    def __init__(self) -> None:
        self.was = _Probing.open

    def restore(self) -> None:
        """As many as before."""
        _Probing.open = self.was


def is_probing() -> bool:
    """Whether what happens now is a probe's doing (inside `undisturbed`), and not the loop's."""
    return _Probing.open > 0


#: What is switched off while a probe measures: each is called when a block begins, and what it returns when the block ends.
_SWITCHES: list[Callable[[], Callable[[], None]]] = [alone]


def off_while_probing(switch_off: Callable[[], Callable[[], None]]) -> None:
    """From now on this is switched off in `undisturbed`: torch chooses other kernels while a mode of functions is active.

    :param switch_off: switches it off, and returns a function that switches it on again; that may be called several times.
    """
    _SWITCHES.append(switch_off)


class _Switches:
    """All of them off, until `restore`."""

    def __init__(self) -> None:
        self.on = [switch_off() for switch_off in _SWITCHES]

    def restore(self) -> None:
        """As before."""
        for switch_on in self.on:
            switch_on()


@contextlib.contextmanager
def undisturbed(model: nn.Module, *, weights: bool = False) -> Iterator[None]:
    """Restores random states, global switches, the mode of each module, all buffers, ``.grad`` and ``requires_grad`` of each
    parameter and buffer, and what modules and their configs hold besides (see `PlainAttributes`).

    :param weights: restore the weights, too: some models write into them in a forward pass (an embedding with ``max_norm``, a head
        that normalises itself). Once a weight was found changed, it is always restored.
    """
    undo = _kept(model, modules_of(model), weights=weights)
    # what is switched here the undo switches back: a block of torch's own in a generator that an interrupt left behind ends when the
    # generator is freed, which may be after everything was restored
    with undo, InferenceMode(False):
        torch.set_grad_enabled(False)
        _Probing.open += 1
        yield


def _kept(model: nn.Module, modules: list[nn.Module], *, weights: bool) -> Undo:
    """All that `undisturbed` restores, as it is now."""
    undo = Undo(GlobalState(), _Probing(), _Switches(), _Flags(modules), _Modes(modules))
    undo.keep(_Weights(model, all_of_them=weights))
    undo.keep(KeptTensors(("", b) for b in _distinct(m._buffers for m in modules)))
    undo.keep(*keep_attributes((*modules, *configs_in(modules))))
    return undo


@contextlib.contextmanager
def quiet(model: nn.Module, *, grad: bool = False, weights: bool = False) -> Iterator[None]:
    """Dropout off, no gradients (unless ``grad``), everything restored as by :func:`undisturbed`: for every measurement on a model."""
    modules = modules_of(model)
    undo = _kept(model, modules, weights=weights)
    with undo, InferenceMode(False):
        torch.set_grad_enabled(grad)
        _Probing.open += 1
        # not .eval(): an overridden train() may do more than switch the mode
        _switch((m, False) for m in modules)
        yield


@contextlib.contextmanager
def perturbed(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """The values of these tensors may be changed in place inside, in memory of their own: the user's is not written to."""
    fresh = FreshMemory(tensors)
    with Undo(fresh):
        fresh.lend()
        yield


def modules_of(model: nn.Module) -> list[nn.Module]:
    """The same as ``list(model.modules())``, but faster, and not to be overridden: it is needed many times at every step of a run."""
    found: dict[int, nn.Module] = {}
    left: list[nn.Module | None] = [model]
    while left:
        module = left.pop()
        if module is None or (key := id(module)) in found:
            continue
        found[key] = module
        if children := module._modules:
            left.extend(reversed(list(children.values())))
    return list(found.values())


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """The same as ``list(model.parameters())``, but faster, and not to be overridden."""
    return _distinct(m._parameters for m in modules_of(model))


def _distinct(tables: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The tensors in these tables; one that several modules share comes once."""
    return list({id(t): t for table in tables if table for t in table.values() if t is not None}.values())


def _switch(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    for module, mode in modes:
        if module.training is not mode:
            mine = vars(module)
            if "training" in mine:
                mine["training"] = mode  # setting an attribute of a module is slow: torch searches its tables
            else:
                module.training = mode


class _Modes:
    """The mode of each module. Modules created since (a forward pass may replace parts of its model, as BigBird's does) get the mode of
    their parent."""

    def __init__(self, modules: list[nn.Module]) -> None:
        # lists side by side: of thousands of modules the pairs cost more than what is in them, here and below
        self.modules, self.on = modules, [m.training for m in modules]

    def restore(self) -> None:
        """The modes as they were."""
        _switch(zip(self.modules, self.on, strict=True))
        parents = [m for m in self.modules if m._modules]
        known = {id(m) for m in self.modules} if parents else set()
        while parents:
            parent = parents.pop()
            for child in parent._modules.values():
                if child is not None and id(child) not in known:
                    child.training = parent.training
                    known.add(id(child))
                    parents.append(child)


class _Flags:
    """``requires_grad`` and ``.grad`` of each parameter and each buffer."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # a tensor that several modules share comes several times: finding out costs more than restoring it again
        tables = [table for m in modules for table in (m._parameters, m._buffers) if table]
        self.leaves = [t for table in tables for t in table.values() if t is not None and t.is_leaf]
        self.flags = [t.requires_grad for t in self.leaves]
        self.grads = [t.grad for t in self.leaves]

    def restore(self) -> None:
        """Flags and gradients as they were."""
        for tensor, flag, grad in zip(self.leaves, self.flags, self.grads, strict=True):
            if tensor.requires_grad != flag or tensor.grad is not grad:
                restore_flags(tensor, flag, grad)


class _Weights:
    """The weights that a forward pass may write into: those found changed before; all, if wanted and the model is small."""

    def __init__(self, model: nn.Module, *, all_of_them: bool) -> None:
        self.model = model
        known = _WRITTEN.get(model, set())
        chosen: list[tuple[str, nn.Parameter]] = []
        if all_of_them or known:
            chosen = list(named_parameters_of(model))
            if not all_of_them or sum(p.numel() for _, p in chosen) > COPIED:
                capped = {id(m.weight) for m in modules_of(model) if getattr(m, "max_norm", None) is not None}
                chosen = [(n, p) for n, p in chosen if n in known or (all_of_them and id(p) in capped)]
        self.kept = KeptTensors(chosen)

    def restore(self) -> None:
        """The weights as they were."""
        if written := self.kept.restore():
            _WRITTEN.setdefault(self.model, set()).update(written)


def named_parameters_of(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """All parameters by name, each once: also those of a model that overrides ``parameters()``."""
    return named_tensors_of(model, "_parameters")


def named_tensors_of(model: nn.Module, table: str) -> Iterator[tuple[str, Any]]:
    """What the modules hold in this table of theirs, by name, each once."""
    seen: set[int] = set()
    left = [("", model)]
    visited = {id(model)}
    while left:
        prefix, module = left.pop()
        for name, tensor in getattr(module, table).items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield prefix + name, tensor
        for name, child in reversed(list(module._modules.items())):
            if child is not None and id(child) not in visited:
                visited.add(id(child))
                left.append((f"{prefix}{name}.", child))
