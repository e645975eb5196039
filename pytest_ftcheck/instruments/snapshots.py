"""Snapshot and restore everything that belongs to the user, also after an exception."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import random
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from ..core.seeding import reseed


@contextlib.contextmanager
def preserved_globals() -> Iterator[None]:
    """Restores random states (python, numpy if loaded, torch on every device) and torch's global switches."""
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and _cuda_ready() else None
    dtype = torch.get_default_dtype()
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    grad = torch.is_grad_enabled()
    anomaly = torch.is_anomaly_enabled()
    precision = torch.get_float32_matmul_precision()
    place = torch.get_default_device()
    try:
        yield
    finally:
        random.setstate(python)
        if numpy and numpy_state is not None:
            numpy.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        if now != (deterministic, warn_only):
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
        torch.set_grad_enabled(grad)
        torch.autograd.set_detect_anomaly(anomaly)
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)
        if torch.get_default_device() != place:
            torch.set_default_device(place)


def _cuda_ready() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def seed_everything(seed: int) -> None:
    """Seed python, numpy (if loaded) and torch; use inside :func:`preserved_globals`."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)
    reseed(seed)


#: How many `undisturbed` blocks are open in this process.
_probing = 0


def is_probing() -> bool:
    """Whether what happens now is a probe's doing (inside `undisturbed`), and not the loop's."""
    return _probing > 0


@contextlib.contextmanager
def undisturbed(model: nn.Module, *, weights: bool = False) -> Iterator[None]:
    """Restores random states, global switches, the mode of each module, all buffers, ``.grad`` and ``requires_grad`` of each
    parameter, and the plain attributes of modules.

    :param weights: restore the weights, too: some models write into them in a forward pass (an embedding with ``max_norm``, a head
        that normalises itself). Once a weight was found changed, it is always restored.
    """
    global _probing
    modules = _modules(model)
    modes = [(m, m.training) for m in modules]
    kept = [_PlainAttributes(m) for m in modules]
    flags = [(p, p.requires_grad, p.grad) for p in _distinct(m._parameters for m in modules)]
    buffers = [(b, b.detach().clone()) for b in _distinct(m._buffers for m in modules)]
    own = _Weights(model, all_of_them=weights)
    with preserved_globals(), torch.inference_mode(False), torch.no_grad():
        _probing += 1
        try:
            yield
        finally:
            _probing -= 1
            for plain in kept:
                plain.restore()
            _switch(modes)
            _set_mode_of_new(model, {id(m) for m, _ in modes})
            for p, flag, grad in flags:
                if p.requires_grad != flag:
                    p.requires_grad_(flag)
                if p.grad is not grad:
                    p.grad = grad
            with torch.no_grad():
                for buffer, was in buffers:
                    _put_back_if_changed(buffer, was)
                own.restore()


def _modules(model: nn.Module) -> list[nn.Module]:
    """The same as ``model.modules()``, but faster: it is needed many times at every step of a run."""
    found = {id(model): model}
    left = [model]
    while left:
        for child in left.pop()._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                left.append(child)
    return list(found.values())


def _distinct(tables: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The tensors in these tables; one that several modules share comes once."""
    return list({id(t): t for table in tables if table for t in table.values() if t is not None}.values())


