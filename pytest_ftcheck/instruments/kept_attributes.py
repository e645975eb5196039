"""What objects hold besides parameters: plain values, containers at any depth, small tensors, random generators."""

from __future__ import annotations

import collections
import copy
import functools
import operator
import random
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from .kept_tensors import KeptLeaf, small

Kind: TypeAlias = Literal["plain", "container", "generator", "other"]
#: Attributes of every module: its mode and its tables of parameters, children and hooks.
_OWN = frozenset(vars(nn.Module())) - {"_is_full_backward_hook"}
_IMMUTABLE = frozenset({int, float, bool, str, type(None)})
_PLAIN = (*_IMMUTABLE, torch.Tensor)
_CONTAINERS = (list, dict, set, collections.deque)
#: Containers of more items are data, not state: they are kept, but what their items hold is not.
MOST_ITEMS = 10_000


def _kind_of(of: type) -> Kind:
    """How an attribute of this type is kept."""
    if of in _PLAIN or issubclass(of, tuple):
        return "plain"
    if issubclass(of, _CONTAINERS):
        return "container"
    if issubclass(of, (random.Random, torch.Generator)) or of.__module__.startswith("numpy.random."):
        return "generator"
    return "other"


def _is_immutable(value: Any) -> bool:
    """A plain value, or a tuple of nothing else; a tuple may hold lists and tensors, which can be written to."""
    return type(value) in _IMMUTABLE or (isinstance(value, tuple) and all(map(_is_immutable, value)))


# cached: a model has hundreds of attributes of the same few types
kind_of: Callable[[type], Kind] = functools.lru_cache(maxsize=1024)(_kind_of)


class KeptGenerator:
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
        """Everything as it was when it was kept."""
        if isinstance(self.generator, random.Random):
            self.generator.setstate(self.state)
        elif isinstance(self.generator, torch.Generator):
            self.generator.set_state(self.state)
        elif self.bits is not None:
            self.bits.state = self.state


#: Arrays of more elements are data, not state: they are not kept.
MOST_ELEMENTS = 100_000


def _is_kept_array(value: Any) -> bool:
    """A plain array of numpy's that is small enough to copy, and may be written to."""
    of = type(value)
    return (
        of.__name__ == "ndarray"
        and of.__module__ == "numpy"
        and bool(value.flags.writeable)
        and int(value.size) <= MOST_ELEMENTS
    )


class KeptArray:
    """An array of numpy's as it is now. It is written to only where it differs."""

    def __init__(self, array: Any) -> None:
        self.array, self.values = array, array.copy()

    def restore(self) -> None:
        """The values as they were."""
        if self.array.tobytes() != self.values.tobytes():
            self.array[...] = self.values

    def __str__(self) -> str:
        return f"an array of shape {self.values.shape}"


class KeptContents:
    """The items of containers, of the containers in them, and so on; the tensors, arrays and generators among them.

    :param keep: which tensors are kept.
    """

    def __init__(self, values: Iterable[Any], keep: Callable[[Any], bool] = small) -> None:
        self.containers: list[tuple[Any, Any]] = []
        self.parts: list[KeptLeaf | KeptArray | KeptGenerator] = []
        seen: set[int] = set()
        todo = list(values)
        while todo:
            value = todo.pop()
            kind = kind_of(type(value))
            if kind == "generator":
                self.parts.append(KeptGenerator(value))
            elif isinstance(value, torch.Tensor):
                if id(value) not in seen and keep(value):
                    seen.add(id(value))
                    self.parts.append(KeptLeaf(value))
            elif kind == "other":
                if id(value) not in seen and _is_kept_array(value):
                    seen.add(id(value))
                    self.parts.append(KeptArray(value))
            elif (kind == "container" or isinstance(value, tuple)) and value and id(value) not in seen:
                seen.add(id(value))
                todo += self._inner(value, kind)
            elif kind == "container" and id(value) not in seen:
                seen.add(id(value))
                self.containers.append((value, _items(value)))

    def _inner(self, value: Any, kind: Kind) -> Iterable[Any]:
        items = _items(value) if kind == "container" else value
        if kind == "container":
            self.containers.append((value, items))
        if len(items) > MOST_ITEMS or isinstance(items, (set, frozenset)):
            return ()
        return items.values() if isinstance(items, dict) else items

    def restore(self) -> None:
        """The same items in the same containers, and the same values in them."""
        for container, items in self.containers:
            refill(container, items)
        for part in self.parts:
            part.restore()


