"""The parameters and buffers of a model as they are before a run, and what the recorder counts of each."""

from __future__ import annotations

import dis
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import nn

from ..core.observations import Buffer, Histogram, Statistics
from ..instruments.parameter_roles import in_part, roles
from ..instruments.sampled_elements import LARGE_BASE, LARGE_HEAD, row_stride
from ..instruments.sharded_tensors import local, shape_here, stored_parameters
from ..instruments.tensor_bytes import digest
from ..instruments.tensor_statistics import NonfiniteElements, statistics_of

#: Buffers that a note names.
NAMED = 5


@dataclass
class WatchedParameter:
    """One parameter, and the running numbers that are not vectors."""

    name: str
    aliases: tuple[str, ...]
    parameter: nn.Parameter
    part: str
    role: str
    #: Every how many rows of its gradient are read for the norm.
    stride: int
    #: ``requires_grad`` before the run.
    trainable: bool
    #: Its place among the sampled parameters; None: it has no floating-point values to sample.
    slot: int | None
    #: Checksum of a frozen parameter before the run.
    digest: int | None
    #: Exact copy of a head tensor that is too large to be sampled in full.
    initial: torch.Tensor | None
    #: Moments of its values before the run.
    first: Statistics
    #: Place of the optimizer that holds it and index of its group, the first step at which one did, and how often it holds it.
    group: tuple[int, int] | None = None
    first_step: int | None = None
    entries: int = 1
    lr_sum: float = 0.0
    lr_peak: float = 0.0
    #: Steps that were to change it, and those of them at which it had no gradient.
    steps: int = 0
    without_gradient: int = 0
    #: Whether a norm of its gradient was estimated from every `stride`-th row.
    estimated: bool = False
    histograms: list[Histogram] = field(default_factory=list)
    #: Shape of the part that this process holds, where the parameter is sharded; None: it holds all of it.
    shard: tuple[int, ...] | None = None
    #: The module that was to freeze it, see `Tensor.frozen_in_name_by`.
    frozen_in_name_by: str | None = None

    @property
    def values(self) -> torch.Tensor:
        """The values that this process holds."""
        return local(self.parameter).detach()


def watch_parameters(model: nn.Module, head: Sequence[str]) -> list[WatchedParameter]:
    """Every parameter of the model, tied ones once."""
    names: dict[int, list[str]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for name, p in stored_parameters(model, every_name=True).items():
        names.setdefault(id(p), []).append(name)
        parameters[id(p)] = p
    role, freezes = roles(model), _freezes_in_name(model)
    found, slot = [], 0
    first_values = statistics_of(list(parameters.values()))
    for (key, (name, *aliases)), first in zip(names.items(), first_values, strict=True):
        p = parameters[key]
        part = "head" if any(in_part(n, head) for n in (name, *aliases)) else "base"
        sampled = p.is_floating_point() and p.device.type != "meta" and local(p).numel() > 0
        found.append(
            WatchedParameter(
                name=name,
                aliases=tuple(aliases),
                parameter=p,
                part=part,
                role=role.get(name, "matrix"),
                stride=row_stride(p, LARGE_HEAD if part == "head" else LARGE_BASE),
                trainable=p.requires_grad,
                slot=slot if sampled else None,
                digest=None if p.requires_grad else digest(p),
                initial=None,
                first=first,
                shard=shape_here(p),
                frozen_in_name_by=_frozen_in_name_by(name, part, freezes, head),
            )
        )
        slot += sampled
    return found


def _freezes_in_name(model: nn.Module) -> dict[str, bool]:
    """Modules that have an attribute ``requires_grad``, by name: somebody set it from outside, and it changes nothing.

    A class whose own methods know the attribute uses it for something of its own.
    """
    return {
        name: flag
        for name, module in model.named_modules()
        if isinstance(flag := getattr(module, "__dict__", {}).get("requires_grad"), bool)
        and not _knows_it(type(module))
    }


def _knows_it(of: type) -> bool:
    methods = (f for c in of.__mro__ if c not in (nn.Module, object) for f in vars(c).values())
    return any(_reads_own(code) for f in methods if (code := getattr(f, "__code__", None)) is not None)


def _reads_own(code: CodeType) -> bool:
    """Whether a method reads or sets ``self.requires_grad``; that of a tensor, which it may read as well, is another thing."""
    if "requires_grad" not in code.co_names or not code.co_argcount:
        return False
    before: Any = None
    for instruction in dis.get_instructions(code):
        if instruction.argval == "requires_grad" and instruction.opname in ("LOAD_ATTR", "STORE_ATTR", "DELETE_ATTR"):
            loaded = before.argval[-1] if isinstance(before.argval, tuple) else before.argval
            if before.opname.startswith("LOAD_FAST") and loaded == code.co_varnames[0]:
                return True
        before = instruction
    return False


def _frozen_in_name_by(parameter: str, part: str, freezes: Mapping[str, bool], head: Sequence[str]) -> str | None:
    """The innermost of these modules around a parameter, where its flag is False. One that has more than the head was not meant for it."""
    module = _innermost(parameter, freezes)
    if module is None or freezes[module] or (part == "head" and not in_part(module, head)):
        return None
    return module


def _innermost(name: str, modules: Container[str]) -> str | None:
    """The innermost of these modules around a parameter or buffer; the empty name is the model itself."""
    while name:
        name = name.rpartition(".")[0]
        if name in modules:
            return name
    return None


class WatchedBuffers:
    """The model's buffers: which of them the run changes."""

    def __init__(self, model: nn.Module, head: Sequence[str]) -> None:
        self._model, self._head = model, head
        self._before = {name: (digest(b), NonfiniteElements(b)) for name, b in model.named_buffers()}
        #: Buffers whose values cannot be read; without memory there are none to be compared.
        self._unread = [n for n, b in model.named_buffers() if self._before[n][0] is None and b.device.type != "meta"]

    def notes(self) -> list[str]:
        """Which buffers are not compared."""
        if not self._unread:
            return []
        more = f", and {len(self._unread) - NAMED} more" if len(self._unread) > NAMED else ""
        return [
            f"buffers that were not compared, as their values cannot be read: {', '.join(self._unread[:NAMED])}{more}"
        ]

    def record(self, watched: Sequence[WatchedParameter]) -> tuple[Buffer, ...]:
        """What became of them; ``watched`` are the parameters of the modules they belong to."""
        frozen = _frozen_modules(watched)
        now = dict(self._model.named_buffers())
        return tuple(
            Buffer(
                name=name,
                part="head" if in_part(name, self._head) else "base",
                frozen=_in_frozen_module(name, frozen),
                unchanged=name in now and digest(now[name]) == before,
                nonfinite=nonfinite.since(now[name]) if name in now else 0,
            )
            for name, (before, nonfinite) in self._before.items()
            if name not in self._unread
        )


def _frozen_modules(watched: Sequence[WatchedParameter]) -> dict[str, bool]:
    """Name of each module with parameters in it -> whether all of them are frozen."""
    frozen: dict[str, bool] = {}
    for w in watched:
        mine = not w.trainable and not w.parameter.requires_grad
        for prefix in (w.name, *w.aliases):
            while prefix:
                prefix = prefix.rpartition(".")[0]
                frozen[prefix] = frozen.get(prefix, True) and mine
    return frozen


def _in_frozen_module(buffer: str, frozen: Mapping[str, bool]) -> bool:
    """Whether the innermost module around the buffer that has parameters has only frozen ones."""
    module = _innermost(buffer, frozen)
    return module is not None and frozen[module]
