"""One call of a base, and the twin's with the same inputs, weights and random state: where does the first value differ?"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from .....instruments.base_model import BaseModel, precision_of
from ...base_twin_record import Difference, TwinComparison
from .changes import changes_of, raised_dropout
from .twin import Twin, attention_of
from .values import Event, Values, common_modules, first_of, recorded_values, relative_difference, sampled

#: Largest difference over the largest value that rounding explains: 64 roundings of float32, the limit of other checks on outputs. The
#: two do the same operations on the same numbers, which gives the same bits; the rest is for kernels chosen by memory layout.
LIMIT = 64 * 2.0**-23
#: In a coarser type: this many roundings.
ROUNDINGS = 4


class Comparison:
    """A base that is watched for one call; the twin is called right after it, in the same surroundings (autocast, say).

    :param missing: parameters of the model that had no gradient; where the values are the twin's, it is asked for theirs.
    """

    def __init__(self, base: BaseModel, twin: Twin, missing: Sequence[str] = ()) -> None:
        self.base, self.twin = base, twin
        self.missing = [n.removeprefix(base.prefix) for n in missing if n.startswith(base.prefix)]
        self.found: TwinComparison | None = None
        self.error: Exception | None = None
        self.modules = common_modules(base.module, twin.module)
        self._given: tuple[tuple[Any, Any], list[torch.Tensor]] | None = None
        self._open = contextlib.ExitStack()
        self._values: Values = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside the ``with`` the first call of the base is compared."""
        module = self.base.module
        # the inputs before any hook of the user's changes them
        handles = [module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)]
        try:
            handles.append(module.register_forward_hook(self._leave))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._open.close()

    def _enter(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._given is not None or self.error is not None:
            return
        try:  # the base may write into what it is given: a cache, say
            self._given = copy.deepcopy((tuple(args), dict(kwargs))), _random_states(self.twin.device)
        except Exception as error:  # noqa: BLE001 - not the user's to see: their pass goes on
            self.error = error
            return
        inner = {n: pair[0] for n, pair in self.modules.items() if n}
        self._values = self._open.enter_context(recorded_values(inner))

    def _leave(self, _module: nn.Module, _args: Any, out: Any) -> None:
        if self._given is None or self.found is not None or self.error is not None:
            return
        self._open.close()
        after = _random_states(self.twin.device)
        try:
            self.found = self._compare(out)
        except Exception as error:  # noqa: BLE001 - not the user's to see: their pass goes on
            self.error = error
        finally:
            _set_random_states(self.twin.device, after)
            self._given = ((), {}), []
            self._values = {}

    def _compare(self, out: Any) -> TwinComparison:
        assert self._given is not None
        (args, kwargs), states = self._given
        _set_random_states(self.twin.device, states)
        inner = {n: pair[1] for n, pair in self.modules.items() if n}
        with recorded_values(inner) as values:
            expected = self.twin(args, kwargs)
        relative = _outputs_differ(out, expected)
        limit = _limit(self.base.module, [*values.values(), *self._values.values()])
        differing = {e: d for e, v in values.items() if (d := _difference(self._values.get(e), v)) > limit}
        called = {e.module for e in values}
        first = None
        if relative > limit:
            first = self._described(differing, relative)
        module = self.base.module
        unused = self.twin.without_gradient(args, kwargs, self.missing) if self.missing and first is None else ()
        return TwinComparison(
            base=self.base.name or type(module).__name__,
            class_name=type(module).__name__,
            rows=_rows(out),
            modules=len(called),
            agreed=len(called - {e.module for e in differing}),
            relative=relative,
            limit=limit,
            attention=attention_of(module),
            first=first,
            without_gradient=tuple(self.base.prefix + name for name in unused),
            raised_dropout=raised_dropout(self.modules),
        )

    def _described(self, differing: dict[Event, float], relative: float) -> Difference:
        """The first difference, and what is changed there."""
        event = next(iter(differing), None)
        if event is None:
            event, size = Event("", 1, "output"), relative
        else:
            size = differing[event]
        kind = event.kind
        if event not in self._values and not any(e.module == event.module for e in self._values):
            kind = "call"
        changes: list[str] = []
        for place in _from_inside(event.module):
            if place in self.modules:
                mine, theirs = self.modules[place]
                changes.extend(changes_of(place or type(mine).__name__, mine, theirs))
        shown = self.modules[event.module][0] if event.module in self.modules else self.base.module
        return Difference(event.module, type(shown).__name__, kind, size, tuple(dict.fromkeys(changes)))


def _from_inside(name: str) -> Iterator[str]:
    """A submodule's name, and those of all modules around it; the last is the base, of no name."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield name


def _difference(first: torch.Tensor | None, second: torch.Tensor) -> float:
    return float("inf") if first is None else relative_difference(first, second)


def _outputs_differ(out: Any, expected: Any) -> float:
    first, second = first_of(out), first_of(expected)
    if second is None:
        raise ValueError("the twin gives no floating-point tensor")
    return _difference(None if first is None else sampled(first), sampled(second))


def _limit(module: nn.Module, values: list[torch.Tensor]) -> float:
    types = {v.dtype for v in values if v.is_floating_point()}
    coarsest = max(precision_of(module), *(torch.finfo(t).eps for t in types), 0.0)
    return max(LIMIT, ROUNDINGS * coarsest)


def _rows(out: Any) -> int:
    tensor = first_of(out)
    return 0 if tensor is None or not tensor.dim() else len(tensor)


def _random_states(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_states(device: torch.device, states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
