"""Batches of two texts, as of a question and its answer: which tensors are those of the other text."""

from __future__ import annotations

from typing import Any

import torch

from .batches import Path, placed_tensors
from .tensor_names import text_of
from .tokens import Tokens, mask_and_padding


def tensors_of_other_texts(batch: Any, tokens: Tokens) -> frozenset[Path]:
    """Places of tensors as large as ``tokens`` that hold another text, or the mask of one.

    Where ``tokens`` are padding, whatever else describes them repeats itself: one value, a count, or the same in each row. Numbers that
    do not are words.
    """
    own = text_of(tokens.path)
    alike = {
        p: t
        for p, t in placed_tensors(batch)
        if t.shape == tokens.ids.shape and p not in (tokens.path, tokens.mask_path)
    }
    texts = {p: t for p, t in alike.items() if _are_numbers(t) and _are_words(t, ~tokens.real)}
    names = {text_of(p) for p in texts} - {None, own}

    def belongs(path: Path, value: torch.Tensor) -> bool:
        named = text_of(path)
        if path in texts or named in names:
            return True
        return (named is None or named != own) and any(_hides_padding(value, ids) for ids in texts.values())

    return frozenset(p for p, t in alike.items() if belongs(p, t))


def _are_numbers(value: torch.Tensor) -> bool:
    """Whole numbers other than those of a mask."""
    whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return whole and bool((value > 1).any())


def _are_words(value: torch.Tensor, padding: torch.Tensor) -> bool:
    """Whether the values at the padding are neither equal, nor one count along the rows, nor the same in each row."""
    if not bool(padding.any()) or bool((value[padding] == value[padding][0]).all()):
        return False
    steps = (value[:, 1:] - value[:, :-1])[padding[:, 1:] & padding[:, :-1]]
    if len(steps) > 1 and bool((steps == steps[0]).all()):
        return False
    several = padding & (padding.sum(0) > 1)
    of_column = torch.where(padding, value, value.min()).amax(0)
    return not (bool(several.any()) and bool((value == of_column)[several].all()))


def _hides_padding(value: torch.Tensor, ids: torch.Tensor) -> bool:
    """Whether these are zeros and ones that hide the padding of these ids, and nothing else."""
    if not bool(((value == 0) | (value == 1)).all()):
        return False
    return mask_and_padding(ids, value.bool(), None)[1] is not None
