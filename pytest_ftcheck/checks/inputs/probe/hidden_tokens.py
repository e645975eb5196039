"""Whether the attention masks of the batches hide real tokens: ids that are not the padding's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from ....instruments.base_model import Call
from ....instruments.tokens import Tokens, find_tokens
from ..record import HiddenTokens

#: Names of masks that say which tokens are attended to. Others (of special tokens, of the first pieces of words) hide tokens on purpose.
_AT_TOKENS, _AT_PADDING = ("attention_mask", "mask"), ("padding_mask", "src_key_padding_mask", "key_padding_mask")
#: Share of the padding that a mask must hide: one that shows most of it is inverted or of another kind, which other checks name.
MOST_PADDING = 0.5


def find_hidden_tokens(batches: Iterable[Any], declared: int | None, likely: int | None) -> HiddenTokens | None:
    """Counts them over these batches; None: no mask that hides something was found by its name, the padding id is not known, or the mask
    was made for another padding id, or is inverted.

    :param declared: id of the padding, as declared.  :param likely: that of the model's config.
    """
    found = [t for b in batches if (t := find_tokens(b, declared, likely)) is not None and t.mask is not None]
    return _count([(t.ids, on) for t in found if (on := _attended(t)) is not None], declared, likely)


def hidden_from_base(
    call: Call | None, tokens: Tokens | None, declared: int | None, likely: int | None
) -> HiddenTokens | None:
    """The same of the mask that the base received, where the model makes it, or changes that of the batch."""
    mask = None if call is None else call.arguments.get("attention_mask")
    if tokens is None or not isinstance(mask, torch.Tensor) or mask.shape != tokens.ids.shape:
        return None
    on = mask.detach() != 0
    if tokens.mask is not None and bool((on == tokens.mask.bool()).all()):
        return None
    found = _count([(tokens.ids, on)], declared, likely)
    return None if found is None else dataclasses.replace(found, of_base=True)


def _count(
    masked: Iterable[tuple[torch.Tensor, torch.Tensor]], declared: int | None, likely: int | None
) -> HiddenTokens | None:
    """Of ids, and where they are attended to."""
    # the probe's own batch is on the model's device, the others where the user left them
    pairs = [(ids.cpu(), on.cpu()) for ids, on in masked if not bool(on.all()) and bool(on.any())]
    pad, source = _padding_id(pairs, declared, likely) if pairs else (None, "")
    if pad is None:
        return None
    hidden_padding = sum(int(((ids == pad) & ~on).sum()) for ids, on in pairs)
    padding = sum(int((ids == pad).sum()) for ids, _ in pairs)
    hidden = [(ids != pad) & ~on for ids, on in pairs]
    of_one_id = len(torch.unique(torch.cat([ids[h] for (ids, _), h in zip(pairs, hidden, strict=True)]))) == 1
    if (of_one_id and not hidden_padding) or (padding and hidden_padding < MOST_PADDING * padding):
        return None
    rows = [h.any(1) for h in hidden]
    return HiddenTokens(
        pad_id=pad,
        source=source,
        rows=sum(len(r) for r in rows),
        rows_with_hidden=sum(int(r.sum()) for r in rows),
        tokens=sum(int((ids != pad).sum()) for ids, _ in pairs),
        hidden=sum(int(h.sum()) for h in hidden),
        padding_shown=padding - hidden_padding,
    )


def _attended(tokens: Tokens) -> torch.Tensor | None:
    """True where the mask lets a token be attended to; None: its name does not say that it is such a mask."""
    name = tokens.mask_path[-1] if tokens.mask_path else None
    if tokens.mask is None or name not in (*_AT_TOKENS, *_AT_PADDING):
        return None
    return tokens.mask.bool() if name in _AT_TOKENS else ~tokens.mask.bool()


def _padding_id(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], declared: int | None, likely: int | None
) -> tuple[int | None, str]:
    """The id of the padding, and what says so: the declaration, else what fills the masked ends of all rows, else the model's config."""
    if declared is not None:
        return declared, "declared"
    ends = [ids[~on[:, column], column] for ids, on in pairs for column in (0, -1)]
    at_ends = torch.unique(torch.cat(ends))
    if len(at_ends) == 1:
        return int(at_ends[0]), "at the end of rows"
    if likely is not None and bool((torch.cat(ends) == likely).any()):
        return likely, "config"
    return None, ""
