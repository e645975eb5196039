"""The module inside the wrappers of data parallelism and of ``torch.compile``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

#: Module and name of a wrapper's class -> its attribute that holds the wrapped module, also the prefix that it gives to names.
WRAPPERS = {
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module, whose parameters have the names that it gave them, and which runs uncompiled.

    >>> model = nn.Linear(2, 2)
    >>> unwrapped(nn.DataParallel(model)) is model, unwrapped(model) is model
    (True, True)
    """
    while (attribute := _attribute(model)) is not None:
        inner = getattr(model, attribute)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def without_wrappers(model: nn.Module, head: str | Sequence[str] | None) -> str | Sequence[str] | None:
    """A head's prefixes as in the unwrapped module, if they begin with the wrappers' own.

    >>> without_wrappers(nn.DataParallel(nn.Linear(2, 2)), ["module.weight", "bias"])
    ['weight', 'bias']
    """
    if isinstance(head, str):
        return _without(model, head)
    if isinstance(head, (list, tuple)):
        found = [_without(model, prefix) if isinstance(prefix, str) else prefix for prefix in head]
        return tuple(found) if isinstance(head, tuple) else found
    return head


def _without(model: nn.Module, prefix: str) -> str:
    while (attribute := _attribute(model)) is not None:
        prefix = prefix.removeprefix(f"{attribute}.")
        model = getattr(model, attribute)
    return prefix


def _attribute(model: nn.Module) -> str | None:
    return next((a for c in type(model).__mro__ if (a := WRAPPERS.get((c.__module__, c.__name__)))), None)
