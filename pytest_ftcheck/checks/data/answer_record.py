"""Answers of extractive question answering: where their spans begin and end."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.measurement import Measurement


@dataclass(frozen=True)
class AnswerSpans(Measurement, probe="answer_spans"):
    """Start and end positions beside the tokens of their rows."""

    rows: int
    #: Rows with an end before the start; with a position at padding or beyond the row.
    reversed: int
    outside: int
    #: The first row of these: its start, its end, and its tokens.
    example: tuple[int, int, int] | None = None
