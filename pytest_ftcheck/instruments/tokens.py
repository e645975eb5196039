"""The tokens of a batch: where they are, which are padding; and batches with other tokens or other padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .batches import Path, placed_tensors, with_values
from .task_readers.question_answering import SPAN
from .task_readers.registered import LABELS, reader_of
from .tensor_names import text_of

#: Usual names of token ids and of masks.
IDS = ("input_ids", "ids", "tokens", "token_ids", "x")
MASK = ("attention_mask", "mask", "padding_mask", "src_key_padding_mask", "key_padding_mask")


@dataclass(frozen=True)
class Tokens:
    """The token ids of one batch, and which of them are real."""

    ids: torch.Tensor
    #: Where they are in the batch; where the mask is, None: there is none.
    path: Path
    mask_path: Path | None
    mask: torch.Tensor | None
    #: True at real tokens.
    real: torch.Tensor
    #: Id found in the padding; None: there is no padding, or more than one id in it.
    pad_id: int | None
    #: They have a usual name, or a mask: they are token ids, and not just any integers.
    certain: bool

    @property
    def width(self) -> int:
        """Columns."""
        return self.ids.shape[1]

    def of(self, rows: Sequence[int]) -> Tokens:
        """Those of some rows."""
        at = torch.as_tensor(list(rows), device=self.ids.device)
        mask = None if self.mask is None else self.mask[at]
        return dataclasses.replace(self, ids=self.ids[at], mask=mask, real=self.real[at])

    @property
    def ends(self) -> torch.Tensor:
        """The place behind the last real token of each row; 0: it has none."""
        return (self.real.int() * torch.arange(1, self.width + 1, device=self.real.device)).amax(1)

    @property
    def side(self) -> str | None:
        """``right`` or ``left``: the side of the padding; None: there is none, or it is on no one side."""
        if bool(self.real.all()) or not bool(self.real.any(1).all()):
            return None
        steps = self.real[:, 1:].int() - self.real[:, :-1].int()
        if bool((steps <= 0).all()):
            return "right"
        return "left" if bool((steps >= 0).all()) else None

    @property
    def interior(self) -> torch.Tensor:
        """True at real tokens other than the first and the last of each row."""
        before = self.real.int().cumsum(1)
        return self.real & (before > 1) & (before < self.real.int().sum(1, keepdim=True))


def find_tokens(batch: Any, pad_id: int | None = None, likely_pad: int | None = None) -> Tokens | None:
    """The token ids of a batch and their mask; None: none were found, or it is unclear which tensor holds them.

    :param pad_id: id of the padding, as declared.  :param likely_pad: that of the model's config, used only where a row ends in
        several of them.
    """
    tensors = list(_tensors(batch))
    whole = [
        (p, t)
        for p, t in tensors
        if t.dim() == 2 and t.shape[1] > 1 and t.dtype in (torch.int64, torch.int32) and len(t)
    ]
    named = [(p, t) for p, t in whole if p and p[-1] in IDS[:1]] or [(p, t) for p, t in whole if p and p[-1] in IDS]
    found = named or [(p, t) for p, t in whole if int(t.max()) > 1]
    if not found:
        return None
    path, ids = found[0]
    masks = [(p, t) for p, t in tensors if p != path and t.shape == ids.shape and bool(((t == 0) | (t == 1)).all())]
    by_name = [(p, t) for p, t in masks if p and (p[-1] in MASK or "mask" in str(p[-1]))]
    for mask_path, mask in sorted(by_name, key=lambda m: _rank(m[0], path)) or masks:
        real, pad = mask_and_padding(ids, mask.bool(), pad_id)
        if real is not None:
            return Tokens(ids, path, mask_path, mask, real, pad, True)
    real = torch.ones_like(ids, dtype=torch.bool)
    if pad_id is None and likely_pad is not None:
        run = ((ids == likely_pad).int().flip(1).cumprod(1).sum(1) > 1).any()
        pad_id = likely_pad if bool(run) else None
    named_mask = by_name[0] if by_name else None
    if pad_id is not None:
        real = ids != pad_id
        if not bool(real.any(1).all()):
            return None
    at, mask_there = named_mask or (None, None)
    return Tokens(ids, path, at, mask_there, real, pad_id, bool(named) or mask_there is not None)


def _rank(mask: Path, ids: Path) -> tuple[bool, int]:
    """The order in which masks are tried: those of the same text first."""
    return text_of(mask) != text_of(ids), MASK.index(mask[-1]) if mask[-1] in MASK else len(MASK)


def mask_and_padding(
    ids: torch.Tensor, mask: torch.Tensor, pad_id: int | None
) -> tuple[torch.Tensor | None, int | None]:
    """Which tokens are real by this mask, whatever its sign, and the padding id; None where it is no padding mask."""
    if pad_id is not None and bool((ids == pad_id).any()):
        for real in (mask, ~mask):
            if bool((ids[~real] == pad_id).all()) and bool((~real).any()) and not bool((~real).all()):
                return real, pad_id
        # a mask that hides one other id and no padding was made with the padding id of another tokenizer
        other = ids[~mask]
        if len(other) and bool(mask[ids == pad_id].all()) and bool((other == other[0]).all()):
            real = ids != pad_id
            return (real, pad_id) if bool(real.any(1).all()) else (None, None)
    if bool(mask.all()) or not bool(mask.any()):
        return None, None
    for real in (mask, ~mask):
        padding = ids[~real]
        if bool((padding == padding[0]).all()) and bool((ids[real] != padding[0]).any()) and bool(real.any(1).all()):
            return real, int(padding[0])
    return (mask, None) if bool(mask.any(1).all()) else (None, None)


def without_columns(
    batch: Any, keep: torch.Tensor, rows: int, width: int, others: Container[Path] = frozenset()
) -> Any:
    """The batch with some columns only, in every tensor of ``rows`` rows and ``width`` columns (in masks over pairs, both axes), but for
    those at ``others``."""
    changes = {}
    for path, value in placed_tensors(batch):
        if value.dim() >= 2 and len(value) == rows and path not in others:
            cut = value[:, keep] if value.shape[1] == width else value
            if value.dim() >= 3 and cut.shape[-1] == cut.shape[-2] == width:
                cut = cut[..., keep, :][..., keep]
            changes[path] = cut
    return with_values(batch, changes)


def with_padding(
    batch: Any, tokens: Tokens, keep: torch.Tensor, columns: int, others: Container[Path] = frozenset()
) -> Any:
    """A batch cut to the columns ``keep`` of ``tokens``, then padded by ``columns`` on the right: the padding id, elsewhere 0; tensors at
    ``others`` stay the same."""
    rows, width = len(tokens.ids), int(keep.sum())
    if tokens.pad_id is None:
        raise ValueError("the padding id is not known")
    changes = {}
    for path, value in placed_tensors(batch):
        if path in others:
            continue
        if value.shape == (rows, width):
            fill = tokens.pad_id if path == tokens.path else 0
            if path == tokens.mask_path and tokens.mask is not None and bool((tokens.mask == 0)[tokens.real].all()):
                fill = 1  # this mask marks the padding
            changes[path] = torch.cat([value, value.new_full((rows, columns), fill)], 1)
        elif value.dim() > 2 and width in value.shape[1:]:
            raise ValueError("a tensor over pairs of tokens, or of their vectors, cannot be padded")
    return with_values(batch, changes)


def with_words_at_the_end(batch: Any, tokens: Tokens, columns: int) -> Any:
    """A batch of `with_padding` with real words in the last columns; the mask is not changed."""
    ids = next(t for p, t in _tensors(batch) if p == tokens.path).clone()
    words = tokens.ids[tokens.interior if bool(tokens.interior.any()) else tokens.real]
    count = len(ids) * columns
    ids[:, -columns:] = words.repeat(-(-count // len(words)))[:count].reshape(len(ids), columns)
    return with_values(batch, {tokens.path: ids})


def other_words(tokens: Tokens) -> torch.Tensor | None:
    """The ids with each row's words taken from another row, column by column; first and last token, padding and mask stay the same.

    None where that changes nothing. Values stay in their column, so that they stay valid ids.
    """
    return _other(tokens, tokens.interior)


def later_words(tokens: Tokens) -> torch.Tensor | None:
    """`other_words` from each row's third word on, in rows of five words or more."""
    inside = tokens.interior
    far = inside & (inside.int().cumsum(1) > 2) & (inside.sum(1, keepdim=True) >= 5)
    return _other(tokens, far)


