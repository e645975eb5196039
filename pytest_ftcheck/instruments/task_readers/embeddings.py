"""Embeddings: pairs, triplets, in-batch negatives."""

from __future__ import annotations

from .interface import Example, TaskReader


class Embeddings(TaskReader):
    """Outputs that the loss compares with each other, and no logits."""

    name = "embeddings"
    labels_are = "which rows belong together"

    def fits(self, example: Example) -> bool:
        """The outputs were declared to be embeddings, or the loss only compares labels with each other."""
        return example.form == "embedding"
