"""Less padding, more of it, other ids in it, other masks: does the output change, and what did the base receive?"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ....core.effect import Effect
from ....instruments.base_model import Call, is_library
from ....instruments.batches import Path, placed_tensors, take_rows, with_values
from ....instruments.configs import config_of
from ....instruments.paired_texts import tensors_of_other_texts
from ....instruments.tokens import (
    Tokens,
    other_padding,
    tensors_of,
    with_padding,
    with_words_at_the_end,
    without_columns,
)
from ..record import PaddingMeasurement
from .forward import ROUNDINGS, Forward, Pass, Sample, by_row, rows_equal

#: Rows of which padding is taken away.
SHORT = 4
#: Columns of padding added, and twice as many; the next where the model cannot take that.
ADDED_COLUMNS = (16, 8, 4, 2)
#: Half of the least change, over the largest output, that other words made in 102 healthy architectures: 20,000 roundings, or 0.0024
#: (`output_depends_on_input`).
LEAST_OF_WORDS = 1e-3


@dataclass(frozen=True)
class _ShortestRows:
    """The rows with the most padding."""

    batch: Any
    tokens: Tokens
    #: True at columns that are not padding in all of them.
    keep: torch.Tensor
    #: Places of tensors of the same width that are of another text.
    others: frozenset[Path]
    #: Their outputs, and those of all rows that are compared.
    logits: torch.Tensor
    all_logits: torch.Tensor


def measure_padding(
    forward: Forward, sample: Sample, batch: Any, tokens: Tokens | None, whole: Pass, declared_id: int | None
) -> PaddingMeasurement | str:
    """The shortest rows of ``whole`` with less padding, or with other ids in it; or why that was not measured."""
    if tokens is None:
        return "no token ids were found in the batches"
    if tokens.side is None:
        return "no row is padded" if bool(tokens.real.all()) else "the padding is not at one end of the rows"
    count = max(1, min(SHORT, len(sample.rows) // 2))
    at = sorted(tokens.real.sum(1).argsort(stable=True).tolist()[:count])
    held = tokens.of(at)
    others = tensors_of_other_texts(batch, tokens)
    short = _ShortestRows(take_rows(batch, at), held, held.real.any(0), others, whole.logits[at], whole.logits)
    found = PaddingMeasurement(
        tokens.side,
        tokens.pad_id,
        count,
        int((~short.keep).sum()),
        mask_in_batch=tokens.mask is not None,
        padding_source=_padding_source(sample, tokens, declared_id),
        torch_attention=_has(forward.model, nn.MultiheadAttention),
        recurrent=_has(forward.model, nn.RNNBase),
    )
    cut, bare = None, None
    if tokens.side == "right":
        if bool(short.keep.all()):
            return "no column is padding in all of the shortest rows"
        cut = without_columns(short.batch, short.keep, count, tokens.width, others)
        bare = forward.run(cut, held, short.keep).logits
        change = forward.effect(short.logits, bare, short.all_logits)
        finite = bool(torch.isfinite(bare).all())
        found = dataclasses.replace(found, less_padding=change, finite_without_padding=finite)
    else:  # with less padding on the left, positions would change
        swapped = other_padding(held) if held.certain else None
        if swapped is None:
            return "the padding is on the left, and no other ids are known to put there"
        change = forward.effect(short.logits, _with_ids(forward, short, swapped), short.all_logits)
        found = dataclasses.replace(found, other_ids=change)
    if is_large(change):
        found = dataclasses.replace(found, **_way_to_base(forward, tokens, short, whole, found.side))
    # a library's model that takes no mask at all is not found as a base, and is as its design is all the same
    library = forward.base.library if forward.base is not None else any(map(is_library, forward.model.modules()))
    if not library and (found.base_effect is None or is_large(found.base_effect)):  # no design to respect
        masked = _ids_under_mask(forward, short, found.other_ids)
        found = dataclasses.replace(found, user_model=True, **masked)
        if bare is not None and is_large(change):
            found = dataclasses.replace(found, **_more_padding(forward, short, cut, bare))
    if found.less_padding is None and found.other_ids is None and found.finite_without_padding is not False:
        return "the outputs are not finite"
    return found


def measure_inversion(
    forward: Forward, batch: Any, tokens: Tokens | None, whole: Pass, *, finite: bool
) -> PaddingMeasurement | None:
    """Outputs that are not finite, or (``finite``) all the same: an inverted mask that hides the words? None: nothing shows it."""
    if tokens is None or tokens.mask is None or tokens.mask_path is None or tokens.side is None:
        return None
    rows = len(whole.logits)
    found = PaddingMeasurement(tokens.side, tokens.pad_id, rows, 0, mask_in_batch=True, padding_source="mask")
    full = tokens.real.all(1)
    hidden = ~torch.isfinite(whole.logits).all(1)
    if not finite and bool((hidden == full).all()) and not bool(full.all()):
        return dataclasses.replace(found, inversion="full rows")
    with contextlib.suppress(Exception):
        inverted = forward.run(with_values(batch, {tokens.mask_path: _inverted(tokens.mask)}), tokens).logits
        between_rows = forward.between_rows(inverted)
        if between_rows is not None and not (finite and hardly_differ(between_rows)):
            return dataclasses.replace(found, inversion="differ" if finite else "finite")
    return None


def hardly_differ(between_rows: Effect) -> bool:
    """Whether rows differ by rounding, or by less than words make in any healthy model: a signal that dies leaves traces of the padding."""
    return rows_equal(between_rows) or between_rows.change < LEAST_OF_WORDS * between_rows.scale


def config_pad_id(module: nn.Module) -> int | None:
    """The id of the padding in a module's own config."""
    pad = getattr(config_of(module), "pad_token_id", None)
    return pad if isinstance(pad, int) and not isinstance(pad, bool) else None


