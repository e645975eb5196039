"""What a module keeps outside its parameters: buffers and plain attributes, item by item, each of which can be put back alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ....instruments.kept_tensors import same_bits, set_values

#: Attributes of every module: its mode, and its tables of parameters, children and hooks.
_OWN = frozenset(vars(nn.Module()))
_PLAIN = (int, float, complex, str, bytes, bool, type(None))


@dataclass(frozen=True)
class _Item:
    module: nn.Module
    key: str
    kind: Literal["buffer", "attribute"]
    persistent: bool
    #: The object itself, and a copy of what was in it.
    value: Any
    copied: Any

    def now(self) -> Any:
        if self.kind == "buffer":
            return self.module._buffers.get(self.key)
        return vars(self.module).get(self.key)

    def put_back(self) -> None:
        if self.kind == "attribute":
            vars(self.module)[self.key] = plain_copy(self.copied)
        elif isinstance(self.value, torch.Tensor):
            set_values(self.value, self.copied)
            self.module._buffers[self.key] = self.value
        else:
            self.module._buffers[self.key] = None


class ModuleState:
    """All buffers and plain attributes of a model as they are now, by name.

    Plain attributes are numbers, texts, tensors, and lists, tuples, dicts and sets of such; of other objects nothing is known.
    """

    def __init__(self, model: nn.Module) -> None:
        self._items: dict[str, _Item] = {}
        for prefix, module in model.named_modules():
            for key, value in module._buffers.items():
                persistent = key not in module._non_persistent_buffers_set
                item = _Item(module, key, "buffer", persistent, value, plain_copy(value))
                self._items[f"{prefix}.{key}".lstrip(".")] = item
            for key, value in vars(module).items():
                if key not in _OWN and is_plain(value):
                    item = _Item(module, key, "attribute", False, value, plain_copy(value))
                    self._items[f"{prefix}.{key}".lstrip(".")] = item

    def changed(self) -> tuple[str, ...]:
        """Names of the items that are no longer what they were."""
        return tuple(name for name, item in self._items.items() if not same(item.now(), item.copied))

    def persistent(self, name: str) -> bool:
        """Whether the item is a buffer that ``state_dict`` holds."""
        return self._items[name].persistent

    def persistent_names(self) -> tuple[str, ...]:
        """Names of the buffers that ``state_dict`` holds."""
        return tuple(name for name, item in self._items.items() if item.persistent)

    def put_back(self, names: Iterable[str] | None = None) -> None:
        """Put these items back as they were; None: all."""
        for name in self._items if names is None else names:
            self._items[name].put_back()


def is_plain(value: Any) -> bool:
    """Whether it is a number, a text, a tensor that is no parameter, or a list, tuple, dict or set of such."""
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, torch.Tensor):
        return not isinstance(value, nn.Parameter) and value.device.type != "meta"
    if type(value) is dict:
        return all(is_plain(v) for v in value.values())
    return type(value) in (list, tuple, set) and all(is_plain(v) for v in value)


def plain_copy(value: Any) -> Any:
    """A copy of a plain value; tensors without their graph."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {k: plain_copy(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain_copy(v) for v in value)
    return copy.copy(value)


def same(a: Any, b: Any) -> bool:
    """Whether two plain values are equal, NaN equal to NaN."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and same_bits(a.detach(), b.detach())
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or (a != a and b != b)
