"""Validators of arguments that need torch: tensors, devices, modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..core.formatting import as_given, describe_type, one_line, text_of


def device(name: str, value: Any) -> torch.device:
    """The device of that name; the meta device has no values and is refused.

    :raises TypeError, ValueError: it is no device.

    >>> device("device", "meta")
    Traceback (most recent call last):
    ValueError: device='meta': it holds no values; expected a device such as 'cpu' or 'cuda:0'
    """
    expected = "expected a device such as 'cpu' or 'cuda:0'"
    if not isinstance(value, (str, torch.device)):
        raise TypeError(f"{name}={as_given(value)}: {expected}")
    try:
        found = torch.device(value)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{name}={as_given(value)}: {one_line(text_of(error), 200)}; {expected}") from None
    if found.type == "meta":
        raise ValueError(f"{name}={as_given(value)}: it holds no values; {expected}")
    return found


def tensor(name: str, value: Any, expected: str = "a tensor or an array") -> torch.Tensor:
    """A dense tensor with values, without a gradient, of a tensor, an array or nested sequences of numbers.

    :raises TypeError: it is none.  :raises ValueError: it has no values (meta device), or is nested, sparse or quantised.

    >>> tensor("x", [[0.0, 1.0]]).shape, tensor("y", 3).shape
    (torch.Size([1, 2]), torch.Size([]))
    """
    if not isinstance(value, torch.Tensor):
        try:
            value = torch.as_tensor(value)
        except Exception as error:  # noqa: BLE001 - torch has many, and the user's object may raise any
            why = f"{type(error).__name__}: {one_line(text_of(error), 120)}"
            raise TypeError(f"{name} is {describe_type(value)}: expected {expected} ({why})") from None
    kinds = {
        "on the meta device, without values": value.device.type == "meta",
        "a nested tensor": value.is_nested,
        f"of layout {value.layout}": value.layout is not torch.strided,
        "quantised": value.is_quantized,
    }
    if wrong := next((words for words, is_so in kinds.items() if is_so), None):
        raise ValueError(f"{name} is {describe_type(value)} {wrong}: expected a dense tensor of numbers")
    return value.detach()  # type: ignore[no-any-return]


def module(name: str, value: Any) -> nn.Module:
    """The module, whose parameters torch can list.

    :raises TypeError: it is no module.  :raises ValueError: torch cannot list its parameters.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} is {describe_type(value)}: expected a torch.nn.Module")
    listable(value, name)
    return value


def listable(model: nn.Module, argument: str = "model") -> None:
    """``ValueError`` for modules that torch itself cannot list, for they have no hash."""
    for where, one in _modules(model, argument):
        if type(one).__hash__ is None:
            raise ValueError(
                f"{where} has no __hash__ (a class with __eq__ has none of its own), so that torch cannot list its parameters; "
                "add __hash__ = torch.nn.Module.__hash__ to the class"
            )


def switchable(model: nn.Module, argument: str = "model") -> None:
    """``ValueError`` for modules that cannot be switched between training and evaluation, for they refuse attributes."""
    for where, one in _modules(model, argument):
        try:
            one.training = one.training
        except Exception as error:
            raise ValueError(
                f"{where} refuses attributes, so that train() and eval() cannot switch it ({type(error).__name__}: {text_of(error)}); "
                "let its __setattr__ take the attribute training"
            ) from error


def _modules(model: nn.Module, argument: str) -> Iterator[tuple[str, nn.Module]]:
    """All modules, and where they are in words; without hashing them."""
    todo, seen = [("", model)], set()
    while todo:
        name, one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield f"{argument}: {f'its module {name!r}, ' if name else ''}a {type(one).__name__},", one
        todo += [(f"{name}.{child}".lstrip("."), m) for child, m in one._modules.items() if m is not None]