def is_large(effect: Effect | None) -> bool:
    """Whether it is more than a few roundings of the largest output."""
    return effect is not None and effect.ulps > ROUNDINGS


def _padding_source(sample: Sample, tokens: Tokens, declared_id: int | None) -> str:
    """What says which of the tokens are padding."""
    if tokens.mask is not None:
        return "mask"
    lengths = sample.tokens.real.sum(1) if sample.tokens is not None else None
    if lengths is not None and any(
        t.dim() == 1 and t.shape == lengths.shape and not t.is_floating_point() and bool((t == lengths).all())
        for t in tensors_of(sample.batch)
    ):
        return "lengths"
    return "id" if declared_id is not None else ""


def _way_to_base(forward: Forward, tokens: Tokens, short: _ShortestRows, whole: Pass, side: str) -> dict[str, Any]:
    """Padding has an effect: is it the base's own, with the right mask, and which mask did the base receive?"""
    fields: dict[str, Any] = {}
    held = short.tokens
    if held.mask is not None and held.mask_path is not None:
        with contextlib.suppress(Exception):
            ones = with_values(short.batch, {held.mask_path: torch.ones_like(held.mask)})
            fields["mask_of_ones"] = forward.effect(short.logits, forward.run(ones, held).logits, short.all_logits)
    base = forward.base
    if base is None:
        return fields
    around = forward.model.get_submodule(base.name.rpartition(".")[0])
    fields |= {"base": base.name, "library_pooling": is_library(around), "config_pad_id": config_pad_id(around)}
    if whole.call is not None:
        fields |= received_mask(whole.call, tokens.real)
    mask, keep = held.real.long(), short.keep
    with contextlib.suppress(Exception):
        full = by_row(base.direct(held.ids, mask), held)
        if side == "right":
            cut = base.direct(held.ids[:, keep], mask[:, keep])
            fields["base_less_padding"] = forward.effect(full, by_row(cut, held, keep))
        elif (swapped := other_padding(held)) is not None:
            fields["base_other_ids"] = forward.effect(full, by_row(base.direct(swapped, mask), held))
    return fields


