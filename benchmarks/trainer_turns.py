"""Trainings by a ``transformers.Trainer`` that take turns, for `overhead.py`: one watched by a callback, one alone, and another one alone.

Each is a process of its own, and none gives memory back (`kept_memory`). Else the allocator adapts to the largest piece that was given
back, and the probes before a watched training give back larger ones than the training does: with a quarter fewer page faults a step,
the watched training was the faster one. Page faults are counted. The second one alone is the control: what differs there is the
method's own error.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import tempfile
import time
import unittest.mock
import warnings
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import torch
from kept_memory import ALLOCATOR
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

#: Longest wait for a turn: the process has crashed, or hangs.
PATIENCE = 600
NAMES = ("bare", "watched", "bare again")
#: Seconds of the clock, seconds of the processors, page faults.
Cost = tuple[float, ...]
Costs = dict[str, list[Cost]]


class Turns(TrainerCallback):
    """Trains so many steps when it is told to go, and says how long they took; the first step of each turn is not timed."""

    def __init__(self, steps: int, coordinator: Connection) -> None:
        self.steps, self.coordinator = steps, coordinator
        self._ends: list[Cost] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Wait for the first turn."""
        if state.global_step == 0:
            self.coordinator.recv()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """A step lasts from the end of the one before to its own end; the turn may be over."""
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        self._ends.append((time.perf_counter(), time.process_time(), faults))
        if len(self._ends) == self.steps:
            self.coordinator.send([tuple(y - x for x, y in zip(a, b, strict=True)) for a, b in pairwise(self._ends)])
            self._ends = []
            control.should_training_stop = not self.coordinator.recv()


def train(
    name: str, coordinator: Connection, sizes: dict[str, int], rows: Sequence[Any], batch: int, steps: int, threads: int
) -> None:
    """What a process does: it trains in turns, and says last how many steps it has noted."""
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
        noted = 0
        if name == "watched":
            from pytest_ftcheck import FtcheckCallback

            callback = FtcheckCallback()
            trainer.add_callback(callback)
        trainer.add_callback(Turns(steps, coordinator))
        trainer.train()
        if name == "watched":
            noted = len(callback.trace.steps)
    coordinator.send(noted)


def in_turns(
    sizes: dict[str, int],
    rows: Sequence[Any],
    *,
    batch: int,
    rounds: int,
    steps: int,
    threads: int,
    seconds: float,
    launch: int = 0,
) -> tuple[Costs, int]:
    """The `Cost` of a step for each of `NAMES`, one a round; and how many steps the callback noted.

    The first round makes the optimizers' states, and is left out. Whose turn comes first changes from round to round.

    :param sizes: of the DistilBERT.  :param launch: which process is started first depends on its number.
    :param steps: of a turn, the untimed first one included.  :param seconds: no round begins later.
    """
    context = multiprocessing.get_context("spawn")
    ends, workers = {}, []
    for name in (*NAMES[launch % len(NAMES) :], *NAMES[: launch % len(NAMES)]):
        ends[name], theirs = context.Pipe()
        arguments = (name, theirs, sizes, rows, batch, steps, threads)
        workers.append(context.Process(target=train, args=arguments, daemon=True))
        with unittest.mock.patch.dict(os.environ, ALLOCATOR):
            workers[-1].start()
        theirs.close()
    took: Costs = {name: [] for name in NAMES}
    until = time.perf_counter() + seconds
    try:
        for turn in range(1 + rounds):
            if turn > 4 and time.perf_counter() > until:
                break
            for i in range(len(NAMES)):
                name = NAMES[(launch + turn + (i if turn % 2 else -i)) % len(NAMES)]
                ends[name].send(True)
                times = _answer(name, ends[name])
                if turn:
                    took[name].append(tuple(statistics.median(each) for each in zip(*times, strict=True)))
        noted = 0
        for name in NAMES:
            ends[name].send(False)
            noted += _answer(name, ends[name])
        return took, noted
    finally:
        for worker in workers:
            worker.join(10)
            worker.kill()


def _answer(name: str, end: Connection) -> Any:
    """What a process says."""
    if not end.poll(PATIENCE):
        raise TimeoutError(f"the training {name!r} does not go on")
    try:
        return end.recv()
    except EOFError:
        raise RuntimeError(f"the training {name!r} has crashed: its message stands above") from None
