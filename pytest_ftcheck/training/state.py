"""Leave no trace of ourselves: what is the user's is as before after every call, also after an exception."""

from __future__ import annotations

import collections
import contextlib
import copy
import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


@contextlib.contextmanager
def preserved_globals() -> Iterator[None]:
    """Random states (python, numpy if loaded, torch on every device) and torch's global switches, kept."""
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
    torch.manual_seed(seed)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, random states, global switches, each module's own mode, every buffer, and what modules count in plain
    attributes are as before."""
    modes = [(m, m.training) for m in model.modules()]
    counters = [_Plain(m) for m in model.modules()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    with preserved_globals(), torch.inference_mode(False), torch.no_grad():
        try:
            yield
        finally:
            for counter in counters:
                counter.restore()
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for buffer, was in buffers:
                    if not same_bits(buffer, was):
                        _put_back(buffer, was)


@contextlib.contextmanager
def quiet(model: nn.Module, *, grad: bool = False) -> Iterator[None]:
    """Dropout off, no gradients (unless asked for), all else :func:`undisturbed`: how every probe looks at a model."""
    with undisturbed(model), torch.set_grad_enabled(grad):
        for module in model.modules():
            module.training = False  # not .eval(): an overridden train() may do more than switch the mode
        yield


@contextlib.contextmanager
def perturbed(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """The values of these parameters may be changed in place inside; afterwards every bit is as before."""
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


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shape and values, NaN equal to NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(torch.equal(a, b) or ((a == b) | ((a != a) & (b != b))).all())


class _Plain:
    """The plain values (counters, flags, short lists) among the attributes of a module: what a forward pass may keep book in."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        mine = vars(module)
        self.values = {k: v for k, v in mine.items() if type(v) in _PLAIN}
        self.lists = [
            (v, copy.copy(v)) for k, v in mine.items() if k[0] != "_" and type(v) in (list, collections.deque)
        ]

    def restore(self) -> None:
        mine = vars(self.module)
        for key, value in self.values.items():
            if key != "training" and mine.get(key) is not value:
                mine[key] = value
        for container, was in self.lists:
            if len(container) != len(was) or any(a is not b for a, b in zip(container, was, strict=True)):
                container.clear()
                container.extend(was)


_PLAIN = (int, float, bool, str, tuple, type(None))
_CONTAINERS = (list, dict, set, collections.deque)


class _Attributes:
    """The ``__dict__`` of one object, and the contents of the plain containers in it, one level deep."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.values = dict(vars(owner))
        self.contents = [(v, copy.copy(v)) for v in self.values.values() if isinstance(v, _CONTAINERS)]

    def restore(self) -> None:
        mine = vars(self.owner)
        mine.clear()
        mine.update(self.values)
        for container, was in self.contents:
            if isinstance(container, (list, collections.deque)):
                container.clear()
                container.extend(was)
            else:
                container.clear()
                container.update(was)


class ModelSnapshot:
    """A module as it is now: values, gradients, buffers, modes, flags, hooks, plain attributes and its config."""

    def __init__(self, model: nn.Module) -> None:
        self.attributes = [_Attributes(m) for m in model.modules()]
        configs = {id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), "__dict__")}
        self.attributes += [_Attributes(c) for c in configs.values()]
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
        self.attributes = _Attributes(optimizer)
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
        self.attributes = _Attributes(scheduler) if hasattr(scheduler, "__dict__") else None

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