def _items(container: Any) -> Any:
    """Its items, in a container of python's own."""
    if isinstance(container, dict):
        return dict(container.items())
    return set(container) if isinstance(container, set) else list(container)


def refill(container: Any, items: Any) -> None:
    """The same items in the same order; nothing is written if so already, and at no moment is an item missing that stays."""
    if isinstance(container, dict):
        _refill_dict(container, items)
    elif isinstance(container, set):
        if container != items:
            container &= items
            container |= items
    elif len(container) != len(items) or any(a is not b for a, b in zip(container, items, strict=True)):
        if isinstance(container, list):
            container[:] = items
        else:
            container.clear()
            container.extend(items)


def _refill_dict(container: dict[Any, Any], items: dict[Any, Any]) -> None:
    if len(container) == len(items) and all(
        a is b and v is w for (a, v), (b, w) in zip(container.items(), items.items(), strict=True)
    ):
        return
    for key, value in items.items():
        if key not in container or container[key] is not value:
            container[key] = value
    for key in [k for k in container if k not in items]:
        del container[key]
    if list(container) != list(items):
        for key, value in items.items():  # in the old order; an interrupt between the two lines is why this is repeated
            container.pop(key)
            container[key] = value


class ObjectAttributes:
    """The ``__dict__`` of one object, and the contents of the containers in it at any depth."""

    def __init__(self, owner: Any, keep: Callable[[Any], bool] = small) -> None:
        self.owner = owner
        self.values = dict(vars(owner))
        self.contents = KeptContents(self.values.values(), keep)

    def restore(self) -> None:
        """Everything as it was when it was kept."""
        _refill_dict(vars(self.owner), self.values)
        self.contents.restore()

    def __str__(self) -> str:
        return f"the attributes of a {type(self.owner).__name__}"


def keep_attributes(owners: Iterable[Any]) -> list[PlainValues | PlainAttributes]:
    """What a forward pass may write into modules and their configs: see `PlainAttributes`. Most modules have a few numbers of their own,
    and are kept together."""
    simple = PlainValues()
    others = [owner for owner in owners if not simple.add(owner)]
    return [simple, *map(PlainAttributes, others)]


@functools.lru_cache(maxsize=4096)
def _not_own(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a module's attributes that torch has not given it."""
    return tuple(name for name in names if name not in _OWN)


Reads: TypeAlias = Callable[[dict[str, Any]], tuple[Any, ...]]


@functools.lru_cache(maxsize=4096)
def _reading(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...], Reads]:
    """These names themselves, those of them that torch has not given, and what reads their values."""
    own = _not_own(names)
    if len(own) > 1:
        return names, own, operator.itemgetter(*own)
    return names, own, lambda mine: tuple(mine[name] for name in own)