def received_mask(call: Call, real: torch.Tensor) -> dict[str, Any]:
    """What the base received as its mask, and where else it received one."""

    def same(value: Any, mask: torch.Tensor) -> bool:
        return isinstance(value, torch.Tensor) and value.shape == mask.shape and bool((value == mask).all())

    received = call.arguments.get("attention_mask")
    kind = "other"
    if received is None:
        kind = "none"
    elif same(received, real):
        kind = "right"
    elif same(received, ~real):
        kind = "inverted"
    elif same(received, torch.ones_like(real)):
        kind = "all ones"
    misplaced = tuple(
        n for n, v in call.arguments.items() if n != "attention_mask" and not bool(real.all()) and same(v, real)
    )
    return {"mask_received": kind, "unknown_keywords": call.unknown, "misplaced_mask": misplaced}


def _ids_under_mask(forward: Forward, short: _ShortestRows, other_ids: Effect | None) -> dict[str, Any]:
    """A model of the user's own: are the ids under the mask read, and with the mask inverted no longer?"""
    held = short.tokens
    swapped = other_padding(held) if held.certain else None
    if held.mask is None or held.mask_path is None or swapped is None:
        return {}
    fields: dict[str, Any] = {}
    with contextlib.suppress(Exception):
        if other_ids is None:
            other_ids = forward.effect(short.logits, _with_ids(forward, short, swapped), short.all_logits)
            fields["other_ids"] = other_ids
        if is_large(other_ids):
            inverted = {held.mask_path: _inverted(held.mask)}
            own = forward.run(with_values(short.batch, inverted), held).logits
            other = forward.run(with_values(short.batch, {**inverted, held.path: swapped}), held).logits
            fields["other_ids_inverted_mask"] = forward.effect(own, other)
    return fields


def _more_padding(forward: Forward, short: _ShortestRows, cut: Any, bare: torch.Tensor) -> dict[str, Any]:
    """The rows without padding (``cut``, and their outputs) with some of it, with twice as much, and with words in its far half."""
    held, keep = short.tokens, short.keep
    uncut = {p for p, t in placed_tensors(short.batch) if t.dim() == 2 and t.shape[1] != held.width} | short.others

    def padded(n: int) -> Any:
        return with_padding(cut, held, keep, n, uncut)

    free_columns = _widest(forward.model, held.width) - int(keep.sum())
    for columns in ADDED_COLUMNS:
        if 2 * columns > free_columns:
            continue
        with contextlib.suppress(Exception):
            some, twice = (forward.run(padded(n), None).logits for n in (columns, 2 * columns))
            if not some.shape == twice.shape == bare.shape:
                return {}
            left = forward.between_rows(twice)
            fields: dict[str, Any] = {
                "more_padding": forward.effect(some, twice, bare),
                "more_padding_spread": None if left is None else left.spread,
            }
            if held.mask is not None:
                words = with_words_at_the_end(padded(2 * columns), held, columns)
                fields["words_in_padding"] = forward.effect(twice, forward.run(words, None).logits, bare)
            return fields
    return {}


def _with_ids(forward: Forward, short: _ShortestRows, ids: torch.Tensor) -> torch.Tensor:
    return forward.run(with_values(short.batch, {short.tokens.path: ids}), short.tokens).logits


def _widest(model: nn.Module, width: int) -> int:
    """Columns that no table in the model is too short for, positions counted from 2 as well: an index out of it ends a GPU's process."""
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings >= width]
    return min(tables, default=width + 2 * ADDED_COLUMNS[0] + 2) - 2


def _has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(m, kind) for m in model.modules())


def _inverted(mask: torch.Tensor) -> torch.Tensor:
    return ~mask if mask.dtype == torch.bool else 1 - mask
