"""A training by a ``transformers.Trainer`` under ``FtcheckCallback`` whose steps are watched in turns, for `overhead.py`."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
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
from turns import Turns

from pytest_ftcheck import FtcheckCallback, watch


class _StepEnds(TrainerCallback):
    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if self._turns.step_ended():
            control.should_training_stop = True


def in_turns(
    sizes: dict[str, int], rows: Sequence[Any], *, batch: int, rounds: int, steps: int, threads: int, seconds: float
) -> Turns:
    """What the steps cost.

    :param sizes: of the DistilBERT.  :param rounds, steps, seconds: see `Turns`.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(DistilBertConfig(**sizes))
    callback = FtcheckCallback()

    def watching() -> watch:
        assert callback._watch is not None
        return callback._watch

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
        turns = Turns(watching, rounds=rounds, steps=steps, seconds=seconds)
        trainer.add_callback(callback)
        trainer.add_callback(_StepEnds(turns))
        trainer.train()
    assert len(callback.trace.steps) == turns.watched_steps, "it saw the steps that it was to see, and no other"
    return turns
