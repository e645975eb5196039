"""Frozen dataclasses to JSON and back, by their annotations.

Standard JSON has no NaN and no infinity, which diverged runs contain: they are written as strings.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from typing import Any, Union

#: ``metadata`` of a field that is left out: no plain data.
NOT_SAVED = {"saved": False}
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: Any) -> Any:
    """``value`` as standard JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.metadata.get("saved", True)
        }
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, (tuple, list)):
        if all(type(v) is float for v in value) and all(map(math.isfinite, value)):
            return list(value)  # a long series: one call for all numbers
        return [encode(v) for v in value]
    if isinstance(value, dict):
        return {str(k): encode(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} is not plain data")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def decode(kind: Any, value: Any, where: str = "trace") -> Any:
    """The inverse of :func:`encode` for an annotation; ``ValueError`` names the place that does not fit."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        if type(value) in args:  # ``bool | float``: a truth value is no number
            return value
        kinds = [a for a in reversed(args) if a is not type(None)]
        # ``float | InitScheme``: an object is the dataclass, anything else is not
        fitting = [a for a in kinds if dataclasses.is_dataclass(a) == isinstance(value, dict)]
        return decode((fitting or kinds)[0], value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise _unfit(where, kind.__name__, value)
        hints, known = _hints(kind), {f.name: f for f in dataclasses.fields(kind) if f.metadata.get("saved", True)}
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise ValueError(f"{where}: unknown field {unknown[0]!r}")
        missing = [
            n
            for n, f in known.items()
            if n not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ValueError(f"{where}: field {missing[0]!r} is missing")
        return kind(**{n: decode(hints[n], v, f"{where}.{n}") for n, v in value.items()})
    if origin is tuple:
        if not isinstance(value, list):
            raise _unfit(where, "a list", value)
        if len(args) == 2 and args[1] is Ellipsis:
            if args[0] is float and all(type(v) is float for v in value):
                return tuple(value)  # a long series: one call for all numbers
            return tuple(decode(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(args) != len(value):
            raise _unfit(where, f"{len(args)} items", value)
        return tuple(decode(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise _unfit(where, "an object", value)
        return {k: decode(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float:
        if isinstance(value, str) and value in _SPECIAL:
            return _SPECIAL[value]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _unfit(where, "a number", value)
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{where}: expected a number that a float can hold") from None
    if kind in (int, str, bool):
        if type(value) is not kind:
            raise _unfit(where, kind.__name__, value)
        return value
    raise ValueError(f"{where}: expected nothing, for it is no plain data and is not saved")


def _unfit(where: str, expected: str, value: Any) -> ValueError:
    try:
        found = str(value)[:60]
    except (RecursionError, ValueError):  # nested too deeply; a number of more digits than python writes
        found = type(value).__name__
    return ValueError(f"{where}: expected {expected}, found {found!r}")