def _other(tokens: Tokens, inside: torch.Tensor) -> torch.Tensor | None:
    ids = tokens.ids
    out = ids.clone()
    for column in range(ids.shape[1]):
        rows = torch.nonzero(inside[:, column]).flatten()
        if len(rows) > 1:
            values = ids[rows, column]
            # the rotation that changes most words: neighbouring rows may have the same word
            shifts = range(1, min(len(rows), 4))
            best = max(shifts, key=lambda s: int((values.roll(s) != values).sum()))
            out[rows, column] = values.roll(best)
    return out if bool((out != ids).any()) else None


def shuffled_words(tokens: Tokens) -> torch.Tensor | None:
    """The ids with the words of each row in reverse order; None where that changes nothing."""
    ids, inside = tokens.ids, tokens.interior
    out = ids.clone()
    for row in range(len(ids)):
        at = torch.nonzero(inside[row]).flatten()
        out[row, at] = ids[row, at.flip(0)]
    return out if bool((out != ids).any()) else None


def other_padding(tokens: Tokens) -> torch.Tensor | None:
    """The ids with real words of the batch where the padding was; None where there is no padding."""
    hidden = ~tokens.real
    if not bool(hidden.any()):
        return None
    words = tokens.ids[tokens.interior if bool(tokens.interior.any()) else tokens.real]
    out = tokens.ids.clone()
    count = int(hidden.sum())
    out[hidden] = words.repeat(-(-count // len(words)))[:count]
    return out if bool((out != tokens.ids).any()) else None


def tensors_of(batch: Any) -> list[torch.Tensor]:
    """The tensors of a batch's inputs."""
    return [t for _, t in _tensors(batch)]


def _tensors(batch: Any) -> Iterator[tuple[Path, torch.Tensor]]:
    """The tensors of the inputs and their places, without labels."""
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        last = len(batch) - 1
        return ((path, t) for path, t in placed_tensors(batch) if path[0] != last)
    if not isinstance(batch, Mapping):
        return placed_tensors(batch)
    reader = reader_of(batch)
    of_labels = (*LABELS, *SPAN, *(reader.keys if reader else ()))
    return ((path, t) for path, t in placed_tensors(batch) if path[0] not in of_labels)
