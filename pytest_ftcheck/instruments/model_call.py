"""How a model is called with a batch: by keywords, with one argument, or with several."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from ..core.formatting import text_of
from .batches import fresh, in_words
from .task_readers.interface import TaskReader
from .task_readers.registered import LABELS

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "OptimizedModule")


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DDP, DataParallel or torch.compile."""
    if type(model).__name__ not in _WRAPPERS:
        return model
    for name in ("module", "_orig_mod"):
        if isinstance(inner := getattr(model, name, None), nn.Module):
            return unwrapped(inner)
    return model


class ModelCall:
    """Calls one model with batches of one form; which way works is found out by :meth:`first`."""

    def __init__(self, model: nn.Module, task_reader: TaskReader | None = None) -> None:
        self.model = model
        #: None: no way of calling the model is known.
        self.style: Literal["keywords", "one argument", "several arguments"] | None = None
        #: The model gets the labels, too.
        self.passes_labels = False
        #: Keys of the batch that the model does not take.
        self.dropped: set[str] = set()
        self._parameters, self._any_keyword = _parameters(unwrapped(model).forward)
        #: Reads the labels of the batches, where they have keys of their own and the model takes these.
        self._task_reader = task_reader if task_reader and _takes(self._parameters, task_reader.keys) else None
        self._label_key = next((k for k in LABELS if k in self._parameters), None)

    def __call__(self, inputs: Any, labels: Any) -> Any:
        inputs = fresh(inputs)
        if self.style == "keywords":
            chosen = {k: v for k, v in inputs.items() if k not in self.dropped}
            if self.passes_labels and labels is not None:
                chosen.update(self._named(labels))
            return self.model(**chosen)
        return self.model(*inputs) if self.style == "several arguments" else self.model(inputs)

    def _named(self, labels: Any) -> dict[str, Any]:
        if self._task_reader is not None:
            return dict(self._task_reader.write_labels(labels))
        return {self._label_key: labels} if self._label_key is not None else {}

    def first(self, inputs: Any, labels: Any) -> tuple[Any, str]:
        """Try the ways of calling the model that fit the batch, the most literal first: output, and the way in words.

        :raises ValueError: none works.
        """
        if isinstance(inputs, Mapping):
            return self._first_by_keywords(inputs, labels)
        what = "one tensor" if isinstance(inputs, torch.Tensor) else f"one {type(inputs).__name__}"
        several = isinstance(inputs, (tuple, list))
        errors = []
        self.style = "one argument"
        try:
            return self(inputs, labels), f"{what} of {len(inputs)}" if several else what
        except Exception as error:  # noqa: BLE001 - whatever the user's model raises, the next way is tried
            errors.append(f"as {what}: {_in_short(error, 160)}")
        if several:
            self.style = "several arguments"
            try:
                return self(inputs, labels), f"{len(inputs)} positional arguments"
            except Exception as error:  # noqa: BLE001
                errors.append(f"as positional arguments: {_in_short(error, 160)}")
        raise ValueError(f"the model could not be called with {in_words(inputs)}: " + "; ".join(errors))

    def _first_by_keywords(self, inputs: Mapping[str, Any], labels: Any) -> tuple[Any, str]:
        self.style = "keywords"
        if not self._any_keyword:
            self.dropped = {k for k in inputs if k not in self._parameters}
        if inputs and self._parameters and self.dropped == set(inputs):  # forward(batch): the mapping itself
            self.style = "one argument"
            try:
                output = self(inputs, labels)
                self.dropped = set()
                return output, f"one {type(inputs).__name__} of {len(inputs)}"
            except Exception:  # noqa: BLE001 - the message below is the better one
                self.style = "keywords"
        used = ", ".join(k for k in inputs if k not in self.dropped)
        takes_labels = self._task_reader is not None or self._label_key is not None
        self.passes_labels = takes_labels and labels is not None
        try:
            return self(inputs, labels), f"keywords {used}" + (" and labels" if self.passes_labels else "")
        except Exception as error:
            raise ValueError(
                f"the model could not be called with the keywords {used} "
                f"({_in_short(error, 200)}); it takes {', '.join(self._parameters) or 'anything'}"
            ) from error


def _takes(parameters: list[str], keys: tuple[str, ...]) -> bool:
    return bool(keys) and all(key in parameters for key in keys)


def _in_short(error: Exception, width: int) -> str:
    return f"{type(error).__name__}: {text_of(error).strip()[:width]}"


def _parameters(forward: Any) -> tuple[list[str], bool]:
    """Names of a forward's parameters, and whether it takes any other keyword."""
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # pragma: no cover - scripted modules
        return [], True
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)
