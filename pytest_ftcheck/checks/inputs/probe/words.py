"""Other words between the first and the last token of each row: does the output change, and if not, where are they lost?"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from ....instruments.base_model import BaseModel, Call
from ....instruments.batches import with_values
from ....instruments.tokens import Tokens, later_words, other_words, shuffled_words, tensors_of
from ..record import WordsMeasurement
from .forward import ROUNDINGS, Forward, Pass


def measure_words(
    forward: Forward, when: str, rows: int, batch: Any, tokens: Tokens | None, whole: Pass
) -> WordsMeasurement | None:
    """The rows of ``whole``, beside each other and with other words; None: the outputs are not finite."""
    between_rows = forward.between_rows(whole.logits)
    if between_rows is None:
        return None
    fields: dict[str, Any] = {"features_between_rows": forward.between_rows(whole.features)}
    other_ids = None if tokens is None else other_words(tokens)
    if tokens is not None and other_ids is not None:
        fields |= _with_other_words(forward, when, batch, tokens, other_ids, whole)
    if forward.base is not None:
        fields |= {"base": forward.base.name, "library_base": forward.base.library}
    return WordsMeasurement(when, rows, _distinct(batch, rows), between_rows, **fields)


def _with_other_words(
    forward: Forward, when: str, batch: Any, tokens: Tokens, other_ids: torch.Tensor, whole: Pass
) -> dict[str, Any]:
    def run(ids: torch.Tensor) -> Pass:
        return forward.run(with_values(batch, {tokens.path: ids}), tokens)

    other = run(other_ids)
    fields: dict[str, Any] = {
        "other_words": forward.effect(whole.logits, other.logits),
        "between_rows_other_words": forward.between_rows(other.logits),
        "features_other_words": forward.effect(whole.features, other.features),
        **_hidden_vectors(forward, tokens, other_ids, whole.call, other.call),
    }
    later = later_words(tokens) if tokens.certain else None
    if later is not None:
        fields["later_words"] = forward.effect(whole.logits, run(later).logits)
    if whole.call is not None and when == "before":
        fields |= _positions_and_types(whole.call, forward.base, batch, tokens)
    other_order = shuffled_words(tokens) if when == "after" and tokens.certain else None
    if other_order is not None:
        fields["other_order"] = forward.effect(whole.logits, run(other_order).logits)
    return fields


def _hidden_vectors(
    forward: Forward, tokens: Tokens, other_ids: torch.Tensor, own: Call | None, other: Call | None
) -> dict[str, Any]:
    """The base's last vectors with other words: at the first token of each row whose words changed, at its others and at its last."""
    if own is None or other is None or own.hidden is None or other.hidden is None:
        return {}
    changed_rows = (other_ids != tokens.ids).any(1)
    start = tokens.real.int().argmax(1)
    at = torch.arange(len(start), device=start.device)
    end = tokens.width - 1 - tokens.real.int().flip(1).argmax(1)
    behind_start = tokens.real.clone()
    behind_start[at, start] = False
    behind_start &= changed_rows[:, None]

    def effect_at(place: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> Any:
        return forward.effect(first[at, place][changed_rows], second[at, place][changed_rows])

    last = effect_at(end, own.hidden, other.hidden)
    if forward.base is not None and last is not None and last.ulps <= ROUNDINGS:
        mask = tokens.real.long()  # is that the base's own doing, or that of the mask it received?
        with contextlib.suppress(Exception):
            last = effect_at(end, forward.base.direct(tokens.ids, mask), forward.base.direct(other_ids, mask))
    return {
        "base_first_token": effect_at(start, own.hidden, other.hidden),
        "base_other_tokens": forward.effect(own.hidden[behind_start], other.hidden[behind_start]),
        "base_last_token": last,
    }


def _positions_and_types(call: Call, base: BaseModel | None, batch: Any, tokens: Tokens) -> dict[str, bool]:
    """Whether the base received positions that are all the same, and whether type ids of the batch did not reach it."""
    found: dict[str, bool] = {}
    positions, shape = call.arguments.get("position_ids"), tokens.ids.shape
    if isinstance(positions, torch.Tensor) and positions.shape[-1:] == shape[-1:] and positions.dim() <= 2:
        wide = positions.expand(shape)
        long = [row[real] for row, real in zip(wide, tokens.real, strict=True) if int(real.sum()) >= 4]
        found["positions_constant"] = bool(long) and all(len(torch.unique(row)) <= 2 for row in long)
    types = batch.get("token_type_ids") if isinstance(batch, Mapping) else None
    if isinstance(types, torch.Tensor) and types.shape == shape and base is not None:
        received = call.arguments.get("token_type_ids")
        several = len(torch.unique(types[tokens.real])) > 1
        lost = received is None or (isinstance(received, torch.Tensor) and len(torch.unique(received)) == 1)
        found["type_ids_lost"] = several and lost and "token_type_ids" in base.parameters
    return found


def _distinct(batch: Any, rows: int) -> int:
    """Different rows among the inputs of a batch."""
    columns = [
        t.detach().reshape(rows, -1).to(torch.double, copy=True).cpu()
        for t in tensors_of(batch)
        if t.dim() and len(t) == rows
    ]
    return len({b"".join(c[row].numpy().tobytes() for c in columns) for row in range(rows)})
