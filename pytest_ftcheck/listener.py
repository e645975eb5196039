"""Who is told while things happen: the plugin sets a listener, the core only calls it.

The core never knows pytest; without a listener nothing is told and nothing is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .trace import Trace
    from .verdict import Verdict


class Listener(Protocol):
    """What the core tells. Every method must return quickly and must not raise."""

    def progress(self, done: int, total: int, loss: float | None) -> None:
        """``done`` of ``total`` iterations of a fine-tune are over; ``done == total`` comes once, at the end."""

    def traced(self, trace: Trace) -> None:
        """A fine-tune, or a watched loop, has ended in this trace."""

    def judged(self, verdict: Verdict, trace: Trace | None) -> None:
        """An assertion has reached this verdict (before it raises, if it does); no trace where nothing was trained."""

    def calibrated(self, record: dict[str, Any]) -> None:
        """A check has been asked over many seeds, and nothing was judged (`calibrate.gather` says what is in the record)."""


_current: ContextVar[Listener | None] = ContextVar("pytest_ftcheck_listener", default=None)


def current() -> Listener | None:
    """The listener in force, if any."""
    return _current.get()


@contextlib.contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Tell ``listener`` what happens inside the block."""
    token = _current.set(listener)
    try:
        yield
    finally:
        _current.reset(token)
