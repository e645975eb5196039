"""The picture of which tokens are trained, before it is HTML."""

from __future__ import annotations

from dataclasses import dataclass

from ...checks.data.token_record import TokenLabels
from ...checks.data.trained_tokens_record import TokenRow
from ...core.formatting import percent, plural
from ...core.trace import Trace

#: What stands below a token of each kind: the kind is never shown by colour alone.
MARKS = {"padding": "pad", "special": "sp", "prompt": "pr", "text": ""}


@dataclass(frozen=True)
class TokenCell:
    """One token."""

    id: str
    mark: str
    #: Classes of its style.
    style: str
    #: The same in words.
    words: str


@dataclass(frozen=True)
class TokenPicture:
    """Rows of tokens, and the shares of those that are taught."""

    rows: tuple[tuple[TokenCell, ...], ...]
    #: Tokens left out of each row.
    left_out: tuple[int, ...]
    #: Kind, its mark, number of its tokens, share of those that are taught.
    shares: tuple[tuple[str, str, str, str], ...]
    note: str


def token_picture(trace: Trace) -> TokenPicture | None:
    """The picture; None where there is not one label a token.

    >>> from pytest_ftcheck import example_trace
    >>> token_picture(example_trace()) is None
    True
    """
    labels = trace.measured(TokenLabels)
    trained = labels.trained if labels is not None else None
    if trained is None or not trained.shown:
        return None
    shares = tuple(
        (kind, MARKS.get(kind, ""), f"{count:,}", percent(trained.taught.get(kind, 0) / max(1, count)))
        for kind, count in trained.tokens.items()
    )
    return TokenPicture(
        tuple(tuple(_cells(row)) for row in trained.shown),
        tuple(row.left_out for row in trained.shown),
        shares,
        f"Token ids of {plural(len(trained.shown), 'row')} of the first batch; shares over {plural(trained.rows, 'row')}.",
    )


def _cells(row: TokenRow) -> list[TokenCell]:
    found = []
    for i, kind, attended, taught in zip(row.ids, row.kinds, row.attended, row.taught, strict=True):
        states = ("taught" if taught else "untaught", "attended" if attended else "hidden")
        words = f"{kind}, {'taught' if taught else 'not taught'}, {'attended to' if attended else 'not attended to'}"
        found.append(TokenCell(str(i), MARKS.get(kind, ""), " ".join(states), words))
    return found
