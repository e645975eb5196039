"""Callbacks: the plugin registers a listener, the core notifies it.

The core does not know pytest. Without a listener nothing is notified and nothing is kept.
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
    """Callbacks of a session. Each must return quickly and must not raise."""

    def progress(self, done: int, total: int, loss: float | None) -> None:
        """``done`` of ``total`` iterations of a fine-tune are complete; ``done == total`` comes once, at the end."""

    def traced(self, trace: Trace) -> None:
        """A fine-tune, or a watched loop, has ended with this trace."""

    def judged(self, verdict: Verdict, trace: Trace | None) -> None:
        """An assertion has reached this verdict; called before it raises. No trace where nothing was trained."""

    def calibrated(self, calibration: Any) -> None:
        """A check has judged many seeds, for its statistics only (a `CheckCalibration`)."""


@dataclass(frozen=True)
class Rerun:
    """Ways to repeat a fine-tune that has just ended, while its model and batches are in memory."""

    #: Fingerprint of the batches: equal for the same batches, in any order.
    data: Callable[[], str]
    #: The same fine-tune under this many seeds, its own first.
    seeds: Callable[[int], Sequence[Trace]]
    #: Fingerprint of the rows that its metrics are taken on; None, also as its value: there are none.
    evaluation: Callable[[], str | None] | None = None


@runtime_checkable
class BaselineListener(Protocol):
    """A listener that also compares runs with those of earlier sessions."""

    def run_ended(self, trace: Trace, rerun: Rerun | None) -> None:
        """The run of this trace has ended; ``rerun`` is None where it cannot be repeated (a watched loop). May be slow; must not raise."""


@runtime_checkable
class RankListener(Protocol):
    """A listener on one of several ranks, which knows what the others measured."""

    def merged(self, trace: Trace) -> Trace:
        """The trace merged with those of the other ranks, or itself; may wait for them. The same trace is merged once."""


def merged_over_ranks(trace: Trace) -> Trace:
    """Ask a `RankListener`; without one, the trace itself."""
    listener: object = current()
    return listener.merged(trace) if isinstance(listener, RankListener) else trace


@runtime_checkable
class TraceVerdictListener(Protocol):
    """A listener that keeps all verdicts of a trace, for reports which show them."""

    def verdicts_reached(self, verdicts: Sequence[Verdict], traces: Sequence[Trace]) -> None:
        """These verdicts hold for these traces: one trace, or the seeds of one fine-tune. Must be quick; must not raise."""


def verdicts_reached(verdicts: Sequence[Verdict], traces: Sequence[Trace]) -> None:
    """Notify a `TraceVerdictListener`."""
    listener: object = current()
    if isinstance(listener, TraceVerdictListener):
        listener.verdicts_reached(verdicts, traces)


_repeating: ContextVar[bool] = ContextVar("pytest_ftcheck_repeating", default=False)


def run_ended(trace: Trace, rerun: Rerun | None) -> None:
    """Notify a `BaselineListener`; not of repetitions of a run under other seeds."""
    listener: object = current()
    if isinstance(listener, BaselineListener) and not _repeating.get():
        listener.run_ended(trace, rerun)


@contextlib.contextmanager
def repeating(wanted: bool = True) -> Iterator[None]:
    """Fine-tunes inside the block repeat an earlier run; they are no runs of their own."""
    token = _repeating.set(wanted or _repeating.get())
    try:
        yield
    finally:
        _repeating.reset(token)


class ProgressOnly:
    """Shows another listener the progress of fine-tunes that are not to be recorded."""

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener

    def progress(self, done: int, total: int, loss: float | None) -> None:
        """Hand it on."""
        if self._listener is not None:
            self._listener.progress(done, total, loss)

    def traced(self, trace: Trace) -> None:
        """Not recorded."""

    def judged(self, verdict: Verdict, trace: Trace | None) -> None:
        """Not recorded."""

    def calibrated(self, calibration: Any) -> None:
        """Not recorded."""


_current: ContextVar[Listener | None] = ContextVar("pytest_ftcheck_listener", default=None)


def current() -> Listener | None:
    """The registered listener, if any."""
    return _current.get()


@contextlib.contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Notify ``listener`` of what happens inside the block."""
    token = _current.set(listener)
    try:
        yield
    finally:
        _current.reset(token)
