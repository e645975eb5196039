"""A trace that can repeat its own fine-tune, while model and batches are at hand."""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from ..core.trace import Trace

#: Runs of a module that was passed in whose model is kept alive by their trace, so that a probe can be run later; of older ones it is not.
KEPT_MODELS = 4
_holding_models: deque[weakref.ref[Trace]] = deque()


#: Whether a trace repeats its own fine-tune. What comes of it is not repeated in turn.
_repeated: ContextVar[bool] = ContextVar("pytest_ftcheck_repeated", default=False)


@contextlib.contextmanager
def within_a_trace() -> Iterator[None]:
    """What is called inside is not repeated by a trace of its own."""
    token = _repeated.set(True)
    try:
        yield
    finally:
        _repeated.reset(token)


def keep_repeatable(
    trace: Trace,
    remeasure: Callable[[str], Trace],
    lengthen: Callable[[int, float], Trace] | None,
    *,
    holds_model: bool,
) -> None:
    """Set ``trace.remeasure`` and ``trace.lengthen``. Not a copy with them: the listener knows this trace."""
    if _repeated.get():
        return
    object.__setattr__(trace, "remeasure", remeasure)
    object.__setattr__(trace, "lengthen", lengthen)
    if not holds_model:
        return
    _holding_models.append(weakref.ref(trace))
    while len(_holding_models) > KEPT_MODELS:
        oldest = _holding_models.popleft()()
        if oldest is not None:
            object.__setattr__(oldest, "remeasure", None)
            object.__setattr__(oldest, "lengthen", None)
