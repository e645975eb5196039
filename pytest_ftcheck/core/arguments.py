"""Validators of arguments: each raises one error that names the argument, its value and what is accepted."""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from .formatting import as_given, describe_type, one_line, text_of

R = TypeVar("R")
#: Bounds of what is counted: a slip beyond them means hours or gigabytes, and no honest call comes near.
MOST_STEPS = 1_000_000
MOST_THREADS = 1024
MOST_SEEDS = 1000
MOST_ROWS = 10_000_000
MOST_ITEMS = 100_000
#: Numbers in one tensor or model that we make ourselves: 400 MB in float32.
MOST_NUMBERS = 100_000_000
#: Whole numbers beyond have no place in a tensor.
_LARGEST = 2**63 - 1


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
        raise TypeError(
            f"{name}={as_given(value)}: expected {accepted or ('a number or None' if optional else 'a number')}"
        )
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
        raise ValueError(f"{name}={as_given(value)}: expected a finite number{f' {limits}' if limits else ''}")


def positive(**given: Any) -> None:
    """`number` above zero, for several arguments at once."""
    for name, value in given.items():
        number(name, value, above=0)


def as_positive(name: str, value: Any) -> float:
    """A number above zero as a float; one of numpy or torch will do."""
    plain = as_number(value)
    number(name, plain, above=0)
    return float(plain)


def as_number(value: Any) -> Any:
    """The number in a tensor or array of one element; everything else as it is.

    >>> import numpy
    >>> as_number(numpy.float64(0.5)), as_number("0.5")
    (0.5, '0.5')
    """
    try:
        return value.item()
    except Exception:  # noqa: BLE001 - no such method, several elements, a method of the user's that raises
        return value


def whole(name: str, value: Any, *, least: int | None = None, most: int | None = None, optional: bool = False) -> None:
    """``TypeError`` or ``ValueError`` for what is no whole number in these bounds."""
    if optional and value is None:
        return
    limits = " and ".join(f"{sign} {bound:,}" for sign, bound in ((">=", least), ("<=", most)) if bound is not None)
    expected = (
        f"{name}={as_given(value)}: expected a whole number{limits and ' '}{limits}{' or None' if optional else ''}"
    )
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(expected)
    if abs(value) > _LARGEST:  # no tensor holds it, and perhaps no float
        raise ValueError(f"{expected}{' and' if limits else ''} of at most 64 bits")
    if (least is not None and value < least) or (most is not None and value > most):
        raise ValueError(expected)


def together(what: str, most: int = MOST_NUMBERS, **given: int) -> None:
    """``ValueError`` for whole numbers whose product is more than memory or patience holds.

    >>> together("rows", most=1000, batches=100, size=16)
    Traceback (most recent call last):
    ValueError: batches=100, size=16: 1,600 rows together; expected at most 1,000
    """
    product = math.prod(given.values())
    if product > most:
        named = ", ".join(f"{name}={as_given(value)}" for name, value in given.items())
        raise ValueError(f"{named}: {product:,} {what} together; expected at most {most:,}")


def seed(name: str, value: Any, *, optional: bool = False) -> None:
    """``TypeError`` or ``ValueError`` for what torch's generators, of 64 bits, do not take as a seed."""
    if optional and value is None:
        return
    expected = f"{name}={as_given(value)}: expected a whole number from 0 to 2**64 - 1"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(expected)
    if not 0 <= value < 2**64:
        raise ValueError(expected)


def one_of(name: str, value: Any, accepted: Sequence[str], *, optional: bool = False) -> None:
    """``ValueError`` for what is none of the names accepted."""
    if optional and value is None:
        return
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{name}={as_given(value)}: expected one of {', '.join(accepted)}")


def fraction(name: str, value: Any) -> float:
    """A number above 0 and below 1, as a float."""
    number(name, value, above=0, below=1)
    return float(value)


def instance(name: str, value: Any, kind: type | tuple[type, ...], expected: str, *, optional: bool = False) -> None:
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


def as_called(name: str, function: Any, error: BaseException, given: str, expected: str) -> str:
    """The message for a function of the user's that could not be called, or raised: what it is called with, and what is accepted.

    >>> as_called("loss_fn", len, TypeError("one argument"), "the model and the batch", "(model, batch) -> loss")
    'loss_fn=len raised TypeError: one argument. It is called with the model and the batch, (model, batch) -> loss'
    """
    called = one_line(str(getattr(function, "__name__", type(function).__name__)), 80)
    raised = f"{type(error).__name__}: {text_of(error).strip()[:200]}".rstrip(".")
    return f"{name}={called} raised {raised}. It is called with {given}, {expected}"


