"""Hooks of ours in a loop that torch.compile compiles: neither compiled themselves nor part of anybody's graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .tensor_bytes import are_values


def outside_graphs(hook: Callable[..., None], unread: Callable[[], None] | None = None) -> Callable[..., None]:
    """A hook of a module: where torch.compile traces through its place, the graph is the same as without it, and it is not called.

    The hooks of a model that is compiled as a whole run outside its graph, and are called. A copy of the module, also a pickled one, has
    in its place a function that does nothing: ``torch.save(model)`` works while the model is watched, and what it saves can be loaded
    where this package is not installed.

    Where the model is called inside a transform of ``torch.func``, or with fake tensors, there are no values to be read: the hook is not
    called. What it raises is dropped, as it runs inside the user's call of the model.

    :param unread: called instead of the hook where there are no values: what it would have noted is not known.

    >>> import copy
    >>> hook = outside_graphs(print)
    >>> hook("called")
    called
    >>> copy.deepcopy(hook)("not called")
    """
    return _Hook(hook, unread).__exit__


class _Hook:
    """A hook as a method of the name that `contextlib.nullcontext` has for one that does nothing: that is how a method is pickled."""

    def __init__(self, hook: Callable[..., None] | None = None, unread: Callable[[], None] | None = None) -> None:
        self._hook, self._unread = hook, unread

    def __exit__(self, *args: Any) -> None:
        if not torch.compiler.is_dynamo_compiling() and self._hook is not None:
            self._note(self._hook, *args)

    def _note(self, hook: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(Exception):
            if are_values():
                hook(*args)
            elif self._unread is not None:
                self._unread()

    def __reduce__(self) -> tuple[Any, ...]:
        return contextlib.nullcontext, ()

    def __deepcopy__(self, memo: Any) -> _Hook:
        return _Hook()


def pickled_as_nothing() -> tuple[Any, ...]:
    """What ``__reduce__`` of a hook returns that is a function of Python's, which does nothing, in a copy of the model that was pickled."""
    return getattr, (contextlib.nullcontext(), "__exit__")


def between_graphs(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook of an optimizer's step: where the step is compiled, the graph ends at the hook, and it is called.

    >>> between_graphs(print)("called")
    called
    """
    plain: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return plain


def compiled(model: nn.Module) -> bool:
    """Whether the model is compiled: a hook would make it compile again."""
    return any(
        type(m).__name__ == "OptimizedModule" or getattr(m, "_compiled_call_impl", None) is not None
        for m in model.modules()
    )


def leave_uncompiled(function: Any, *, with_callees: bool = False) -> None:
    """Do not compile the function as a frame of its own, nor what it calls, if so wanted. Tracing through it is not affected."""
    try:
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
    except (
        ImportError
    ):  # pragma: no cover - an older torch: a hook's frame is compiled to nothing, so the hook is not called
        return
    callees = _FrameAction.SKIP if with_callees else _FrameAction.DEFAULT
    set_code_exec_strategy(function.__code__, _FrameExecStrategy(_FrameAction.SKIP, callees))


leave_uncompiled(_Hook.__exit__, with_callees=True)
