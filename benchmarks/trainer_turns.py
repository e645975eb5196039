"""A training by a ``transformers.Trainer`` under a callback, whose watching is switched off and on, for `overhead.py`.

Two trainings in two processes cannot be compared to a few per cent: a process has its own luck with where its memory is, and keeps it, so
that of two trainings alike one was 9 % faster from first to last. So there is one training, and its steps are watched in turns. While
they are not, the hooks on the optimizer and the mode that sees the loop's calls are off; hooks on modules stay, which look at the first
iterations and at powers of two alone. Between two turns the first step is not timed. A third kind of turn is not watched either: the
control, whose difference is the method's own error.

On a busy machine that error is larger than what is to be measured. So the time inside our hooks is added up, too.
"""

from __future__ import annotations

import contextlib
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from unwatched import recorder_of, unseen

from pytest_ftcheck import FtcheckCallback
from pytest_ftcheck.instruments import loop_calls

NAMES = ("bare", "watched", "bare again")
#: Seconds of the clock, seconds of the processors, page faults.
Cost = tuple[float, ...]
Costs = dict[str, list[Cost]]


class Turns(TrainerCallback):
    """Switches the watching off and on after so many steps, and notes how long a step took; the first round is not counted."""

    def __init__(self, watching: FtcheckCallback, *, rounds: int, steps: int, seconds: float) -> None:
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

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """A step lasts from the end of the one before to its own end; the turn may be over."""
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        self._ends.append((time.perf_counter(), time.process_time(), faults))
        self._spent_in.append(self._spent)
        self._spent = 0.0
        self.watched_steps += self._name == "watched"
        if len(self._ends) == self._steps:
            self._end_turn()
            rounds, position = divmod(self._turn, len(NAMES))
            if not position and (rounds > self._rounds or (rounds > 4 and time.perf_counter() > self._until)):
                self._switch("watched")
                control.should_training_stop = True
            else:
                # whose turn comes first changes from round to round, and so does the direction
                self._switch(NAMES[(rounds + (position if rounds % 2 else -position)) % len(NAMES)])

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
        assert self._watching._watch is not None
        recorder = recorder_of(self._watching._watch)
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


def in_turns(
    sizes: dict[str, int], rows: Sequence[Any], *, batch: int, rounds: int, steps: int, threads: int, seconds: float
) -> tuple[Costs, list[tuple[float, float]]]:
    """The `Cost` of a step for each of `NAMES`, one a round; and the share of a watched step inside our hooks, with its seconds.

    :param sizes: of the DistilBERT.  :param steps: of a turn, the untimed first one included.  :param seconds: no round begins later.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(DistilBertConfig(**sizes))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=10**6,
            per_device_train_batch_size=batch,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(model, settings, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        callback = FtcheckCallback()
        turns = Turns(callback, rounds=rounds, steps=steps, seconds=seconds)
        trainer.add_callback(callback)
        trainer.add_callback(turns)
        trainer.train()
    assert len(callback.trace.steps) == turns.watched_steps, "it saw the steps that it was to see, and no other"
    return turns.took, turns.inside
