"""Hooks of ours in a loop that torch.compile compiles: neither compiled themselves nor part of anybody's graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

try:  # what torch.compiler.disable is made of, without importing the compiler
    from torch._C._dynamo.eval_frame import set_eval_frame, skip_code
except ImportError:  # pragma: no cover - another torch
    set_eval_frame = skip_code = None


def uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    """The hook, never compiled: for the steps of optimizers, and for a model that is compiled as a whole, whose own hooks run outside its
    graph. A larger function that is compiled is split where it reaches the hook.

    >>> uncompiled(print)("called")
    called
    """
    if set_eval_frame is None or skip_code is None:  # pragma: no cover - another torch
        return hook

    def called(*args: Any, **kwargs: Any) -> None:
        before = set_eval_frame(None)
        try:
            hook(*args, **kwargs)
        finally:
            set_eval_frame(before)

    skip_code(called.__code__)
    return called


def outside_graphs(hook: Callable[..., None]) -> Callable[..., None]:
    """The hook of a module inside a model: where the model is compiled, the graph is the same as without the hook, and it is not called.

    >>> outside_graphs(print)("called")
    called
    """

    def called(*args: Any, **kwargs: Any) -> None:
        if not torch.compiler.is_dynamo_compiling():
            hook(*args, **kwargs)

    return called
