"""What is changed about a submodule, beside that of the twin: what explains that it computes something else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ...base_twin_record import RaisedDropout

#: Attributes that torch or the mode sets.
NOT_COMPARED = {"training", "gradient_checkpointing", "name_or_path"}
#: Where functions of ours come from: hooks of the recorder are no change.
OURS = __name__.split(".")[0]
MOST = 4


def changes_of(name: str, module: nn.Module, twin: nn.Module) -> tuple[str, ...]:
    """What differs about two modules themselves, at most `MOST` things, the most telling first."""
    return tuple(_changes(name, module, twin))[:MOST]


def _changes(name: str, module: nn.Module, twin: nn.Module) -> Iterator[str]:
    if type(module) is not type(twin):
        yield f"{name} is of class {type(module).__name__}, in the twin of class {type(twin).__name__}"
        return
    if "forward" in vars(module):
        yield f"{name}.forward is replaced by the function {_called(vars(module)['forward'])}"
    for attribute, kind in (("_forward_hooks", "forward hook"), ("_forward_pre_hooks", "forward pre-hook")):
        for hook in getattr(module, attribute).values():
            if not str(getattr(hook, "__module__", "")).startswith(OURS):
                yield f"{name} has a {kind}, {_called(hook)}"
    for child, other in twin.named_children():
        if type(found := getattr(module, child, None)) is not type(other):
            yield f"{name}.{child} is of class {type(found).__name__}, in the twin of class {type(other).__name__}"
    mine, theirs = vars(module), vars(twin)
    for key in sorted(mine):
        if key.startswith("_") or key in NOT_COMPARED or key == "forward":
            continue
        first, second = mine[key], theirs.get(key)
        if _plain(first) and _plain(second) and first != second:
            yield f"{name}.{key} is {first!r}, in the twin {second!r}"
        elif callable(first) and not isinstance(first, nn.Module) and _called(first) != _called(second):
            yield f"{name}.{key} is {_called(first)}, in the twin {_called(second)}"


def raised_dropout(modules: Mapping[str, tuple[nn.Module, nn.Module]]) -> tuple[RaisedDropout, ...]:
    """Where a base drops more than its twin, by its dropout modules and the rates that other modules hold.

    :param modules: name -> the base's submodule, and the twin's.

    >>> raised_dropout({"a": (nn.Dropout(0.75), nn.Dropout(0.1)), "b": (nn.Dropout(0.0), nn.Dropout(0.1))})
    (RaisedDropout(module='a', rate=0.75, of_class=0.1),)
    """
    found = []
    for name, (module, twin) in modules.items():
        mine, theirs = _rates(module), _rates(twin)
        for key, rate in mine.items():
            if key in theirs and rate > theirs[key]:
                found.append(RaisedDropout(f"{name}.{key}".strip(".") if key != "p" else name, rate, theirs[key]))
    return tuple(found)


def _rates(module: nn.Module) -> dict[str, float]:
    """Attribute -> rate."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return {"p": float(module.p)}
    return {k: v for k, v in vars(module).items() if "drop" in k and isinstance(v, float)}


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _called(function: Any) -> str:
    inner = getattr(function, "func", function)  # functools.partial
    return str(getattr(inner, "__name__", type(inner).__name__))