def _switch(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    for module, mode in modes:
        if module.training is not mode:  # setting an attribute of a module is slow: torch searches its tables
            module.training = mode


def _set_mode_of_new(module: nn.Module, known: set[int]) -> None:
    """Modules created inside (a forward pass may replace parts of its model, as BigBird's does) get the mode of their parent."""
    for child in module._modules.values():
        if child is not None:
            if id(child) not in known:
                child.training = module.training
            _set_mode_of_new(child, known)


@contextlib.contextmanager
def quiet(model: nn.Module, *, grad: bool = False, weights: bool = False) -> Iterator[None]:
    """Dropout off, no gradients (unless ``grad``), everything restored as by :func:`undisturbed`: for every measurement on a model."""
    with undisturbed(model, weights=weights), torch.set_grad_enabled(grad):
        # not .eval(): an overridden train() may do more than switch the mode
        _switch((m, False) for m in _modules(model))
        yield


@contextlib.contextmanager
def perturbed(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """The values of these parameters may be changed in place inside; every bit is restored afterwards."""
    kept = [(p, p.detach().clone()) for p in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, was in kept:
                p.data.copy_(was)


def _put_back(buffer: torch.Tensor, values: torch.Tensor) -> None:
    if buffer.shape != values.shape:
        buffer.resize_(values.shape)  # resized in place by the forward pass
    buffer.copy_(values)


def _put_back_if_changed(tensor: torch.Tensor, values: torch.Tensor) -> None:
    if not same_bits(tensor, values):
        with torch.no_grad():
            _put_back(tensor, values)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether shape and values are equal, NaN equal to NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_floating_point() and a.dtype.itemsize == 1:
        a, b = a.view(torch.uint8), b.view(torch.uint8)  # torch cannot compare 8-bit floats
    return bool(torch.equal(a, b) or ((a == b) | ((a != a) & (b != b))).all())


class _PlainAttributes:
    """What a forward pass may write into: plain values, containers, small tensors and generators among a module's attributes, and its
    table of buffers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.values: list[tuple[str, Any]] = []
        self.contents: list[tuple[Any, Any]] = []
        self.tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.generators: list[_Generator] = []
        for key, value in vars(module).items():
            if key in _OWN:
                continue
            kind = _kind(type(value))
            if kind == "plain":
                self.values.append((key, value))
                if _small(value):
                    self.tensors.append((value, value.detach().clone()))
            elif kind == "container":
                if key[0] != "_":
                    self.contents.append((value, copy.copy(value)))
            elif kind == "generator":
                self.generators.append(_Generator(value))
        self.buffers = dict(module._buffers) if module._buffers else {}

    def restore(self) -> None:
        mine = vars(self.module)
        for key, value in self.values:
            if mine.get(key) is not value:
                mine[key] = value
        for container, was in self.contents:
            if not _same_items(container, was):
                _refill(container, was)
        for tensor, values in self.tensors:
            _put_back_if_changed(tensor, values)
        for generator in self.generators:
            generator.restore()
        now = self.module._buffers
        for name, buffer in self.buffers.items():
            if now.get(name) is not buffer:
                now[name] = buffer


def _small(value: Any) -> bool:
    """A tensor small enough to copy, and no part of a graph."""
    return (
        isinstance(value, torch.Tensor) and value.is_leaf and value.device.type != "meta" and value.numel() <= 100_000
    )


def _refill(container: Any, items: Any) -> None:
    container.clear()
    if isinstance(container, (list, collections.deque)):
        container.extend(items)
    else:
        container.update(items)


def _same_items(a: Any, b: Any) -> bool:
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(k in b and v is b[k] for k, v in a.items())
    return a == b if isinstance(a, set) else all(x is y for x, y in zip(a, b, strict=True))


_Kind: TypeAlias = Literal["plain", "container", "generator", "other"]


def _kind_of(of: type) -> _Kind:
    """How an attribute of this type is kept."""
    if of in _PLAIN:
        return "plain"
    if of in _CONTAINERS:
        return "container"
    if issubclass(of, (random.Random, torch.Generator)) or of.__module__.startswith("numpy.random."):
        return "generator"
    return "other"


# cached: a model has hundreds of attributes of the same few types
_kind: Callable[[type], _Kind] = functools.lru_cache(maxsize=1024)(_kind_of)


class _Generator:
    """A random generator of the user's, of python, numpy or torch, as it is now."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        # numpy's generators, new and old, keep the state in a part of theirs
        self.bits = getattr(generator, "bit_generator", None) or getattr(generator, "_bit_generator", None)
        if isinstance(generator, random.Random):
            self.state: Any = generator.getstate()
        elif isinstance(generator, torch.Generator):
            self.state = generator.get_state()
        else:
            self.state = None if self.bits is None else copy.deepcopy(self.bits.state)

    def restore(self) -> None:
        """Everything as it was when the snapshot was taken."""
        if isinstance(self.generator, random.Random):
            self.generator.setstate(self.state)
        elif isinstance(self.generator, torch.Generator):
            self.generator.set_state(self.state)
        elif self.bits is not None:
            self.bits.state = self.state


class _Weights:
    """The weights that a forward pass may write into: those found changed before; all, if wanted and the model is small."""

    def __init__(self, model: nn.Module, *, all_of_them: bool) -> None:
        self.model = model
        known = _WRITTEN.get(model, set())
        chosen: list[tuple[str, nn.Parameter]] = []
        if all_of_them or known:
            chosen = [(n, p) for n, p in model.named_parameters() if p.device.type != "meta"]
            if not all_of_them or sum(p.numel() for _, p in chosen) > COPIED:
                capped = {id(m.weight) for m in model.modules() if getattr(m, "max_norm", None) is not None}
                chosen = [(n, p) for n, p in chosen if n in known or (all_of_them and id(p) in capped)]
        self.kept = [(n, p, p.data, p.detach().clone()) for n, p in chosen]

    def restore(self) -> None:
        for name, p, storage, values in self.kept:
            moved = p.data_ptr() != storage.data_ptr()
            if moved and p.shape == storage.shape:
                p.data = storage
            if not same_bits(storage, values):
                storage.copy_(values)
            elif not moved:
                continue
            _WRITTEN.setdefault(self.model, set()).add(name)


#: The weights of a model with more parameters are not copied as a precaution.
COPIED = 20_000_000
#: Model -> names of weights that its forward pass was found to change.
_WRITTEN: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()
#: Attributes of every module: its mode and its tables of parameters, children and hooks.
_OWN = frozenset(vars(nn.Module())) - {"_is_full_backward_hook"}
_PLAIN = (int, float, bool, str, tuple, type(None), torch.Tensor)
_CONTAINERS = (
    list,
    dict,
    set,
    collections.deque,
    collections.OrderedDict,
    collections.defaultdict,
    collections.Counter,
)


class ObjectAttributes:
    """The ``__dict__`` of one object, and the contents of the plain containers in it, one level deep."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.values = dict(vars(owner))
        self.contents = [(v, copy.copy(v)) for v in self.values.values() if isinstance(v, _CONTAINERS)]
        self.generators = [_Generator(v) for v in self.values.values() if _kind(type(v)) == "generator"]
        self.tensors = [(v, v.detach().clone()) for v in self.values.values() if _small(v)]

    def restore(self) -> None:
        for tensor, was in self.tensors:
            _put_back_if_changed(tensor, was)
        for generator in self.generators:
            generator.restore()
        mine = vars(self.owner)
        mine.clear()
        mine.update(self.values)
        for container, was in self.contents:
            _refill(container, was)


class ModelSnapshot:
    """A module as it is now: values, gradients, buffers, modes, flags, hooks, plain attributes and its config."""

    def __init__(self, model: nn.Module) -> None:
        self.attributes = [ObjectAttributes(m) for m in model.modules()]
        configs = {id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), "__dict__")}
        self.attributes += [ObjectAttributes(c) for c in configs.values()]
        self.parameters = [(p, p.data, p.data.clone(), p.requires_grad, p.grad) for p in model.parameters()]
        self.buffers = [(b, b.detach().clone()) for b in model.buffers()]
        for p, _, _, _, grad in self.parameters:
            if grad is not None:
                p.grad = grad.clone()  # a run that adds to, or zeroes, an old gradient does it to a copy

    def restore(self) -> None:
        """Everything as it was when the snapshot was taken."""
        with torch.no_grad():
            for p, storage, values, requires_grad, grad in self.parameters:
                storage.copy_(values)
                p.data = storage
                p.requires_grad_(requires_grad)
                p.grad = grad
            for buffer, values in self.buffers:
                _put_back(buffer, values)
        for attributes in self.attributes:
            attributes.restore()


class OptimizerSnapshot:
    """An optimizer as it is now: groups, state, hooks, and the attributes that schedulers put on it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.attributes = ObjectAttributes(optimizer)
        self.groups: list[tuple[dict[str, Any], dict[str, Any], list[Any]]] = [
            (
                group,
                {k: list(v) if k == "params" else copy.deepcopy(v) for k, v in group.items()},
                group["params"],
            )
            for group in optimizer.param_groups
        ]
        self.state = {
            p: (
                state,
                {
                    k: (v, v.detach().clone() if isinstance(v, torch.Tensor) else copy.deepcopy(v))
                    for k, v in state.items()
                },
            )
            for p, state in optimizer.state.items()
        }

    def restore(self) -> None:
        """Everything as it was when the snapshot was taken."""
        self.attributes.restore()
        for group, values, params in self.groups:
            lr: Any = group.get("lr")
            group.clear()
            group.update(values)
            params[:] = values["params"]
            group["params"] = params
            if isinstance(lr, torch.Tensor):  # a tensor LR is shared with whoever made it
                lr.copy_(values["lr"])
                group["lr"] = lr
        self.optimizer.param_groups[:] = [group for group, _, _ in self.groups]
        self.optimizer.state.clear()
        with torch.no_grad():
            for p, (state, entries) in self.state.items():
                state.clear()
                for key, (value, was) in entries.items():
                    state[key] = value.copy_(was) if isinstance(value, torch.Tensor) else was
                self.optimizer.state[p] = state


class SchedulerSnapshot:
    """A learning-rate scheduler as it is now."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.state = copy.deepcopy(scheduler.state_dict()) if hasattr(scheduler, "state_dict") else None
        self.attributes = ObjectAttributes(scheduler) if hasattr(scheduler, "__dict__") else None

    def restore(self) -> None:
        """Everything as it was when the snapshot was taken."""
        if self.attributes is not None:
            self.attributes.restore()
        if self.state is not None:
            self.scheduler.load_state_dict(self.state)


class LoaderSnapshot:
    """The generators of a DataLoader and its sampler: iterating draws from them."""

    def __init__(self, batches: Any) -> None:
        owners = [batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None)]
        owners.append(getattr(owners[-1], "sampler", None))
        found = {id(g): g for o in owners if isinstance(g := getattr(o, "generator", None), torch.Generator)}
        self.states = [(g, g.get_state()) for g in found.values()]

    def restore(self) -> None:
        """Everything as it was when the snapshot was taken."""
        for generator, state in self.states:
            generator.set_state(state)


class Undo:
    """Snapshots of what belongs to the user, restored in reverse order."""

    def __init__(self) -> None:
        self._snapshots: list[Any] = []

    def keep(self, snapshot: Any) -> None:
        """Restore this snapshot when the run is over."""
        self._snapshots.append(snapshot)

    def restore(self) -> None:
        """Restore all snapshots; one that fails does not keep the others from it."""
        try:
            while self._snapshots:
                self._snapshots.pop().restore()
        finally:
            if self._snapshots:
                self.restore()
