"""Two trainings by a ``transformers.Trainer`` that take turns in one process, for `overhead.py`: one watched by a callback, one alone.

The one that nobody watches runs in a thread of its own, where the mode that sees the loop's calls is off: it is the bare training.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

#: Longest wait for the other training: it has crashed.
PATIENCE = 600


class Turns(TrainerCallback):
    """Trains so many steps, then lets the other one train; the first step of each turn is not timed.

    :param mine, other: whose turn it is.  :param until: seconds on the clock after which training stops.
    """

    def __init__(self, steps: int, mine: threading.Semaphore, other: threading.Semaphore, until: float) -> None:
        self.steps, self.mine, self.other, self.until = steps, mine, other, until
        #: Of each turn, seconds of its steps by the clock, and of the processors.
        self.took: list[list[tuple[float, float]]] = []
        self._began = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Wait for the turn."""
        if state.global_step % self.steps == 0:
            if not self.mine.acquire(timeout=PATIENCE):
                raise TimeoutError("the other training does not go on")
            self.took.append([])
        self._began = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """The turn may be over."""
        clock, work = self._began
        self.took[-1].append((time.perf_counter() - clock, time.process_time() - work))
        if state.global_step % self.steps == 0:
            if time.perf_counter() > self.until and len(self.took) >= 4:
                control.should_training_stop = True
            self.other.release()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """The other one need not wait any more."""
        for _ in range(len(self.took) + 1000):
            self.other.release()

    def medians(self) -> list[tuple[float, float]]:
        """Of each turn."""
        turns = [turn[1:] for turn in self.took if len(turn) == self.steps]
        return [tuple(statistics.median(each) for each in zip(*turn, strict=True)) for turn in turns]  # type: ignore[misc]


def make_trainer(model: torch.nn.Module, rows: Sequence[Any], batch: int, steps: int, folder: str) -> Trainer:
    """A Trainer that neither evaluates, saves nor reports."""
    settings = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, settings, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    return trainer


def in_turns(
    make_model: Callable[[], torch.nn.Module],
    rows: Sequence[Any],
    callback: TrainerCallback,
    *,
    batch: int,
    rounds: int,
    steps: int,
    seconds: float,
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """``((bare clock, bare processors), (watched clock, watched processors))`` of each round, seconds of a step.

    :param callback: watches one of the two trainings.  :param steps: of a turn.  :param seconds: no round begins later.
    """
    first, second = threading.Semaphore(1), threading.Semaphore(0)
    until = time.perf_counter() + seconds
    bare, watched = Turns(steps, first, second, until), Turns(steps, second, first, until)
    errors: list[BaseException] = []
    with tempfile.TemporaryDirectory() as folder:
        alone = make_trainer(make_model(), rows, batch, rounds * steps, folder)
        seen = make_trainer(make_model(), rows, batch, rounds * steps, folder)
        alone.add_callback(bare)
        seen.add_callback(callback)
        seen.add_callback(watched)

        def run() -> None:
            try:
                alone.train()
            except BaseException as error:
                errors.append(error)
                raise
            finally:
                bare.on_train_end()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            seen.train()
        finally:
            watched.on_train_end()
            thread.join(PATIENCE)
    if errors:
        raise errors[0]
    return list(zip(bare.medians(), watched.medians(), strict=False))[
        1:
    ]  # the first round makes the optimizers' states