def call(name: str, function: Callable[..., R], given: Sequence[Any], with_: str, expected: str) -> R:
    """What a function of the user's returns for these arguments.

    :param with_: the arguments in words.  :param expected: its signature, for the message.
    :raises TypeError: it takes another number of arguments. What it raises itself is not changed.

    >>> call("evaluate", lambda m: 0.5, ["a model"], "the model", "(model) -> float")
    0.5
    """
    try:
        return function(*given)
    except TypeError as error:
        if _takes(function, len(given)):
            raise
        raise TypeError(as_called(name, function, error, with_, expected)) from error


def _takes(function: Any, count: int) -> bool:
    """Whether it can be called with so many arguments; also where that is not known."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def flag(name: str, value: Any, *, optional: bool = False) -> None:
    """``TypeError`` for what is neither True nor False.

    >>> flag("tags", "yes")
    Traceback (most recent call last):
    TypeError: tags='yes': expected True or False
    """
    if not (isinstance(value, bool) or (optional and value is None)):
        raise TypeError(f"{name}={as_given(value)}: expected {'True, False or None' if optional else 'True or False'}")


def text(name: str, value: Any, *, optional: bool = False, expected: str = "a text") -> None:
    """``TypeError`` for what is no text."""
    if not (isinstance(value, str) or (optional and value is None)):
        raise TypeError(f"{name}={as_given(value)}: expected {expected}{' or None' if optional else ''}")


def items(name: str, values: Any, expected: str = "a sequence", *, most: int = MOST_ITEMS) -> list[Any]:
    """A list of what there is in a sequence or iterator; a text is none, and neither is what raises when it is read.

    >>> items("seeds", "12")
    Traceback (most recent call last):
    TypeError: seeds='12': expected a sequence
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name}={as_given(values)}: expected {expected}")
    found: list[Any] = []
    try:
        for value in values:
            found.append(value)
            if len(found) > most:
                break
    except Exception as error:  # noqa: BLE001 - a tensor without dimensions; an object of the user's
        raise TypeError(f"{name} is {describe_type(values)} that cannot be read: {_because(error)}") from None
    if len(found) > most:
        raise ValueError(f"{name} is {describe_type(values)} of more than {most:,} items: expected {expected}")
    return found


def texts(name: str, values: Any, expected: str = "a text, or a sequence of texts") -> tuple[str, ...]:
    """One text, or several, as a tuple.

    >>> texts("head", "classifier"), texts("head", ["pooler", "classifier"])
    (('classifier',), ('pooler', 'classifier'))
    """
    found = [values] if isinstance(values, str) else items(name, values, expected)
    for i, value in enumerate(found):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{i}]={as_given(value)}: expected {expected}")
    return tuple(found)


def sequence(name: str, values: Any, *, most: int = MOST_ITEMS) -> list[Any]:
    """A list of at least one thing; a text is no sequence."""
    found = items(name, values, most=most)
    if not found:
        raise ValueError(f"{name} is empty: expected at least one")
    return found


def mapping(name: str, value: Any, expected: str = "a mapping with texts as keys") -> dict[str, Any]:
    """A dict of a mapping whose keys are texts."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {describe_type(value)}: expected {expected}")
    try:
        found = dict(value.items())
    except Exception as error:  # noqa: BLE001 - an object of the user's
        raise TypeError(f"{name} is {describe_type(value)} that cannot be read: {_because(error)}") from None
    for key in found:
        if not isinstance(key, str):
            raise TypeError(f"{name} has the key {as_given(key)}: expected {expected}")
    return found


def path(name: str, value: Any) -> str:
    """The path of a file as a text.

    >>> path("path", 3)
    Traceback (most recent call last):
    TypeError: path=3: expected the path of a file, a text or a pathlib.Path
    """
    expected = f"{name}={as_given(value)}: expected the path of a file, a text or a pathlib.Path"
    try:
        found = os.fspath(value) if not isinstance(value, bytes) else None
    except Exception:  # noqa: BLE001 - an object of the user's
        found = None
    if not isinstance(found, str):
        raise TypeError(expected)
    try:
        if found and b"\0" not in os.fsencode(found):
            return found
    except UnicodeEncodeError:  # half of a surrogate pair
        pass
    raise ValueError(f"{expected}, which the system takes")


def _because(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(text_of(error), 200)}".removesuffix(": ")


def distinct(name: str, values: Sequence[Any]) -> None:
    """``ValueError`` for a value that is given twice."""
    twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
    if twice is not None:
        raise ValueError(f"{name}: {as_given(twice)} is given twice")
