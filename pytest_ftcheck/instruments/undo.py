"""Everything that was kept is restored, whatever interrupts it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TypeVar

from ..core.formatting import named_error

T = TypeVar("T")
#: Restoring is begun again after each interrupt (Ctrl-C, SystemExit), at most so often: something in it may raise each time.
MOST_INTERRUPTS = 100


class Restorable(Protocol):
    """Something as it was when it was kept. Restoring it twice is restoring it once."""

    def restore(self) -> object:
        """Everything as it was when it was kept."""


class NotRestored(RuntimeError):
    """Some of what belongs to the user could not be restored, and the message names it; all else was restored."""


def _nothing() -> None:
    pass


class _Blocks(threading.local):
    """The blocks of this thread in which something is changed, the outermost first."""

    def __init__(self) -> None:
        self.open: list[Undo] = []


_blocks = _Blocks()
#: Random states and switches belong to the process: of two threads that change them, one waits for the other.
_one_thread = threading.RLock()


class Undo:
    """What is kept is restored at the end of a ``with`` block or of :meth:`after`, the last first.

    An interrupt while it is restored begins it anew, and is raised when all is restored. One that comes so early that a ``with`` block
    has no end (python may raise it before the first line of ``__exit__``) leaves the block to the one around it. `after` needs none
    around it.
    """

    def __init__(self, *kept: Restorable) -> None:
        self._kept: list[Restorable] = list(kept)
        self._restored = False
        #: Ids of the parameters among what is kept: each is copied once.
        self.parameters: set[int] = set()
        self.problems: list[str] = []

    def keep(self, *kept: Restorable) -> None:
        """Restore these, too. What is kept last is restored first. What a run must not write to is lent by its ``begin``."""
        self._kept.extend(kept)
        for one in kept:
            getattr(one, "begin", _nothing)()

    def after(self, run: Callable[[], T]) -> T:
        """The result of ``run()``; everything is restored when it ends, in whatever way.

        A second thread waits until the first has ended.

        :raises NotRestored: something could not be restored. If ``run()`` itself raised, this is a note on its exception.
        """
        with _one_thread:
            try:
                try:
                    _blocks.open.append(self)
                    result = run()
                finally:
                    self._restore()
            except BaseException as error:
                self._restore()
                self._report(error)
                raise
            finally:  # for an interrupt at the beginning or the end of one of the lines above
                self._restore()
            self._report(None)
            return result

    def __enter__(self) -> Undo:
        _blocks.open.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._restore()
        finally:
            self._restore()
        self._report(error)

    def restore(self) -> None:
        """Restore everything, first in the blocks inside that have not ended; harmless when it is done.

        :raises NotRestored: something could not be restored.
        """
        self._restore()
        self._report(None)

    def _restore(self) -> None:
        interrupt: BaseException | None = None
        for _ in range(MOST_INTERRUPTS):
            if self._restored:
                break
            try:
                inside = _blocks.open[_position(self) :] or [self]
                for block in reversed(inside):
                    block._once()
                for block in inside[1:]:
                    self.problems += block.problems
                    block._restored = True
                del _blocks.open[_position(self) :]
                self._restored = True
            except BaseException as error:  # noqa: BLE001 - raised below, when everything is restored
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _once(self) -> None:
        if not self._restored:
            problems: list[str] = []
            for kept in reversed(self._kept):
                restore_or_name(kept, problems)
            self.problems = problems

    def _report(self, error: BaseException | None) -> None:
        if self.problems:
            text = "not restored, all else is: " + "; ".join(self.problems)
            self.problems = []
            if error is None:
                raise NotRestored(text)
            getattr(error, "add_note", warnings.warn)(text)


def _position(undo: Undo) -> int:
    return next((i for i, block in enumerate(_blocks.open) if block is undo), len(_blocks.open))


def restore_or_name(kept: Restorable, problems: list[str]) -> object:
    """Restore one thing, and return what that returned; an exception names it in ``problems`` and does not prevent the others."""
    try:
        return kept.restore()
    except NotRestored as error:
        problems.append(str(error))
    except Exception as error:  # noqa: BLE001 - raised when all else is restored
        name = str(kept) if type(kept).__str__ is not object.__str__ else type(kept).__name__
        problems.append(f"{name} ({named_error(error)})")
    return None
