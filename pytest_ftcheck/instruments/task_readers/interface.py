"""`TaskReader`: what the checks have to know of a task. One of your own is a class in one file, under `register_task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

#: ``(logits, labels) -> float`` of all evaluated rows; labels that are -100 do not count.
FieldMetric = Callable[[torch.Tensor, torch.Tensor], float]
#: `TaskReader.form`.
FORMS = ("single_label", "multi_label", "class_probabilities", "regression", "none")


@dataclass(frozen=True)
class Example:
    """The first batch as it was read: what a task is recognised by."""

    #: The batch without its labels.
    inputs: Any
    labels: torch.Tensor
    logits: torch.Tensor
    #: ``single_label``, ``multi_label``, ``class_probabilities``, ``regression`` or None: how labels and logits are compared.
    form: str | None
    #: The logits of a position are compared with the label so many positions later.
    shift: int = 0
    #: Rows of the table of token embeddings; None: there is none.
    vocabulary: int | None = None
    encoder_decoder: bool = False
    #: Names of the classes, by their numbers; empty where they are not known.
    names: Mapping[int, str] = field(default_factory=dict)


class TaskReader:
    """A task: where its labels and logits are, how they are compared, and the metrics of its field.

    Everything has a default. Labels in ``labels`` or ``label`` of a mapping, or last in a tuple, and logits that are the output, its
    ``.logits`` or its first part are found without a reader of your own.

    >>> class Rating(TaskReader):
    ...     name = "rating"
    ...     labels_are = "stars from 1 to 5"
    ...     form = "regression"
    ...     keys = ("stars",)
    >>> Rating().read_labels({"input_ids": torch.zeros(2, 3), "stars": torch.tensor([4.0, 2.0])})
    tensor([4., 2.])
    """

    #: What the task is called, in `Reading.reader` and in tables.
    name: str = ""
    #: What a label is, in a few words, in `Reading.labels`.
    labels_are: str = ""
    #: ``single_label`` (classes; -100 does not count), ``multi_label`` (tags that are 0 or 1), ``class_probabilities`` (a distribution over
    #: the classes) or ``regression`` (numbers); ``none``: labels and logits are compared in no such way, and checks that need labels are
    #: skipped. None: as labels and logits look.
    form: str | None = None
    #: Keys of a batch that has the labels of this task; a batch without one of them is not of this task.
    keys: tuple[str, ...] = ()
    #: Names of those of its `metrics` that are better when they are lower.
    lower_is_better: tuple[str, ...] = ()

    def reads(self, batch: Any) -> bool:
        """Whether the labels of this batch are found by this reader; by default: whether it has all `keys`."""
        return bool(self.keys) and isinstance(batch, Mapping) and all(key in batch for key in self.keys)

    def read_labels(self, batch: Mapping[str, Any]) -> Any:
        """The labels of a batch that `reads` accepts, as one tensor with a row for each row; by default the value of the only key."""
        if len(self.keys) != 1:
            raise NotImplementedError(f"{type(self).__name__} has the keys {', '.join(self.keys)}: write read_labels")
        return batch[self.keys[0]]

    def write_labels(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The reverse of `read_labels`: the value of each key, for a batch with other labels and for a model that takes labels."""
        if len(self.keys) != 1:
            raise NotImplementedError(f"{type(self).__name__} has the keys {', '.join(self.keys)}: write write_labels")
        return {self.keys[0]: labels}

    def logits(self, output: Any) -> torch.Tensor | None:  # noqa: ARG002
        """The logits in a model's output; None: they are where they are as a rule."""
        return None

    def fits(self, example: Example) -> bool:  # noqa: ARG002
        """Whether a batch whose labels stand at the usual place is of this task."""
        return False

    def metrics(self, example: Example) -> Mapping[str, FieldMetric]:  # noqa: ARG002
        """The metrics of the field by their names, reported beside the default ones."""
        return {}
