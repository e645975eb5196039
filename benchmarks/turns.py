"""Steps of one training that are watched in turns, for `overhead.py`.

Two trainings, in two processes or two models side by side, cannot be compared to a few per cent: each has its own luck with where its
memory is, and keeps it, so that of two trainings alike one was 9 % faster from first to last. So there is one training, and its steps
are watched in turns. While they are not, the hooks on the optimizer and the mode that sees the loop's calls are off; hooks on modules
stay, which look at the first iterations and at powers of two alone. Between two turns the first step is not timed. A third kind of turn
is not watched either: the control, whose difference is the method's own error.

On a busy machine that error is larger than what is to be measured. So the time inside our hooks is added up, too.
"""

from __future__ import annotations

import contextlib
import resource
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from unwatched import recorder_of, unseen

from pytest_ftcheck import watch
from pytest_ftcheck.instruments import loop_calls

NAMES = ("bare", "watched", "bare again")
#: Seconds of the clock, seconds of the processors, page faults.
Cost = tuple[float, ...]
Costs = dict[str, list[Cost]]


class Turns:
    """Switches the watching off and on after so many steps, and notes how long a step took; the first round is not counted.

    :param watching: gives the watch, which has begun by the end of the first step.
    :param rounds: so many rounds of turns, or as many as ``seconds`` allow, but 4.
    :param steps: of a turn, the untimed first one included.
    """

    def __init__(self, watching: Callable[[], watch], *, rounds: int, steps: int, seconds: float) -> None:
        self.took: Costs = {name: [] for name in NAMES}
        #: Of each watched turn: the median share of a step that is spent inside our hooks, and the seconds.
        self.inside: list[tuple[float, float]] = []
        self.watched_steps = 0
        self._watching, self._rounds, self._steps = watching, rounds, steps
        self._until = time.perf_counter() + seconds
        self._ends: list[Cost] = []
        self._turn = 0  # of the first round
        self._name = "watched"
        self._unseen = contextlib.ExitStack()
        self._timing = False
        self._spent = 0.0
        self._spent_in: list[float] = []

    def step_ended(self) -> bool:
        """To be called at the end of each step, which lasts from the end of the one before; true: the last turn is over, watched again."""
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        self._ends.append((time.perf_counter(), time.process_time(), faults))
        self._spent_in.append(self._spent)
        self._spent = 0.0
        self.watched_steps += self._name == "watched"
        if len(self._ends) < self._steps:
            return False
        self._end_turn()
        rounds, position = divmod(self._turn, len(NAMES))
        over = not position and (rounds > self._rounds or (rounds > 4 and time.perf_counter() > self._until))
        # whose turn comes first changes from round to round, and so does the direction
        self._switch("watched" if over else NAMES[(rounds + (position if rounds % 2 else -position)) % len(NAMES)])
        return over

    def _end_turn(self) -> None:
        steps = [tuple(y - x for x, y in zip(a, b, strict=True)) for a, b in pairwise(self._ends)]
        if self._turn >= len(NAMES):
            self.took[self._name].append(tuple(statistics.median(each) for each in zip(*steps, strict=True)))
            if self._name == "watched":
                shares = [spent / cost[0] for spent, cost in zip(self._spent_in[1:], steps, strict=True)]
                self.inside.append((statistics.median(shares), statistics.median(self._spent_in[1:])))
        self._ends, self._spent_in = [], []
        self._turn += 1

    def _switch(self, name: str) -> None:
        """The next turn is one of these."""
        now, self._name = self._name, name
        if (now == "watched") == (name == "watched"):
            return
        recorder = recorder_of(self._watching())
        if name == "watched":
            recorder.attach()
            self._unseen.close()
        else:
            if not self._timing:
                self._timing = True
                for owner, method in (
                    (recorder, "_before_step"),
                    (recorder, "_after_step"),
                    (loop_calls._calls, "_tell"),
                ):
                    setattr(owner, method, self._timed(getattr(owner, method)))
            recorder.detach()
            self._unseen.enter_context(unseen())

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self._spent += time.perf_counter() - began

        return call
