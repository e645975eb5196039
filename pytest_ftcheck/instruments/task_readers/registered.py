"""All task readers: ours, and those of the user, which come first; and what they say of a batch, of an output, of labels and logits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from ...core.formatting import as_given, describe_type
from .causal_lm import CausalLm
from .class_probabilities import ClassProbabilities, Probabilities
from .embeddings import Embeddings
from .form import Form
from .interface import FORMS, Example, TaskReader
from .masked_lm import MaskedLm
from .multi_label import MultiLabel, Tags
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .regression import Numbers, Regression
from .seq2seq import Seq2Seq
from .single_label import Classes, SingleLabel
from .token_classification import TokenClassification

#: Keys of the labels in a batch of any other task.
LABELS = ("labels", "label")
#: The first that matches is the one.
_FORMS: tuple[Form, ...] = (Tags(), Probabilities(), Numbers(), Classes())
_BY_NAME: dict[str, Form] = {form.name: form for form in _FORMS}
#: The most special first: the first that fits is the one.
_OURS: tuple[TaskReader, ...] = (
    Embeddings(),
    QuestionAnswering(),
    MultipleChoice(),
    Seq2Seq(),
    CausalLm(),
    MaskedLm(),
    TokenClassification(),
    MultiLabel(),
    ClassProbabilities(),
    Regression(),
    SingleLabel(),
)
_THEIRS: dict[str, TaskReader] = {}

R = TypeVar("R", bound=type[TaskReader] | TaskReader)


def register_task(reader: R) -> R:
    """Have batches of a task read by a `TaskReader` of your own, from now on and in this process; the last one of a name counts.

    Register it where every test finds it, in ``conftest.py`` or beside the model. An executor's workers get it, too.

    :param reader: a class derived from `TaskReader`, made without arguments, or an object of one; as a decorator, too.
    :returns: the same.
    :raises TypeError: it is none.  :raises ValueError: it has no ``name``, or an unknown ``form``.

    >>> import torch
    >>> from torch import nn
    >>> from pytest_ftcheck import TaskReader, finetune, register_task
    >>> @register_task
    ... class Rating(TaskReader):
    ...     name = "rating"
    ...     labels_are = "stars from 1 to 5"
    ...     keys = ("stars",)
    >>> class Rater(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body, self.classifier = nn.Linear(4, 8), nn.Linear(8, 1)
    ...     def forward(self, x):
    ...         return self.classifier(torch.relu(self.body(x)))
    >>> x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    >>> reading = finetune(Rater(), [{"x": x, "stars": 3 + x[:, 0]}], steps=2).reading
    >>> reading.reader, reading.labels, reading.loss
    ('rating', 'stars from 1 to 5', 'mean squared error')
    """
    made = reader() if isinstance(reader, type) and issubclass(reader, TaskReader) else reader
    if not isinstance(made, TaskReader):
        raise TypeError(f"reader is {describe_type(reader)}: expected a class derived from pytest_ftcheck.TaskReader")
    place = f"reader {type(made).__name__}"
    if not isinstance(made.name, str) or not made.name:
        raise ValueError(f"{place}: name={as_given(made.name)}: expected what the task is called")
    if made.form is not None and made.form not in FORMS:
        raise ValueError(f"{place}: form={as_given(made.form)}: expected one of {', '.join(FORMS)}, or None")
    if not isinstance(made.keys, tuple) or not all(isinstance(key, str) for key in made.keys):
        raise TypeError(f"{place}: keys={as_given(made.keys)}: expected a tuple of the keys of a batch")
    _THEIRS.pop(made.name, None)
    _THEIRS[made.name] = made
    return reader


@contextlib.contextmanager
def tasks_alone(readers: Sequence[TaskReader]) -> Iterator[None]:
    """Inside the block these are the user's readers, the first one first, and no others."""
    before = dict(_THEIRS)
    try:
        _THEIRS.clear()
        _THEIRS.update({reader.name: reader for reader in reversed(readers)})
        yield
    finally:
        _THEIRS.clear()
        _THEIRS.update(before)


def registered_tasks() -> tuple[TaskReader, ...]:
    """The user's readers, the last one first."""
    return tuple(reversed(_THEIRS.values()))


def reader_of(batch: Any) -> TaskReader | None:
    """The reader that finds the labels of a batch; None: they stand where they do as a rule, or it has none."""
    for reader in registered_tasks():
        if reader.reads(batch):
            return reader
    if not isinstance(batch, Mapping) or any(key in batch for key in LABELS):
        return None
    return next((reader for reader in _OURS if reader.reads(batch)), None)


def logits_by_readers(output: Any, *, theirs: bool) -> torch.Tensor | None:
    """The logits in a model's output, where a reader knows them.

    :param theirs: the user's readers, which are asked first, or ours.
    """
    found = (reader.logits(output) for reader in (registered_tasks() if theirs else _OURS))
    return next((logits for logits in found if logits is not None), None)


def recognised(example: Example, located: TaskReader | None) -> TaskReader | None:
    """The task of the first batch; None: it is not known.

    :param located: the reader that found its labels.
    """
    if located is not None:
        return located
    return next((reader for reader in (*registered_tasks(), *_OURS) if reader.fits(example)), None)


def declared_form(example: Example, located: TaskReader | None) -> str | None:
    """The form that the reader of a batch declares; None: it is as labels and logits look."""
    if located is not None:
        return located.form
    return next((reader.form for reader in registered_tasks() if reader.form and reader.fits(example)), None)


# ---------------------------------------------------------------------- forms
def form_of(logits: torch.Tensor, labels: torch.Tensor, *, regression: bool = False) -> str | None:
    """``single_label``, ``multi_label``, ``class_probabilities``, ``regression`` or None (they do not fit).

    >>> form_of(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    'single_label'
    >>> form_of(torch.zeros(4, 3), torch.eye(4)[:, :3])
    'multi_label'
    >>> form_of(torch.zeros(4, 2), torch.tensor([[0.9, 0.1]] * 4))
    'class_probabilities'
    >>> form_of(torch.zeros(4, 1), torch.rand(4))
    'regression'
    """
    return next((form.name for form in _FORMS if form.matches(logits, labels, regression=regression)), None)


def standard_loss(form: str | None, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The standard loss of a form, from logits and labels; cross-entropy where it is not known."""
    return _BY_NAME[form or Classes.name].loss(logits, labels)


def loss_in_words(form: str, logits: torch.Tensor, labels: torch.Tensor) -> str:
    """What `standard_loss` computes of these."""
    return _BY_NAME[form].loss_in_words(logits, labels)


def prior_entropy(form: str | None, labels: Sequence[Any]) -> float | None:
    """Entropy of the label frequencies in nats: the loss of predicting the class prior for every row. None for other forms.

    >>> round(prior_entropy("single_label", [torch.tensor([0, 1, 0, 1])]), 4)
    0.6931
    """
    if form is None or not all(isinstance(y, torch.Tensor) for y in labels):
        return None
    return _BY_NAME[form].prior_entropy(labels)
