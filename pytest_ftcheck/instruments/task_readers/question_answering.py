"""Extractive question answering: where the answer stands in the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..field_metrics import exact_match
from ..tasks import IGNORED
from .interface import Example, FieldMetric, TaskReader

#: Keys of the places of the answer's first and last token.
SPAN = ("start_positions", "end_positions")


class QuestionAnswering(TaskReader):
    """The places of an answer's first and last token.

    Labels are ``(rows, 2)``, logits ``(rows, 2, tokens)``: the classes are the row's positions. As in the loss of transformers' models, a
    place behind the end of the row's ids is ignored (-100), and a negative one is the first token.

    >>> batch = {"input_ids": torch.zeros(2, 9), "start_positions": torch.tensor([3, 5]), "end_positions": torch.tensor([4, 9])}
    >>> QuestionAnswering().read_labels(batch).tolist()
    [[3, 4], [5, -100]]
    """

    name = "question answering"
    labels_are = "the answer's first and last token, for each row"
    keys = SPAN

    def reads(self, batch: Any) -> bool:
        """Whether both places are in it, whole numbers and one a row each."""
        if not super().reads(batch):
            return False
        start, end = (batch[key] for key in SPAN)
        if not isinstance(start, torch.Tensor) or not isinstance(end, torch.Tensor):
            return False
        if start.is_floating_point() or end.is_floating_point() or not 1 <= start.dim() <= 2:
            return False
        return start.numel() == end.numel() == len(start)

    def read_labels(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Both places of each row."""
        places = torch.stack([batch[key].reshape(-1) for key in SPAN], dim=1).clamp(min=0)
        ids = batch.get("input_ids")
        if isinstance(ids, torch.Tensor) and ids.dim() == 2:
            places = torch.where(places < ids.shape[1], places, IGNORED)
        return places

    def write_labels(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """An ignored place is one behind every row's end."""
        behind = torch.where(labels == IGNORED, torch.iinfo(labels.dtype).max, labels)
        return {key: behind[:, i] for i, key in enumerate(SPAN)}

    def logits(self, output: Any) -> torch.Tensor | None:
        """The scores of both places.

        >>> QuestionAnswering().logits({"start_logits": torch.zeros(4, 9), "end_logits": torch.zeros(4, 9)}).shape
        torch.Size([4, 2, 9])
        """
        if not isinstance(output, Mapping):
            return None
        start, end = output.get("start_logits"), output.get("end_logits")
        if not isinstance(start, torch.Tensor) or not isinstance(end, torch.Tensor):
            return None
        return torch.stack([start, end], dim=1) if start.shape == end.shape and start.dim() == 2 else None

    def metrics(self, example: Example) -> Mapping[str, FieldMetric]:  # noqa: ARG002
        """The share of answers of which both places are right."""
        return {"exact_match": exact_match}
