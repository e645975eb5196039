"""Validators of arguments that need torch: tensors, devices, modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..core.formatting import as_given, describe_type, one_line


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
        raise ValueError(f"{name}={as_given(value)}: {one_line(str(error), 200)}; {expected}") from None
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
            why = f"{type(error).__name__}: {one_line(str(error), 120)}"
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
    """``TypeError`` for what is no module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} is {describe_type(value)}: expected a torch.nn.Module")
    return value
