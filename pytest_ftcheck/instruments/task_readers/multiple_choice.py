"""Multiple choice: which of several texts is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .interface import Example, TaskReader


class MultipleChoice(TaskReader):
    """The number of the right answer: the classes are the choices, and each has a text of its own."""

    name = "multiple choice"
    labels_are = "the right one of the choices, for each row"

    def fits(self, example: Example) -> bool:
        """Inputs ``(rows, choices, tokens)`` for logits ``(rows, choices)``."""
        if example.form != "single_label" or example.logits.dim() != 2 or example.labels.dim() != 1:
            return False
        inputs = example.inputs.values() if isinstance(example.inputs, Mapping) else ()
        return any(_texts(value) and value.shape[:2] == example.logits.shape for value in inputs)


def _texts(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 3 and not value.is_floating_point()
