"""The probe of answer spans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ....instruments.probe import LeftOut, Probe, ProbeContext
from ....instruments.task_readers.question_answering import SPAN
from ....instruments.tokens import find_tokens
from ..answer_record import AnswerSpans

#: Batches read, at most.
MOST_BATCHES = 256


class AnswerSpansProbe(Probe):
    """Read positions and masks of the batches at hand."""

    name = "answer_spans"
    order = 16

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.batches = [b for b in context.batches.known[:MOST_BATCHES] if _positions(b) is not None]
        if not self.batches:
            raise LeftOut("the batches have no start_positions and end_positions")

    def record(self) -> AnswerSpans | None:
        """What was read."""
        rows = swapped = outside = 0
        example: tuple[int, int, int] | None = None
        for batch in self.batches:
            positions, tokens = _positions(batch), find_tokens(batch, self.context.intent.pad_token_id)
            if positions is None or tokens is None or len(tokens.ids) != len(positions[0]):
                continue
            start, end = (p.cpu() for p in positions)
            length = tokens.ends.cpu()
            beyond = (start >= length) | (end >= length) | (start < 0) | (end < 0)
            rows += len(start)
            swapped += int((end < start).sum())
            outside += int(beyond.sum())
            if example is None and bool(beyond.any()):
                i = int(beyond.nonzero()[0])
                example = int(start[i]), int(end[i]), int(length[i])
        return AnswerSpans(rows, swapped, outside, example) if rows else None


def _positions(batch: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    if not isinstance(batch, Mapping):
        return None
    start, end = (batch.get(key) for key in SPAN)
    if not isinstance(start, torch.Tensor) or not isinstance(end, torch.Tensor) or start.is_floating_point():
        return None
    return start.reshape(-1), end.reshape(-1)
