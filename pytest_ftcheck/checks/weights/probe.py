"""The probe that sees what the loop loads into the model."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ...instruments.probe import ModelContext, ModelProbe
from ...instruments.uncompiled import pickled_as_nothing
from ...instruments.undisturbed import is_probing
from .record import Restores


class RestoresProbe(ModelProbe):
    """Hooks on the model's own ``state_dict`` and ``load_state_dict``: is what is loaded a copy, or the model's own memory?"""

    name = "restores"
    order = 4

    def __init__(self, context: ModelContext) -> None:
        super().__init__(context)
        self._handles: list[RemovableHandle] = []
        self._kept: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        #: By address: how often the memory had been written to when `state_dict` was last called.
        self._latest: dict[int, int] = {}
        self.found = Restores()

    def before(self) -> None:
        """Look from now on."""
        model = self.context.model
        self._handles.append(model._register_state_dict_hook(_Hook(self._taken)))  # type: ignore[no-untyped-call]
        # with the module: a copy of the model has copies of its hooks
        given = _Hook(self._given)
        self._handles.append(model._register_load_state_dict_pre_hook(given, with_module=True))  # type: ignore[no-untyped-call]

    def record(self) -> Restores | None:
        """What was seen."""
        return self.found

    def close(self) -> None:
        """No hook of ours is left."""
        while self._handles:
            self._handles.pop().remove()
        self._kept.clear()
        self._latest.clear()

    # ------------------------------------------------------------------ the loop's own calls
    def _taken(self, module: nn.Module, state: Mapping[str, Any], *_: Any) -> None:
        """Notes what was returned, and how often each tensor had been written to by then."""
        if module is not self.context.model or is_probing():
            return
        self._kept = {key: (ref, version) for key, (ref, version) in self._kept.items() if ref() is not None}
        values = [v for v in state.values() if isinstance(v, torch.Tensor) and not isinstance(v, nn.Parameter)]
        values = [v for v in values if not v.is_inference()]
        self._kept.update({id(v): (weakref.ref(v), v._version) for v in values})
        self._latest = {v.data_ptr(): v._version for v in values}

    def _given(self, module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        """Compares what is loaded with where it goes."""
        if module is not self.context.model or is_probing():
            return
        trainable = {n: p for n, p in module.named_parameters() if p.requires_grad and p.numel()}
        values = {n: state.get(prefix + n) for n in trainable}
        own = [v for n, v in values.items() if isinstance(v, torch.Tensor) and _same_memory(v, trainable[n])]
        changed = sum(self._changed(v) for v in own)
        nothing = bool(trainable) and len(own) == len(trainable) and changed > 0
        seen = self.found
        if nothing and not seen.without_effect:
            seen = Restores(seen.calls, 0, len(trainable), changed)
        self.found = Restores(seen.calls + 1, seen.without_effect + nothing, seen.parameters, seen.changed)

    def _changed(self, value: torch.Tensor) -> bool:
        """Whether it was written to since `state_dict` returned it; not where that was not seen.

        Of another view of it (``v.detach()``) it is not known when it was taken: not after the last call, if it changed since.
        """
        ref, version = self._kept.get(id(value), (None, 0))
        if ref is not None and ref() is value:
            return value._version > version
        latest = None if isinstance(value, nn.Parameter) else self._latest.get(value.data_ptr())
        return latest is not None and value._version > latest


class _Hook:
    """A hook that calls one function of the probe; copies of it are the same hook, and where it is pickled nothing of ours is."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> None:
        """The function of the probe; what it raises is dropped, for this is the user's call."""
        try:
            self.function(*arguments)
        except Exception:  # noqa: BLE001
            return

    def __deepcopy__(self, _: Any) -> _Hook:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return pickled_as_nothing()


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.device == b.device and a.shape == b.shape and a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
