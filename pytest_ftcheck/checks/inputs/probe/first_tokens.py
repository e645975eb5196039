"""A head on the first token, where the first token varies from row to row: which positions' vectors reach the logits?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ....instruments.base_model import hidden_of
from ....instruments.tokens import Tokens, find_tokens
from ..record import FirstTokens
from .forward import Forward

#: Rows whose first tokens are counted, at most, and at least.
MOST_ROWS, LEAST_ROWS = 64, 16
#: Different first tokens, as a share of the rows, from which on they are words of the text. A special token is the same in each row, and a
#: token for the language or the task is one of a few.
WORDS = 0.25


def count_first_tokens(batches: Iterable[Any], declared: int | None, likely: int | None) -> FirstTokens | None:
    """The first real tokens of the first rows; None: no token ids were found, or too few rows."""
    first: list[int] = []
    for batch in batches:
        tokens = find_tokens(batch, declared, likely)
        if tokens is None or not tokens.certain:
            return None
        first += tokens.ids.gather(1, tokens.real.int().argmax(1, keepdim=True)).flatten().tolist()
        if len(first) >= MOST_ROWS:
            break
    first = first[:MOST_ROWS]
    if len(first) < LEAST_ROWS:
        return None
    return FirstTokens(len(first), len(set(first)), Counter(first).most_common(1)[0][1])


def are_words(found: FirstTokens | None) -> bool:
    """Whether the first tokens are words of the texts, and no special token."""
    return found is not None and found.distinct >= WORDS * found.rows


def reads_first_token_alone(forward: Forward, batch: Any, tokens: Tokens | None) -> bool | None:
    """Whether only the vectors that the base gives at each row's first token have a gradient from the outputs; None: not known."""
    if forward.base is None or tokens is None:
        return None
    vectors: list[torch.Tensor] = []

    def keep(_module: nn.Module, _args: Any, out: Any) -> None:
        hidden = hidden_of(out, tokens.ids)
        if hidden is not None:
            if not hidden.requires_grad:  # of a frozen base: a leaf
                hidden.requires_grad_()
            vectors.append(hidden)

    handle = forward.base.module.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = forward.reader.logits(batch)
            if logits is None or len(vectors) != 1:
                return None
            weights = torch.linspace(1, 2, logits.numel(), device=logits.device, dtype=logits.dtype)
            found: tuple[Any, ...] = torch.autograd.grad(
                (logits.reshape(-1) * weights).sum(), vectors, allow_unused=True
            )
    except Exception:  # noqa: BLE001 - the user's model may have no gradient, or refuse another call
        return None
    finally:
        handle.remove()
    gradient = found[0]
    if gradient is None:
        return None
    first = nn.functional.one_hot(tokens.real.int().argmax(1), tokens.width).bool()
    return bool(((gradient != 0).any(-1) == first).all())
