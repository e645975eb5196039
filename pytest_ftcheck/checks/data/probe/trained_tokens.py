"""Which tokens are trained, read off the labels and, in two rows, off the gradient with respect to the logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ....instruments.batches import own_copy, take_rows
from ....instruments.configs import config_of
from ....instruments.model_outputs import logits_in
from ....instruments.reader import Reader
from ....instruments.tasks import IGNORED
from ....instruments.tokens import Tokens
from ....instruments.undisturbed import quiet
from ..trained_tokens_record import KINDS, TokenRow, TrainedTokens

#: Rows shown, and tokens of a row, at most.
SHOWN_ROWS, MOST_TOKENS = 2, 96
#: Rows, and the share of them that begins or ends with one id, from which it is a special token: [CLS], [SEP], an end of text.
SPECIAL_ROWS, SPECIAL_SHARE = 8, 0.9
#: Share of the tokens that are taught, from the first of them on, from which what stands before is a prompt.
ANSWER_SHARE = 0.9
#: Such ids in the config of a model.
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "decoder_start_token_id")

#: A batch, its tokens and its labels.
Read = tuple[Any, tuple[Tokens, torch.Tensor]]


def trained_tokens(
    model: nn.Module, reader: Reader, read: Sequence[Read], *, padding_counts: bool | None
) -> TrainedTokens:
    """Tokens by kind over all rows; where the gradient contradicts the labels, over the rows whose gradient was taken."""
    batch, (tokens, labels) = read[0]
    special, shown = _special_ids(model, read), _rows_to_show(tokens)
    by_labels = _taught_by_labels(tokens, labels, reader.shift, padding_counts)[shown]
    by_gradient = _taught_by_gradient(reader, take_rows(batch, shown), tokens.of(shown))
    if by_gradient is not None and not torch.equal(by_gradient, by_labels):
        counted = [(tokens.of(shown), by_gradient)]
    else:
        counted = [(t, _taught_by_labels(t, y, reader.shift, padding_counts)) for _, (t, y) in read]
    number: Counter[str] = Counter()
    taught: Counter[str] = Counter()
    for found, counts in counted:
        for row in _rows(found, counts, special, reader.shift):
            number.update(row.kinds)
            taught.update(kind for kind, counts_in_loss in zip(row.kinds, row.taught, strict=True) if counts_in_loss)
    rows = _rows(tokens.of(shown), by_labels if by_gradient is None else by_gradient, special, reader.shift)
    return TrainedTokens(
        rows=sum(len(t.ids) for t, _ in counted),
        tokens={kind: number[kind] for kind in KINDS if number[kind]},
        taught={kind: taught[kind] for kind in KINDS if number[kind]},
        shown=tuple(_cut(row) for row in rows),
    )


def _rows_to_show(tokens: Tokens) -> list[int]:
    """The longest row and, if it has another length, the shortest."""
    lengths = tokens.real.sum(1)
    longest, shortest = int(lengths.argmax()), int(lengths.argmin())
    return [longest] if lengths[longest] == lengths[shortest] else [longest, shortest]


def _taught_by_labels(tokens: Tokens, labels: torch.Tensor, shift: int, padding_counts: bool | None) -> torch.Tensor:
    """True at tokens whose label counts; the first ones have none where the logits of a position meet a later label."""
    taught = (labels != IGNORED).cpu() & (tokens.real.cpu() | bool(padding_counts))
    taught[:, :shift] = False
    return taught


def _taught_by_gradient(reader: Reader, batch: Any, tokens: Tokens) -> torch.Tensor | None:
    """True at tokens whose prediction has a gradient; None: there is not one prediction a token."""
    outputs: list[torch.Tensor | None] = []
    hook = reader.model.register_forward_hook(lambda _model, _args, output: outputs.append(logits_in(output)))
    try:
        with quiet(reader.model, grad=True):
            loss, _ = reader.loss(own_copy(batch))
            logits = outputs[-1] if outputs else None
            if logits is None or logits.shape[:-1] != tokens.ids.shape or not loss.requires_grad:
                return None
            grad: torch.Tensor | None = torch.autograd.grad(loss, logits, allow_unused=True)[0]
    except Exception:  # noqa: BLE001 - a model or a loss that cannot take so few rows
        return None
    finally:
        hook.remove()
    if grad is None:
        return None
    counts = (grad.abs().amax(-1) > 0).cpu()
    return counts.roll(reader.shift, 1) if reader.shift else counts  # the last position predicts nothing


def _special_ids(model: nn.Module, read: Sequence[Read]) -> set[int]:
    """Ids that the config names, and those that begin or end nearly every row."""
    config = config_of(model)
    named = {value for name in SPECIAL_IDS if isinstance(value := getattr(config, name, None), int)}
    first: Counter[int] = Counter()
    last: Counter[int] = Counter()
    for _, (tokens, _) in read:
        begin, end = tokens.real.int().argmax(1), (tokens.ends - 1).clamp(min=0)
        first.update(tokens.ids.gather(1, begin[:, None]).flatten().tolist())
        last.update(tokens.ids.gather(1, end[:, None]).flatten().tolist())
    rows = sum(first.values())
    common = [counts.most_common(1)[0] for counts in (first, last) if counts]
    return named | {i for i, n in common if rows >= SPECIAL_ROWS and n >= SPECIAL_SHARE * rows}


def _rows(tokens: Tokens, taught: torch.Tensor, special: set[int], shift: int) -> list[TokenRow]:
    attended = _attended(tokens)
    found = []
    for ids, real, seen, counts in zip(*(x.tolist() for x in (tokens.ids, tokens.real, attended, taught)), strict=True):
        begin = counts.index(True) if True in counts else 0
        answer = [counts[t] for t in range(begin, len(ids)) if real[t] and ids[t] not in special]
        # the first token of a causal model is never predicted; single tokens are taught where some are masked
        if begin <= shift or sum(answer) < ANSWER_SHARE * len(answer):
            begin = 0
        kinds = tuple(
            "padding"
            if not real[t] or i == IGNORED
            else "special"
            if i in special
            else "prompt"
            if t < begin
            else "text"
            for t, i in enumerate(ids)
        )
        found.append(TokenRow(tuple(ids), kinds, tuple(seen), tuple(counts)))
    return found


def _attended(tokens: Tokens) -> torch.Tensor:
    """What the batch's mask lets the model attend to, whatever the mask's sign; where there is none, every id."""
    if tokens.mask is None:
        return tokens.ids != IGNORED
    mask = tokens.mask.bool()
    return mask if 2 * int((mask == tokens.real).sum()) >= mask.numel() else ~mask


def _cut(row: TokenRow) -> TokenRow:
    if len(row.ids) <= MOST_TOKENS:
        return row
    shown, left_out = slice(MOST_TOKENS), len(row.ids) - MOST_TOKENS
    return TokenRow(row.ids[shown], row.kinds[shown], row.attended[shown], row.taught[shown], left_out)
