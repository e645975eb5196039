"""Work on an executor of the user's: anything with ``submit(fn, *args)`` whose futures have ``result()``."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from ..core.formatting import describe_type, one_line, text_of

#: How often a piece of work is begun whose worker dies.
ATTEMPTS = 2
#: What is known when a worker dies each time.
_WHY = (
    ": it was out of memory, crashed or was killed, cannot import pytest_ftcheck, or was started by a script without "
    'if __name__ == "__main__". Nothing is known of this work; all else that was computed is kept'
)
EXPECTED = "expected an object with submit(fn, *args) -> future, or a function without arguments that makes one"


class Executor(Protocol):
    """What `concurrent.futures.Executor` and its like have in common."""

    def submit(self, fn: Any, /, *args: Any) -> Any:
        """Begin ``fn(*args)`` elsewhere; returns an object whose ``result()`` waits for what it returns."""


#: An executor, or a function without arguments that makes one.
ExecutorOrFactory = Executor | Callable[[], Executor]


class ExecutorFailed(RuntimeError):
    """A worker died twice, or the executor takes no more work: what the message names was not computed."""


class Workers:
    """The executor of a call: the user's own, which is never shut down here, or one that the user's function makes.

    One that a function made is replaced when it takes no more work, and shut down when nothing needs it any more.

    :param given: an executor, or a function without arguments (or a class) that makes one.
    :raises TypeError: neither; or a pool of threads.

    >>> Workers(3)
    Traceback (most recent call last):
    TypeError: executor is an int: expected an object with submit(fn, *args) -> future, or a function without arguments that makes one
    """

    def __init__(self, given: Any) -> None:
        ready = _takes_work(given) and not inspect.isclass(given)
        if not ready and not callable(given):
            raise TypeError(f"executor is {describe_type(given)}: {EXPECTED}")
        if ready:
            _refuse_threads(given)
        #: Makes an executor; None: the user passed one.
        self._make: Callable[[], Any] | None = None if ready else given
        self._users_own: Any = given if ready else None
        #: The one that was made, if any.
        self._made: list[Any] = []
        weakref.finalize(self, _shut_down, self._made)

    @property
    def replaceable(self) -> bool:
        """Whether another executor can be made."""
        return self._make is not None

    def submit(self, function: Callable[..., str], *args: Any) -> Any:
        """The future of ``function(*args)``.  :raises ExecutorFailed: the executor takes no work.  :raises TypeError: none was made."""
        for executor in (self._executor(), None):
            try:
                return (executor or self._executor(new=True)).submit(function, *args)
            except Exception as error:  # a broken pool, one that was shut down
                if executor is None or not self.replaceable:
                    raise ExecutorFailed(f"the executor takes no work ({_in_words(error)}){self._hint()}") from error
        raise AssertionError  # pragma: no cover

    def _executor(self, *, new: bool = False) -> Any:
        if self._make is None:
            return self._users_own
        if new:
            self.close()
        if not self._made:
            made = self._make()
            if not _takes_work(made):
                raise TypeError(f"executor() returned {describe_type(made)}: expected an object with submit(fn, *args)")
            _refuse_threads(made)
            self._made.append(made)
        return self._made[0]

    def close(self) -> None:
        """Shut down the executor that was made here, without waiting; the next piece of work makes another."""
        _shut_down(self._made)

    def _hint(self) -> str:
        if self.replaceable:
            return ""
        return "; pass a function that makes the executor, and it is replaced when it breaks: executor=lambda: ..."


def workers_of(executor: Any) -> tuple[Workers, bool]:
    """The workers of an argument ``executor``, and whether they are to be closed by the call: not those of a whole session."""
    return (executor, False) if isinstance(executor, Workers) else (Workers(executor), True)


class Task:
    """One piece of work: begun at once, and once more if its worker dies.

    :param name: what it computes, for messages: ``seed 3``.
    :param function: importable by its name in a worker; its exceptions are part of what it returns, so that an exception of the
        future is a dead worker.

    >>> class Here:
    ...     def submit(self, function, *args):
    ...         value = function(*args)
    ...         return type("Future", (), {"result": lambda self: value})()
    >>> Task(Workers(Here()), "seed 3", str, 7).result()
    '7'
    """

    def __init__(self, workers: Workers, name: str, function: Callable[..., str], *args: Any) -> None:
        self._workers, self._name = workers, name
        self._begin: Callable[[], Any] = lambda: workers.submit(function, *args)
        self._future = self._begin()
        self._failure = ""

    def result(self) -> str:
        """Wait for it.  :raises ExecutorFailed: its worker died each time, or the executor takes no more work."""
        if self._failure:  # every check that reads this seed would try again
            raise ExecutorFailed(self._failure)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return str(self._future.result())
            except Exception as error:
                died = f"{self._name}: its worker died ({_in_words(error)})"
                if attempt == ATTEMPTS:
                    self._failure = f"{died}, {ATTEMPTS} times{_WHY}"
                    raise ExecutorFailed(self._failure) from error
                try:
                    self._future = self._begin()
                except ExecutorFailed as none:
                    raise ExecutorFailed(f"{died}, and {none}") from error
        raise AssertionError  # pragma: no cover

    def cancel(self) -> bool:
        """Whether it will not be computed, as far as the executor tells; one without ``cancel`` computes it."""
        cancel = getattr(self._future, "cancel", None)
        if cancel is None or self._failure:
            return False
        try:
            return cancel() is not False
        except Exception:  # noqa: BLE001 - a scheduler's command that fails: then it runs on
            return False


def _takes_work(thing: Any) -> bool:
    try:
        return callable(getattr(thing, "submit", None))
    except Exception:  # noqa: BLE001 - the user's object
        return False


def _refuse_threads(executor: Any) -> None:
    if isinstance(executor, ThreadPoolExecutor):
        raise TypeError(
            f"executor is {describe_type(executor)}: expected one with processes of its own, for random states and switches of torch "
            "belong to the process: ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn'))"
        )


def _shut_down(made: list[Any]) -> None:
    while made:
        shutdown = getattr(made.pop(), "shutdown", None)
        if shutdown is None:
            continue
        for keywords in ({"wait": False, "cancel_futures": True}, {"wait": False}, {}):
            with contextlib.suppress(TypeError):  # not every library's takes them
                shutdown(**keywords)
                break


def _in_words(error: BaseException) -> str:
    text = one_line(text_of(error), 200)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
