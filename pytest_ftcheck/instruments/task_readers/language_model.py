"""What the three kinds of language models share: their classes are the words of a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from ..field_metrics import perplexity
from .interface import Example, FieldMetric, TaskReader


class LanguageModel(TaskReader):
    """A word for each position."""

    lower_is_better = ("perplexity",)

    def metrics(self, example: Example) -> Mapping[str, FieldMetric]:  # noqa: ARG002
        """Perplexity of the positions that count."""
        return {"perplexity": perplexity}


def words_at_positions(example: Example) -> bool:
    """Whether there is a class for each position of a row."""
    return example.form == "single_label" and example.logits.dim() == 3 and example.labels.dim() == 2
