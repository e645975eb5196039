"""What modules are given and return, tensors at any depth: copied, listed and compared.

As torch's pytree does it, but in python's own containers without it: for them pytree takes longer than a small module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

_PLAIN = (type(None), bool, int, float, str)


def cloned(value: Any) -> Any:
    """The same with tensors of its own, without a graph.

    >>> cloned({"x": (1, None)})
    {'x': (1, None)}
    """
    kind = type(value)
    if kind is tuple or kind is list:
        return kind(map(cloned, value))
    if kind is dict:
        return {name: cloned(item) for name, item in value.items()}
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return value if kind in _PLAIN else pytree.tree_map(_cloned_leaf, value)


def _cloned_leaf(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def leaves_of(value: Any) -> list[Any]:
    """What it holds that is no container.

    >>> leaves_of({"x": (1, [None])})
    [1, None]
    """
    kind = type(value)
    if kind is tuple or kind is list or kind is dict:
        return [leaf for item in (value.values() if kind is dict else value) for leaf in leaves_of(item)]
    return [value] if kind in _PLAIN or isinstance(value, torch.Tensor) else pytree.tree_leaves(value)


def comparable(leaf: Any) -> bool:
    """Whether `same_values` can say that it is the same as another one: a plain tensor, a number, a text, None."""
    if isinstance(leaf, torch.Tensor):
        return type(leaf) in (torch.Tensor, nn.Parameter) and leaf.layout is torch.strided
    return isinstance(leaf, _PLAIN)


def same_values(first: Any, second: Any) -> bool:
    """Whether two structures hold the same values, bit for bit but for the sign of zero.

    >>> same_values((1, [2]), (1, [2])), same_values((1, [2]), (1, (2,))), same_values(1, 1.0)
    (True, False, False)
    """
    kind = type(first)
    if kind is tuple or kind is list:
        return type(second) is kind and len(first) == len(second) and all(map(same_values, first, second))
    if kind is dict:
        return (
            type(second) is kind
            and list(first) == list(second)
            and all(map(same_values, first.values(), second.values()))
        )
    if kind in _PLAIN or isinstance(first, torch.Tensor):
        return _equal(first, second)
    (a, form), (b, other) = pytree.tree_flatten(first), pytree.tree_flatten(second)
    return form == other and all(map(_equal, a, b))


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b) and isinstance(a, _PLAIN) and a == b
    return a.dtype == b.dtype and a.device == b.device and a.shape == b.shape and comparable(b) and torch.equal(a, b)
