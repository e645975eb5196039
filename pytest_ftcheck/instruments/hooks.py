"""The hooks of one model, as they are now: on its modules and its parameters, and functions put in place of ``forward``."""

from __future__ import annotations

from typing import Any

from torch import nn

from .kept_attributes import refill
from .undisturbed import modules_of, named_parameters_of

#: Tables of hooks that a parameter has, or None where it has none as yet.
_OF_PARAMETERS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_NOT_THERE = object()


class ModelHooks:
    """Hooks and ``forward`` of every module, hooks of every parameter.

    >>> layer = nn.Linear(2, 2)
    >>> before = ModelHooks(layer)
    >>> _ = layer.register_forward_hook(lambda *_: None)
    >>> layer.forward = lambda x: x
    >>> before.restore()
    >>> len(layer._forward_hooks), "forward" in vars(layer)
    (0, False)
    """

    def __init__(self, model: nn.Module) -> None:
        modules = modules_of(model)
        self._tables = [
            (value, dict(value))
            for module in modules
            for name, value in vars(module).items()
            if "_hooks" in name and isinstance(value, dict)
        ]
        self._forwards = [(module, vars(module).get("forward", _NOT_THERE)) for module in modules]
        self._parameters: list[tuple[nn.Parameter, str, Any, dict[Any, Any]]] = [
            (p, name, table, dict(table or ()))
            for _, p in named_parameters_of(model)
            for name in _OF_PARAMETERS
            for table in [getattr(p, name, None)]
        ]

    def restore(self) -> None:
        """Everything as it was when it was kept."""
        for table, hooks in self._tables:
            refill(table, hooks)
        for module, forward in self._forwards:
            if forward is _NOT_THERE:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward
        for p, name, table, hooks in self._parameters:
            if table is not None:
                refill(table, hooks)
            if getattr(p, name, None) is not table:
                setattr(p, name, table)
