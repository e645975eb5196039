"""Saves a training and loads it into fresh objects: by ``state_dict`` through ``torch.save`` in memory, or by the user's functions."""

from __future__ import annotations

import copy
import functools
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ....core.formatting import named_error
from .components import random_states, set_random_states

#: ``(path, model, optimizer, scheduler)``: the user's functions that save a checkpoint, and load it.
Checkpoint = tuple[Callable[..., Any], Callable[..., Any]]


class CheckpointFailed(Exception):
    """Saving or loading raised; `doing` says what was being done."""

    def __init__(self, doing: str, error: Exception) -> None:
        super().__init__(named_error(error))
        self.doing = doing


class StateDicts:
    """The ``state_dict`` of each object through ``torch.save`` and ``torch.load(weights_only=True)``, in memory; random states with it.

    What ``weights_only`` refuses is copied in memory: unpickling could run code.
    """

    def __init__(self) -> None:
        self.refused: list[str] = []
        self._states: dict[str, Any] = {}
        self._random: dict[str, Any] = {}

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Save all of it."""
        for name, part in (("model", model), ("optimizer", optimizer), ("scheduler", scheduler)):
            if part is not None and hasattr(part, "state_dict"):
                self._states[name] = self._through_file(name, part)
        self._random = random_states()

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Load all of it into other objects."""
        for name, part in (("model", model), ("optimizer", optimizer), ("scheduler", scheduler)):
            if name in self._states:
                state = copy.deepcopy(self._states[name])
                _attempt(f"loading the {name}", functools.partial(part.load_state_dict, state))
        set_random_states(self._random)

    def _through_file(self, name: str, part: Any) -> Any:
        state = _attempt(f"saving the {name}", part.state_dict)
        file = io.BytesIO()
        try:
            torch.save(state, file)
            file.seek(0)
            return torch.load(file, weights_only=True)
        except Exception:  # noqa: BLE001 - objects that cannot be pickled, or that must not be unpickled
            if name not in self.refused:
                self.refused.append(name)
            return copy.deepcopy(state)


class OwnCheckpoint:
    """The user's functions ``save(path, model, optimizer, scheduler)`` and ``load(...)``, in a temporary folder."""

    def __init__(self, functions: Checkpoint) -> None:
        self._save, self._load = functions
        self._folder = tempfile.TemporaryDirectory(prefix="ftcheck-")
        self._path = Path(self._folder.name) / "checkpoint"
        self.refused: list[str] = []

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Call the user's ``save``."""
        _attempt("saving", lambda: self._save(self._path, model, optimizer, scheduler))

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Call the user's ``load``."""
        _attempt("loading", lambda: self._load(self._path, model, optimizer, scheduler))

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()


def _attempt(doing: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        raise CheckpointFailed(doing, error) from error
