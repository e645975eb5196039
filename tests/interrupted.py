"""Interrupts in place of a line of the package: which lines run, and one of them raises, or a signal comes right behind it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_ftcheck

PACKAGE = str(Path(pytest_ftcheck.__file__).parent)
#: Every place is tried, and not a sample.
WHOLE = bool(os.environ.get("FTCHECK_EVERY_LINE"))
#: Seconds after a line was reached at which a signal comes: within the next few instructions.
SOON = 2e-5


class Boom(Exception):
    """What the user's code raises."""


def by_signal():
    """A real signal, soon."""
    signal.setitimer(signal.ITIMER_REAL, SOON)


#: What may happen at a place.
KINDS = (KeyboardInterrupt, Boom, *([by_signal] if hasattr(signal, "setitimer") else []))


@contextlib.contextmanager
def alarms(handler=signal.default_int_handler, again: float = 0.0) -> Iterator[None]:
    """The timer's signal is an interrupt.

    Python drops one that comes in a callback (the garbage collector's, a weak reference's, ``__del__``), whosever that is,
    and reports it as unraisable. That is no failure of the code which runs then: it goes on, as if no signal had come.

    :param again: seconds after which a dropped interrupt comes once more; 0: not at all.
    """
    report = sys.unraisablehook

    def dropped(args):
        if not issubclass(args.exc_type, KeyboardInterrupt):
            report(args)
        elif again:
            signal.setitimer(signal.ITIMER_REAL, again)

    old, sys.unraisablehook = signal.signal(signal.SIGALRM, handler), dropped
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        sys.unraisablehook = report


@pytest.fixture
def timer():
    """The timer's signal is an interrupt."""
    with alarms() if by_signal in KINDS else contextlib.nullcontext():
        yield


def stopped(run, *lines, **options):
    """Where `Lines` stopped it, and how: for an assertion's message."""
    interrupted = Lines(*lines, **options)
    try:
        with interrupted:
            run()
        if by_signal in KINDS:
            signal.setitimer(signal.ITIMER_REAL, 0)  # here a signal that comes late is still caught
    except AssertionError:
        raise
    except (KeyboardInterrupt, Exception):  # noqa: BLE001 - a `Boom` may be reported in other words
        pass
    return f"{interrupted.error.__name__} at {interrupted.where}"


class Lines:
    """Inside the ``with``, the lines of the package that run are counted, and in place of one of them something happens.

    :param at: which, from 0.  :param files: a part of the files' paths.
    :param error: what is raised there, or `by_signal`.
    :param opcodes: count every single instruction in place of lines.
    """

    def __init__(self, at=-1, files="", error=KeyboardInterrupt, *, opcodes=False):
        self.at, self.files, self.error, self.count, self.where = at, files, error, 0, None
        self.event = "opcode" if opcodes else "line"
        #: Place in the code -> when it ran first, and when it ran last.
        self.places: dict[tuple[str, int], tuple[int, int]] = {}

    def __enter__(self):
        self.old = sys.gettrace()
        sys.settrace(self.called)
        return self

    def __exit__(self, *args):
        sys.settrace(self.old)

    def called(self, frame, event, arg):
        file = frame.f_code.co_filename
        if not (file.startswith(PACKAGE) and self.files in file):
            return None
        frame.f_trace_opcodes = self.event == "opcode"
        return self.line

    def line(self, frame, event, arg):
        if event == self.event:
            place = frame.f_code.co_filename, frame.f_lineno if event == "line" else (frame.f_lineno, frame.f_lasti)
            self.places[place] = self.places.get(place, (self.count,))[0], self.count
            self.count += 1
            if self.count == self.at + 1:
                self.where = f"{place[0]}:{place[1]}"
                if self.error is by_signal:
                    by_signal()
                else:
                    raise self.error
        return self.line

    def chosen(self, sample):
        """When each place of the code ran first and last; of these, about so many, from the first on; 0: all."""
        moments = sorted({moment for both in self.places.values() for moment in both})
        return moments[:: max(1, len(moments) // sample)] if sample else moments
