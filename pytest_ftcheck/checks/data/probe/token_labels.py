"""The probe of labels of single tokens."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import torch

from ....instruments.batches import device_of, split, take_rows, to_device, with_labels
from ....instruments.configs import config_of
from ....instruments.probe import LeftOut, Probe, ProbeContext
from ....instruments.row_hashes import vocabulary_of
from ....instruments.tasks import IGNORED
from ....instruments.tokens import Tokens, find_tokens
from ....instruments.undisturbed import quiet
from ..token_record import TokenLabels
from ..trained_tokens_record import TrainedTokens
from .trained_tokens import SHOWN_ROWS, trained_tokens

#: Batches read, and rows whose labels at padding are changed, at most.
MOST_BATCHES, CHANGED_ROWS = 64, 8
#: Tokens to either side whose ids are compared with the label.
FARTHEST = 2
#: Labelled tokens below which ids and labels are not compared.
LEAST_TOKENS = 400


class TokenLabelsProbe(Probe):
    """Read ids and labels of the batches at hand, and compute the loss once with other labels at the padding."""

    name = "token_labels"
    order = 15

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        config = config_of(context.model)
        self.decoder_pad: int | None = None
        self.of_decoder = bool(getattr(config, "is_encoder_decoder", False))
        if self.of_decoder:
            self.decoder_pad = context.intent.pad_token_id
            if self.decoder_pad is None:
                self.decoder_pad = getattr(config, "pad_token_id", None)
        read = [(batch, self._read(batch)) for batch in context.batches.known[:MOST_BATCHES]]
        self.read = [(batch, found) for batch, found in read if found is not None]
        self.batches = [found for _, found in self.read]
        if not self.batches:
            raise LeftOut("there is not one label a token")
        self.padding_counts: bool | None = None
        self.trained: TrainedTokens | None = None

    def cost(self) -> float:
        """Two passes over the rows whose labels are changed, and one over those that are shown."""
        return 2.0 * CHANGED_ROWS + SHOWN_ROWS

    def before(self) -> None:
        """Change the labels at the padding, and compare the losses; find the tokens that count."""
        self._change_padding()
        context = self.context
        read = [(to_device(self.read[0][0], device_of(context.model)), self.read[0][1]), *self.read[1:]]
        self.trained = trained_tokens(context.model, context.reader, read, padding_counts=self.padding_counts)

    def _change_padding(self) -> None:
        for batch, found in self.read:
            rows = _at_padding(*found).any(1).nonzero().flatten()[:CHANGED_ROWS].tolist()
            if rows:
                self.padding_counts = self._loss_changes(take_rows(batch, rows), rows, *found)
                return

    def record(self) -> TokenLabels | None:
        """What was measured."""
        outputs = self.context.reader.classes
        ids_are_labels = self.of_decoder or (outputs is not None and outputs == vocabulary_of(self.context.model))
        return TokenLabels(
            rows=sum(len(labels) for _, labels in self.batches),
            at_tokens=sum(int((tokens.real & (labels != IGNORED)).sum()) for tokens, labels in self.batches),
            at_padding=sum(int(_at_padding(tokens, labels).sum()) for tokens, labels in self.batches),
            padding_counts=self.padding_counts,
            explained={} if ids_are_labels else explained(self.batches),
            trained=self.trained,
        )

    def _read(self, batch: Any) -> tuple[Tokens, torch.Tensor] | None:
        labels = split(batch)[1]
        if self.of_decoder:
            return self._read_decoder(labels)
        tokens = find_tokens(batch, self.context.intent.pad_token_id)
        if tokens is None or not tokens.certain or not isinstance(labels, torch.Tensor) or labels.is_floating_point():
            return None
        return (tokens, labels) if labels.shape == tokens.ids.shape else None

    def _read_decoder(self, labels: Any) -> tuple[Tokens, torch.Tensor] | None:
        """The decoder's tokens are its labels; padding is a run of the padding id at the end, but for its first, which may end the text."""
        if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.dim() != 2:
            return None
        run = ((labels == self.decoder_pad) | (labels == IGNORED)).int().flip(1).cumprod(1).flip(1).bool()
        real = ~run | ~torch.nn.functional.pad(run[:, :-1], (1, 0))
        return Tokens(labels, (), None, None, real, self.decoder_pad, True), labels

    def _loss_changes(self, batch: Any, rows: list[int], tokens: Tokens, labels: torch.Tensor) -> bool | None:
        reader, hidden, own = self.context.reader, _at_padding(tokens, labels)[rows], labels[rows]
        classes = reader.classes or int(labels.max()) + 1
        other = with_labels(batch, torch.where(hidden, (own + 1) % max(2, classes), own))
        device = device_of(self.context.model)
        with quiet(self.context.model):
            before, after = (float(reader.loss(to_device(b, device))[0]) for b in (batch, other))
        return before != after


def _at_padding(tokens: Tokens, labels: torch.Tensor) -> torch.Tensor:
    """True at labels of padding that are not ignored."""
    return ~tokens.real & (labels != IGNORED)


def explained(batches: list[tuple[Tokens, torch.Tensor]]) -> dict[int, float]:
    """Distance -> share of the labels beside the most frequent one that the id of the token there predicts, fitted on every second row.

    Goodman and Kruskal's lambda on held-out rows: (hits of each id's most frequent label - hits of the most frequent label) / (labels -
    these).
    """
    found = {}
    for distance in range(-FARTHEST, FARTHEST + 1):
        fitted: defaultdict[int, Counter[int]] = defaultdict(Counter)
        held_out: list[tuple[int, int]] = []
        for tokens, labels in batches:
            for row, (ids, real, own) in enumerate(
                zip(tokens.ids.tolist(), tokens.real.tolist(), labels.tolist(), strict=True)
            ):
                for t, label in enumerate(own):
                    there = t + distance
                    inside = max(0, distance) <= there < len(ids) + min(0, distance)
                    if label == IGNORED or not real[t] or not inside or not real[there]:
                        continue
                    if row % 2:
                        held_out.append((ids[there], label))
                    else:
                        fitted[ids[there]][label] += 1
        labels_seen = sum(fitted.values(), Counter())
        if len(held_out) < LEAST_TOKENS or len(labels_seen) < 2:
            return {}
        common = labels_seen.most_common(1)[0][0]
        guess = {token: counts.most_common(1)[0][0] for token, counts in fitted.items()}
        base = sum(label == common for _, label in held_out)
        hits = sum(label == guess.get(token, common) for token, label in held_out)
        found[distance] = (hits - base) / max(1, len(held_out) - base)
    return found
