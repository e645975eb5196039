"""Inference mode on or off in a block, such that an interrupt leaves nothing behind."""

from __future__ import annotations

import threading
from typing import Any

import torch


class _Open(threading.local):
    """The blocks of this thread that have not ended, the outermost first."""

    def __init__(self) -> None:
        self.blocks: list[Any] = []


_open = _Open()


class InferenceMode:
    """``torch.inference_mode(on)``; nothing where it is so already.

    Torch's guard also sets whether gradients are on, when it ends *or is freed*. An interrupt may keep it alive in the traceback until
    everything is restored, so `end_inference_modes` ends it before.

    >>> with InferenceMode(True):
    ...     torch.is_inference_mode_enabled()
    True
    >>> torch.is_inference_mode_enabled()
    False
    """

    def __init__(self, on: bool) -> None:
        self.on = on
        self._torchs: Any = None

    def __enter__(self) -> None:
        if self.on != torch.is_inference_mode_enabled():
            self._torchs = torch.inference_mode(self.on)
            _open.blocks.append(self._torchs)
            self._torchs.__enter__()

    def __exit__(self, *_: object) -> None:
        if self._torchs is not None:
            _end(self._torchs)
            _open.blocks = [block for block in _open.blocks if block is not self._torchs]


def open_inference_modes() -> int:
    """How many blocks of this thread have not ended."""
    return len(_open.blocks)


def end_inference_modes(left: int) -> None:
    """End the innermost blocks until so many are left; harmless when it is done."""
    for block in reversed(_open.blocks[left:]):
        _end(block)
    del _open.blocks[left:]


def _end(block: Any) -> None:
    # torch's guard may be ended twice; there is none where the interrupt came before it was made
    guard = getattr(block, "_inference_mode_context", None)
    if guard is not None:
        guard.__exit__(None, None, None)
