"""What a verdict on the loss function shows: its values for a few answers, and how they were measured."""

from __future__ import annotations

from typing import Any

from ...core.formatting import number, plural
from ...core.verdict import Verdict
from ..spec import Fault
from .record import LossShape

NAME = "loss_matches_task"


def failure(fault: Fault, headline: str, shape: LossShape, limit: str) -> Verdict:
    """The verdict that the loss function has a fault."""
    return fault.verdict(NAME, headline, evidence=answers(shape), limit=limit, measured=how_measured(shape))


def how_measured(shape: LossShape) -> str:
    """One line on how the loss was measured."""
    rows = plural(shape.rows, "row")
    return f"the loss at chosen logits in place of the model's, before the first step, dropout off, on {rows}"


def answers(shape: LossShape) -> tuple[dict[str, Any], ...]:
    """The loss of a uniform prediction, and of right and wrong ones."""
    curve = shape.curve
    if curve is None:
        return ()
    rows: list[dict[str, Any]] = [{"answer": "uniform", "loss": number(curve.uniform, 4)}]
    for margin in (2.0, 8.0):
        if margin in curve.margins:
            right, wrong = curve.at(margin)
            rows.append({"answer": f"right, logits +-{margin:g}", "loss": number(right, 4)})
            rows.append({"answer": f"wrong, logits +-{margin:g}", "loss": number(wrong, 4)})
    return tuple(rows)
