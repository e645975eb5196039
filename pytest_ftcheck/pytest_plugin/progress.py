"""A progress line for long fine-tunes: written after the text on the terminal's line, and erased."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from ..core.formatting import number

if TYPE_CHECKING:
    from collections.abc import Callable


class Stream(Protocol):
    """As much of a text file as the line needs."""

    def write(self, text: str, /) -> object:
        """Write."""

    def flush(self) -> object:
        """Flush."""


class ProgressLine:
    """Shows ``12/200 steps, loss 0.693, 3 s`` once a fine-tune has lasted ``patience`` seconds.

    The line begins at the cursor, because pytest's own unfinished line (``test_head.py ..``) is to its left. It is
    erased with backspaces and blanks, which every terminal supports, so it must never wrap: ``room`` returns how many
    columns are free.
    """

    def __init__(
        self,
        stream: Stream,
        room: Callable[[], int],
        *,
        clock: Callable[[], float] = time.monotonic,
        patience: float = 2.0,
        interval: float = 0.1,
    ) -> None:
        self._stream = stream
        self._room = room
        self._clock = clock
        self._patience = patience
        self._interval = interval
        self._started: float | None = None
        self._done = 0
        self._drawn = 0.0
        self._width = 0

    def update(self, done: int, total: int, loss: float | None) -> None:
        """``done`` of ``total`` iterations are complete; when all are, the line is erased."""
        now = self._clock()
        self._done, before = done, self._done
        if done >= total:
            self.erase()
        elif self._started is None or done < before:
            self.erase()
            self._started = now
        elif now - self._started >= self._patience and (not self._width or now - self._drawn >= self._interval):
            shown = "" if loss is None else f", loss {number(loss)}"
            self._draw(f" {done:,}/{total:,} steps{shown}, {now - self._started:.0f} s")
            self._drawn = now

    def erase(self) -> None:
        """Erase the line; the next update is of a new fine-tune."""
        self._started = None
        if self._width:
            self._draw("")

    def _draw(self, text: str) -> None:
        # one column is kept free: many terminals wrap when the last one is written
        text = text[: max(0, self._room() - 1)]
        shown = text.ljust(self._width)
        try:
            # the cursor returns to the start of the line at once
            self._stream.write(shown + "\b" * len(shown))
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is gone: that must not fail a fine-tune
            pass
        self._width = len(text)
