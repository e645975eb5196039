"""Validators of arguments: each raises one error that names the argument, its value and what is accepted."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from .formatting import describe_type


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
    optional: bool = False,
    accepted: str = "",
) -> None:
    """``TypeError`` or ``ValueError`` for what is no finite number in these bounds.

    >>> number("lr", -1.0, above=0)
    Traceback (most recent call last):
    ValueError: lr=-1.0: expected a finite number > 0
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: expected {accepted or ('a number or None' if optional else 'a number')}")
    finite = value == value and abs(value) <= sys.float_info.max  # also a whole number that no float can hold
    bounds = [(">=", least), (">", above), ("<", below), ("<=", most)]
    inside = (
        (least is None or value >= least)
        and (above is None or value > above)
        and (below is None or value < below)
        and (most is None or value <= most)
    )
    if not finite or not inside:
        limits = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        raise ValueError(f"{name}={value!r}: expected a finite number{f' {limits}' if limits else ''}")


def positive(**given: Any) -> None:
    """`number` above zero, for several arguments at once."""
    for name, value in given.items():
        number(name, value, above=0)


def as_positive(name: str, value: Any) -> float:
    """A number above zero as a float; one of numpy or torch will do."""
    value = value.item() if hasattr(value, "item") else value
    number(name, value, above=0)
    return float(value)


def whole(name: str, value: Any, *, least: int | None = None, most: int | None = None, optional: bool = False) -> None:
    """``TypeError`` or ``ValueError`` for what is no whole number in these bounds."""
    if optional and value is None:
        return
    limits = " and ".join(f"{sign} {bound}" for sign, bound in ((">=", least), ("<=", most)) if bound is not None)
    expected = f"{name}={value!r}: expected a whole number{limits and ' '}{limits}{' or None' if optional else ''}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(expected)
    if (least is not None and value < least) or (most is not None and value > most):
        raise ValueError(expected)


def seed(name: str, value: Any) -> None:
    """``TypeError`` or ``ValueError`` for what torch's generators, of 64 bits, do not take as a seed."""
    whole(name, value, least=0)
    if value >= 2**64:
        raise ValueError(f"{name}={value!r}: expected a whole number from 0 to 2**64 - 1")


def one_of(name: str, value: Any, accepted: Sequence[str], *, optional: bool = False) -> None:
    """``ValueError`` for what is none of the names accepted."""
    if optional and value is None:
        return
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(accepted)}")


def fraction(name: str, value: Any) -> float:
    """A number above 0 and below 1, as a float."""
    number(name, value, above=0, below=1)
    return float(value)


def instance(name: str, value: Any, kind: type, expected: str, *, optional: bool = False) -> None:
    """``TypeError`` for what is not of this type.

    >>> instance("intent", 3, dict, "a pytest_ftcheck.Intent", optional=True)
    Traceback (most recent call last):
    TypeError: intent is an int: expected a pytest_ftcheck.Intent
    """
    if not (isinstance(value, kind) or (optional and value is None)):
        raise TypeError(f"{name} is {describe_type(value)}: expected {expected}")


def callables(**given: Any) -> None:
    """``TypeError`` for an argument that is given and cannot be called."""
    for name, value in given.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name} is {describe_type(value)}: expected a callable")


def sequence(name: str, values: Any) -> list[Any]:
    """A list of at least one thing; a text is no sequence."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name}={values!r}: expected a sequence")
    found = list(values)
    if not found:
        raise ValueError(f"{name} is empty: expected at least one")
    return found


def distinct(name: str, values: Sequence[Any]) -> None:
    """``ValueError`` for a value that is given twice."""
    twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
    if twice is not None:
        raise ValueError(f"{name}: {twice!r} is given twice")
