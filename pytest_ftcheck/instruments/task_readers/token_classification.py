"""Token classification: a tagger."""

from __future__ import annotations

from collections.abc import Mapping

from ..field_metrics import entity_f1, entity_scheme
from .interface import Example, FieldMetric, TaskReader


class TokenClassification(TaskReader):
    """A class for each token."""

    name = "token classification"
    labels_are = "a class for each token"

    def fits(self, example: Example) -> bool:
        """A class for each place of a row."""
        return example.form == "single_label" and example.logits.dim() == 3 and example.labels.dim() == 2

    def metrics(self, example: Example) -> Mapping[str, FieldMetric]:
        """Entity F1, where the model's config names the classes as the parts of entities: ``B-PER``, ``I-PER``, ``O``."""
        scheme = entity_scheme(example.names)
        return {} if scheme is None else {"entity_f1": lambda logits, labels: entity_f1(logits, labels, scheme)}
