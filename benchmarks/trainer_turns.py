"""Trainings by a ``transformers.Trainer`` that take turns, for `overhead.py`: one watched by a callback, one alone, and another one alone.

Each is a process of its own, so that memory is laid out alike: of two threads of one process, each of which has its own part of the heap,
one had a third more page faults a step than the other, with nothing watched. The second one alone is the control: what differs there is
the method's own error.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
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

#: Longest wait for a turn: the process has crashed, or hangs.
PATIENCE = 600
NAMES = ("bare", "watched", "bare again")
Times = dict[str, list[tuple[float, float]]]


class Turns(TrainerCallback):
    """Trains so many steps when it is told to go, and says how long they took; the first step of each turn is not timed."""

    def __init__(self, steps: int, coordinator: Connection) -> None:
        self.steps, self.coordinator = steps, coordinator
        self._ends: list[tuple[float, float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Wait for the first turn."""
        if state.global_step == 0:
            self.coordinator.recv()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """A step lasts from the end of the one before to its own end; the turn may be over."""
        self._ends.append((time.perf_counter(), time.process_time()))
        if len(self._ends) == self.steps:
            self.coordinator.send([(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(self._ends)])
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
    sizes: dict[str, int], rows: Sequence[Any], *, batch: int, rounds: int, steps: int, threads: int, seconds: float
) -> tuple[Times, int]:
    """``(clock, processors)`` of a step for each of `NAMES`, one a round, in seconds; and how many steps the callback noted.

    The first round makes the optimizers' states, and is left out. Whose turn comes first changes from round to round.

    :param sizes: of the DistilBERT.  :param steps: of a turn, the untimed first one included.  :param seconds: no round begins later.
    """
    context = multiprocessing.get_context("spawn")
    ends, workers = {}, []
    for name in NAMES:
        ends[name], theirs = context.Pipe()
        arguments = (name, theirs, sizes, rows, batch, steps, threads)
        workers.append(context.Process(target=train, args=arguments, daemon=True))
        workers[-1].start()
        theirs.close()
    took: Times = {name: [] for name in NAMES}
    until = time.perf_counter() + seconds
    try:
        for turn in range(1 + rounds):
            if turn > 4 and time.perf_counter() > until:
                break
            for i in range(len(NAMES)):
                name = NAMES[(turn + i) % len(NAMES)] if turn % 2 else NAMES[(turn - i) % len(NAMES)]
                ends[name].send(True)
                times = _answer(name, ends[name])
                if turn:
                    took[name].append(tuple(statistics.median(each) for each in zip(*times, strict=True)))  # type: ignore[arg-type]
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