class PlainValues:
    """The attributes of many objects that have nothing but plain values: numbers, texts, tuples, None; and the children of modules among
    them. Of thousands the tuples that are made cost more than the values, so names are kept once for all objects that have the same
    ones."""

    def __init__(self) -> None:
        self.attributes: list[dict[str, Any]] = []
        self.readings: list[tuple[tuple[str, ...], tuple[str, ...], Reads]] = []
        self.values: list[tuple[Any, ...]] = []
        self.children: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def add(self, owner: Any) -> bool:
        """Keep this object's, too; False: it has others, or is a module with buffers."""
        mine = vars(owner)
        children = mine.get("_modules")
        if mine.get("_buffers") or (children and not isinstance(children, dict)):  # those of a scripted module are none
            return False
        reading = _reading(tuple(mine))
        values = reading[2](mine)
        if not _IMMUTABLE.issuperset(map(type, values)) and not all(map(_is_immutable, values)):
            return False
        self.attributes.append(mine)
        self.readings.append(reading)
        self.values.append(values)
        if children:
            self.children.append((children, dict(children)))
        return True

    def restore(self) -> None:
        """Everything as it was when it was kept."""
        for mine, (names, own, read), values in zip(self.attributes, self.readings, self.values, strict=True):
            if tuple(mine) != names or not all(map(operator.is_, read(mine), values)):
                _restore_values(mine, names, zip(own, values, strict=True))
        _restore_entries(self.children)


def _restore_values(mine: dict[str, Any], names: tuple[str, ...], values: Iterable[tuple[str, Any]]) -> None:
    """The values of these attributes; attributes with other names go, but for functions."""
    for name, value in values:
        if mine.get(name, _MISSING) is not value:
            mine[name] = value
    if tuple(mine) != names:
        for name in [n for n, v in mine.items() if n not in names and not callable(v)]:
            del mine[name]


def _restore_entries(tables: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """The buffers and children that modules had; those that came since stay."""
    for now, before in tables:
        for name, entry in before.items():
            if name not in now or now[name] is not entry:  # a scripted module's table has no get()
                now[name] = entry


_MISSING = object()


class PlainAttributes:
    """What a forward pass may write into: the values, containers, small tensors and generators among an object's attributes, and a
    module's tables of buffers and of children (BigBird exchanges its attention where rows are short). Faster than `ObjectAttributes`;
    hooks, and functions put in place of methods, are left alone."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        mine = vars(owner)
        self.names = tuple(mine)
        self.values: list[tuple[str, Any]] = []
        containers: list[Any] = []
        self.tensors: list[KeptLeaf] = []
        self.generators: list[KeptGenerator] = []
        values = self.values
        for key in _not_own(self.names):
            value = mine[key]
            if not _is_immutable(value):
                kind = kind_of(type(value))
                if kind == "container" or isinstance(value, tuple):
                    containers.append(value)
                elif kind == "generator":
                    self.generators.append(KeptGenerator(value))
                elif kind == "other":
                    if callable(value):
                        continue
                    if _is_kept_array(value):
                        containers.append(value)
                elif small(value):
                    self.tensors.append(KeptLeaf(value))
            values.append((key, value))
        self.contents = KeptContents(containers) if containers else None
        tables: tuple[dict[str, Any], ...] = (owner._buffers, owner._modules) if isinstance(owner, nn.Module) else ()
        self.tables = [(table, dict(table)) for table in tables if table]

    def restore(self) -> None:
        """Everything as it was when it was kept."""
        _restore_values(vars(self.owner), self.names, self.values)
        if self.contents is not None:
            self.contents.restore()
        for tensor in self.tensors:
            tensor.restore()
        for generator in self.generators:
            generator.restore()
        _restore_entries(self.tables)

    def __str__(self) -> str:
        return f"the attributes of a {type(self.owner).__name__}"


def own_attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """The attributes that a module has beside torch's own."""
    return [(key, value) for key, value in vars(module).items() if key not in _OWN]


def configs_in(owners: Iterable[Any]) -> list[Any]:
    """The objects that owners hold as ``config``, and the configs in these (of an encoder and a decoder), each once."""
    found: dict[int, Any] = {}
    todo = [vars(owner).get("config") for owner in owners]
    while todo:
        config = todo.pop()
        if id(config) in found or not hasattr(config, "__dict__") or isinstance(config, nn.Module):
            continue
        found[id(config)] = config
        todo += [v for k, v in vars(config).items() if k.endswith("config")]
    return list(found.values())
