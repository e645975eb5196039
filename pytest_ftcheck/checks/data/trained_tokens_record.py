"""Which tokens are trained: by kind over all rows read, and one by one in a few rows, for the picture on the page."""

from __future__ import annotations

from dataclasses import dataclass

#: Kinds of tokens. A prompt is what stands before the first token of its row that is taught.
KINDS = ("padding", "special", "prompt", "text")


@dataclass(frozen=True)
class TokenRow:
    """One row of a batch. The lists are as long as the row that is shown."""

    ids: tuple[int, ...]
    #: One of `KINDS` for each token.
    kinds: tuple[str, ...]
    #: The mask lets the model attend to the token; the token, or its label, counts in the loss.
    attended: tuple[bool, ...]
    taught: tuple[bool, ...]
    #: Tokens of the row that are not shown.
    left_out: int = 0


@dataclass(frozen=True)
class TrainedTokens:
    """Tokens, and those of them that count in the loss, by kind."""

    rows: int
    #: Kind -> tokens of it, and those that are taught.
    tokens: dict[str, int]
    taught: dict[str, int]
    shown: tuple[TokenRow, ...] = ()
