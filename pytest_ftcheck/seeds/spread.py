"""Seeds that an executor computes some ahead of the one that is waited for, and that are taken in their own order."""

from __future__ import annotations

from collections.abc import Callable

from .executors import Task

#: With ``seeds="auto"`` so many at once: fewer never pass, and at most two are computed in vain.
AHEAD_AUTO = 3
#: With a number of seeds, all of which are needed, so many at once: enough for a cluster, and few enough to be held in a queue.
AHEAD = 32


class Spread:
    """Begins seeds in blocks, and gives their answers in whichever order they are asked for.

    :param begin: ``(seed, steps) -> Task``.  :param first: the first seed.  :param steps: of a run that is no longer one.
    :param count: number of seeds, at most.  :param block: how many are begun together.

    >>> class Done:
    ...     def __init__(self, answer):
    ...         self.answer, self.cancelled = answer, False
    ...     def result(self):
    ...         return self.answer
    ...     def cancel(self):
    ...         return True
    >>> begun = []
    >>> spread = Spread(lambda seed, steps: begun.append(seed) or Done(f"seed {seed}"), first=0, steps=20, count=12, block=3)
    >>> spread.answer(0, 20), begun, spread.answer(1, 20), begun
    ('seed 0', [0, 1, 2], 'seed 1', [0, 1, 2])
    >>> spread.cancel()
    >>> spread.answer(2, 20), begun
    ('seed 2', [0, 1, 2, 2])
    """

    def __init__(self, begin: Callable[[int, int], Task], *, first: int, steps: int, count: int, block: int) -> None:
        self._begin = begin
        self._first, self._steps, self._count, self._block = first, steps, count, block
        #: What is being computed.
        self._tasks: dict[tuple[int, int], Task] = {}
        #: Seeds that have been begun and not cancelled.
        self._begun: set[int] = set()

    def answer(self, seed: int, steps: int) -> str:
        """What the worker returned; waits for it.  :raises ExecutorFailed: its worker died twice."""
        try:
            task = self._task(seed, steps)
            if steps == self._steps:
                self._look_ahead(seed)
            answer = task.result()
        except Exception:
            raise
        except BaseException:  # Ctrl-C
            self.cancel()
            raise
        self._tasks.pop((seed, steps), None)
        return answer

    def cancel(self) -> None:
        """Cancel what has not begun to run; what is needed after all is begun anew."""
        for key, task in list(self._tasks.items()):
            if task.cancel():
                del self._tasks[key]
                self._begun.discard(key[0])

    def _task(self, seed: int, steps: int) -> Task:
        if (seed, steps) not in self._tasks:
            self._tasks[seed, steps] = self._begin(seed, steps)
            if steps == self._steps:
                self._begun.add(seed)
        return self._tasks[seed, steps]

    def _look_ahead(self, seed: int) -> None:
        """Begin the rest of this seed's block."""
        number = seed - self._first
        end = min((number // self._block + 1) * self._block, self._count)
        for other in range(seed + 1, self._first + end):
            if other not in self._begun:
                self._task(other, self._steps)
