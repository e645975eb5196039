"""What is kept in objects inside a model, and cannot be restored: compared before and after a run, and named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .kept_attributes import kind_of, own_attributes
from .tensor_bytes import of_bytes
from .undisturbed import modules_of, named_tensors_of

#: Values compared of one model, and how deep objects inside objects are looked into.
MOST, DEPTH = 2_000, 4
#: Differences that a note names.
NAMED = 5
_PLAIN = (int, float, bool, str, type(None))


class NestedState:
    """The values in the objects that a model's modules hold, as they are now: counters, statistics, tensors, containers of such.

    A library's objects may not be changed from outside, so they are not restored as modules are.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = _values(model)

    def note(self) -> str | None:
        """One sentence that names what differs now; None: nothing does."""
        after = _values(self.model)
        names = [n for n in (*self.before, *(n for n in after if n not in self.before)) if self._differs(n, after)]
        if not names:
            return None
        shown = [f"{n} ({_shown(self.before.get(n))} before, {_shown(after.get(n))} after)" for n in names[:NAMED]]
        more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f"not restored after the run, as they belong to objects inside the model: {', '.join(shown)}{more}"

    def _differs(self, name: str, after: dict[str, Any]) -> bool:
        a, b = self.before.get(name, self), after.get(name, self)
        return type(a) is not type(b) or (a != b and not (a != a and b != b))


def _shown(value: Any) -> str:
    return "other values" if isinstance(value, bytes) else repr(value)[:40]


def _values(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    names = {id(m): n for n, m in model.named_modules()}
    seen: set[int] = set()
    for module in modules_of(model):
        prefix = names.get(id(module), type(module).__name__)
        for key, value in own_attributes(module):
            if key != "config" and kind_of(type(value)) == "other" and _is_object(value):
                for name, inner in _walk(value, f"{prefix}.{key}" if prefix else key, seen, DEPTH):
                    found[name] = inner
                    if len(found) >= MOST:
                        return found
    return found


def _is_object(value: Any) -> bool:
    return hasattr(value, "__dict__") and not callable(value)


def _walk(value: Any, name: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, _PLAIN):
        yield name, value
    elif isinstance(value, torch.Tensor):
        yield name, _digest(value)
    elif id(value) not in seen and depth:
        seen.add(id(value))
        if isinstance(value, nn.Module):
            for table in ("_parameters", "_buffers"):
                for inner, tensor in named_tensors_of(value, table):
                    yield f"{name}.{inner}", _digest(tensor)
        elif isinstance(value, dict):
            for key, item in list(value.items())[:MOST]:
                yield from _walk(item, f"{name}[{key!r}]"[:120], seen, depth)
        elif isinstance(value, (list, tuple)):
            yield f"len({name})", len(value)
            for i, item in enumerate(value[:MOST]):
                yield from _walk(item, f"{name}[{i}]", seen, depth)
        elif _is_object(value):
            for key, item in list(vars(value).items()):
                yield from _walk(item, f"{name}.{key}", seen, depth - 1)


def _digest(tensor: torch.Tensor) -> bytes:
    """Of its bytes; of a tensor that is large, or elsewhere, of how often it was written to."""
    if tensor.device.type == "cpu" and tensor.numel() <= 100_000:
        found = of_bytes(tensor, lambda view: hashlib.sha256(view).digest())
        if found is not None:
            return found
    counted = 0 if tensor.is_inference() else tensor._version
    return f"{id(tensor)} {counted}".encode()
