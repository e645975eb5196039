"""Who is told while things happen: the plugin sets a listener, the core only calls it.

The core never knows pytest; without a listener nothing is told and nothing is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

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


@dataclass(frozen=True)
class Again:
    """What can be asked of a fine-tune that has just ended, while its model and batches are at hand."""

    #: Fingerprint of the batches: equal for the same ones, in whatever order.
    data: Callable[[], str]
    #: The same fine-tune under so many seeds, its own first.
    seeds: Callable[[int], Sequence[Trace]]


@runtime_checkable
class Keeper(Protocol):
    """A listener that compares runs with those of other sessions, too."""

    def kept(self, trace: Trace, again: Again | None) -> None:
        """The run of this trace is over, and may be repeated; None: it cannot be (a watched loop). May take long; must not raise."""


_repeating: ContextVar[bool] = ContextVar("pytest_ftcheck_repeating", default=False)


def keep(trace: Trace, again: Again | None) -> None:
    """Tell a listener that is a keeper; not of the same run under another seed."""
    told: object = current()
    if isinstance(told, Keeper) and not _repeating.get():
        told.kept(trace, again)


@contextlib.contextmanager
def repeating(wanted: bool = True) -> Iterator[None]:
    """What is trained inside the block is some run over again, and no run of its own."""
    token = _repeating.set(wanted or _repeating.get())
    try:
        yield
    finally:
        _repeating.reset(token)


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
