"""The probe of a language model's targets."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from ....instruments.batches import own_copy, row_count, split, take_rows, with_values
from ....instruments.configs import config_of
from ....instruments.model_outputs import logits_in
from ....instruments.probe import LeftOut, Probe, ProbeContext
from ....instruments.row_hashes import vocabulary_of
from ....instruments.tasks import IGNORED
from ....instruments.tokens import find_tokens
from ....instruments.undisturbed import quiet
from ..lm_record import LmTargets

#: Rows used, and the distances k from a position to the token that it may be taught to predict.
ROWS, DISTANCES = 8, range(-2, 4)
#: Targets of a row that are its ids at one distance: at least so many, and this share of all. By chance four words are the right ones in
#: order only in texts that repeat themselves, which have several such distances.
LEAST_TARGETS, SAME_TARGETS = 4, 0.9
#: A position follows the ids of another one where its logits change by more than this share of the largest: beyond rounding in 16 bits
#: of values that are summed in 32.
SEEN = 1e-4
#: Batches whose last tokens are read, at most.
BATCHES = 64


class LmTargetsProbe(Probe):
    """One backward pass as far as the logits, and forward passes with other ids in either half."""

    name = "lm_targets"
    order = 28

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.vocabulary = vocabulary_of(context.model)
        self.decoder = _decoder(context.model)
        tokens = find_tokens(context.fixed_batches[0], context.intent.pad_token_id)
        labels = split(context.fixed_batches[0])[1]
        if self.decoder is not None:
            if not isinstance(labels, torch.Tensor) or labels.dim() != 2 or labels.is_floating_point():
                raise LeftOut("there is not one label a token")
        elif tokens is None or (isinstance(labels, torch.Tensor) and labels.shape != tokens.ids.shape):
            raise LeftOut("there is not one label a token")
        elif not tokens.certain and not isinstance(labels, torch.Tensor):
            raise LeftOut("it is not certain which input holds the ids of the tokens")
        self.rows = min(ROWS, row_count(split(context.fixed_batches[0])[0]) or 1)
        self.found: LmTargets | None = None

    def cost(self) -> float:
        """A forward and backward pass, and three forward passes."""
        return 6.0 * self.rows

    def before(self) -> None:
        """Measure before any step: a trained model pushes the same ids up."""
        batch = take_rows(self.context.fixed_batches[0], range(self.rows))
        if self.decoder is not None:
            self.found = self._of_decoder(batch, self.decoder)
            return
        tokens = find_tokens(batch, self.context.intent.pad_token_id)
        assert tokens is not None
        with quiet(self.context.model, grad=True):
            pushed = self._pushed_up(batch)
        ids, real = tokens.ids.to(pushed.device), tokens.real.to(pushed.device)
        if pushed.shape != ids.shape:
            raise LeftOut("there is not one prediction a token")
        with quiet(self.context.model):
            before = self.context.reader.logits(batch)
            if before is None:
                raise LeftOut("whether positions see later ones could not be measured")
            causal = self._causal(batch, tokens.path, ids, before)
            shares = _shares(pushed, ids, real)
            asks = not causal and shares[1] >= SAME_TARGETS
            sees_next = self._sees_next(batch, tokens.path, ids, before, pushed >= 0) if asks else None
        commonest = _commonest(pushed >= 0, ids, real)
        rows, moved, paddings = _beside_padding(pushed, ids, real, right=int(causal))
        self.found = LmTargets(
            int((pushed >= 0).sum()),
            causal,
            shares,
            *self._end(),
            commonest={k: share for k, (share, _) in commonest.items()},
            commonest_overall={k: overall for k, (_, overall) in commonest.items()},
            scattered=_scattered(pushed >= 0),
            padded_rows=rows,
            moved_by_padding=moved,
            paddings=paddings,
            sees_next=sees_next,
        )

    def _of_decoder(self, batch: Any, decoder: nn.Module) -> LmTargets:
        """The same of a decoder, beside the ids that it is given: those of the loop's own call, or made by the model from the labels."""
        given: list[Any] = []

        def note(_module: Any, args: Any, kwargs: Any) -> None:
            given.append(kwargs.get("input_ids", args[0] if args else None))

        hook = decoder.register_forward_pre_hook(note, with_kwargs=True)
        try:
            with quiet(self.context.model, grad=True):
                pushed = self._pushed_up(batch)
        finally:
            hook.remove()
        ids = given[-1] if given else None
        if not isinstance(ids, torch.Tensor) or ids.shape != pushed.shape:
            raise LeftOut("the ids that the decoder is given could not be read")
        if not bool(((pushed >= 0)[:, 1:] & (pushed >= 0)[:, :-1]).any()):
            raise LeftOut("no target has two tokens")
        return LmTargets(int((pushed >= 0).sum()), True, _shares(pushed, ids, pushed >= 0), of_decoder=True)

    def _end(self) -> tuple[int, int, int]:
        """Rows read, those that end in the most frequent last token, and how often this one is a label."""
        last: Counter[int] = Counter()
        taught: Counter[int] = Counter()
        for batch in self.context.batches.known[:BATCHES]:
            tokens, labels = find_tokens(batch, self.context.intent.pad_token_id), split(batch)[1]
            if tokens is None or not isinstance(labels, torch.Tensor) or labels.shape != tokens.ids.shape:
                continue
            at = (tokens.ends - 1).clamp(min=0)[:, None]
            last.update(tokens.ids.gather(1, at).flatten().tolist())
            taught.update(labels[labels != IGNORED].tolist())
        if not last:
            return 0, 0, 0
        end, rows = last.most_common(1)[0]
        return sum(last.values()), rows, taught[end]

    def _pushed_up(self, batch: Any) -> torch.Tensor:
        """At each position the id whose logit the loss raises most; -1: no gradient."""
        outputs: list[torch.Tensor] = []

        def keep(_model: Any, _arguments: Any, output: Any) -> None:
            logits = logits_in(output)
            if logits is not None:
                outputs.append(logits)

        hook = self.context.model.register_forward_hook(keep)
        try:
            loss, _ = self.context.reader.loss(own_copy(batch))
        finally:
            hook.remove()
        if not outputs or outputs[-1].dim() != 3 or not loss.requires_grad:
            raise LeftOut("the model's logits could not be found")
        # a reference model's have no gradient, nor have those of a loss that is computed in chunks, from hidden states
        logits = next((found for found in reversed(outputs) if found.requires_grad), None)
        if logits is None:
            raise LeftOut("the loss is not computed from the model's logits")
        if logits.shape[-1] != self.vocabulary:
            raise LeftOut("the outputs are not the vocabulary")
        (grad,) = torch.autograd.grad(loss, logits, allow_unused=True)
        if grad is None:
            raise LeftOut("the loss is not computed from the model's logits")
        return torch.where(grad.abs().amax(-1) > 0, grad.argmin(-1), -1)

    def _causal(self, batch: Any, path: Any, ids: torch.Tensor, before: torch.Tensor) -> bool:
        """Whether the logits of earlier positions stay as they are when later ids change, and those of later ones follow earlier ids.

        Where neither depends on the other, as in an encoder whose attention starts at zero, it is not known.
        """
        half = max(1, ids.shape[1] // 2)
        first, second = slice(None, half), slice(half, None)

        def follows(changed: slice, seen: slice) -> bool:
            other = ids.clone()
            other[:, changed] = other[:, changed].roll(1, 0).flip(1)
            after = self.context.reader.logits(with_values(batch, {path: other}))
            if after is None or bool((other == ids).all()):
                raise LeftOut("whether positions see later ones could not be measured")
            return bool((after[:, seen] - before[:, seen]).abs().max() > SEEN * before.abs().max())

        if follows(second, first):
            return False
        if not follows(first, second):
            raise LeftOut("no position follows another one as yet, so it is not known which of them it is to see")
        return True

    def _sees_next(
        self, batch: Any, path: Any, ids: torch.Tensor, before: torch.Tensor, taught: torch.Tensor
    ) -> float | None:
        """Share of the rows in which the logits of a position that is taught, the middle one, follow the ids after it."""
        place = torch.arange(ids.shape[1], device=ids.device)
        count = taught.cumsum(1)
        middle = (count >= (count[:, -1:] + 1) // 2).long().argmax(1)
        other = torch.where(place > middle[:, None], ids.roll(1, 0).flip(1), ids)
        changed = (other != ids).any(1) & taught.any(1)
        after = self.context.reader.logits(with_values(batch, {path: other}))
        if after is None or not bool(changed.any()):
            return None
        rows = torch.arange(len(ids), device=ids.device)
        change = (after[rows, middle] - before[rows, middle]).abs().amax(-1)[changed]
        return float((change > SEEN * before.abs().max()).double().mean())

    def record(self) -> LmTargets | None:
        """What was measured."""
        return self.found


def _decoder(model: nn.Module) -> nn.Module | None:
    """The decoder of an encoder-decoder model of transformers."""
    if not getattr(config_of(model), "is_encoder_decoder", False):
        return None
    find = getattr(model, "get_decoder", None)
    found = find() if callable(find) else None
    if not isinstance(found, nn.Module):
        raise LeftOut("the decoder of the model could not be found")
    return found


def _pairs(k: int, width: int) -> tuple[slice, slice]:
    """Positions, and those k after them."""
    return slice(max(0, -k), width - max(0, k)), slice(max(0, k), width + min(0, k))


def _shares(pushed: torch.Tensor, ids: torch.Tensor, real: torch.Tensor) -> dict[int, float]:
    """k -> share of the positions with a gradient whose id that is pushed up is the one given k positions later."""
    shares = {}
    for k in DISTANCES:
        at, there = _pairs(k, ids.shape[1])
        both = (pushed >= 0)[:, at] & real[:, there]
        shares[k] = float((pushed[:, at] == ids[:, there])[both].double().mean()) if bool(both.any()) else 0.0
    return shares


def _scattered(counted: torch.Tensor) -> float:
    """Share of the positions that count which have no neighbour that does, in rows with several."""
    beside = torch.nn.functional.pad(counted, (1, 1))
    alone = counted & ~beside[:, :-2] & ~beside[:, 2:] & (counted.sum(1, keepdim=True) > 1)
    return float(alone.sum() / counted.sum().clamp(min=1))


def _beside_padding(pushed: torch.Tensor, ids: torch.Tensor, real: torch.Tensor, *, right: int) -> tuple[int, int, int]:
    """Of the rows with padding: those whose targets are their own ids at one distance, those of them further away by as many positions as
    the row has padding, and the different lengths of that padding.

    :param right: the distance that they should have.
    """
    rows, moved, paddings = 0, 0, set()
    for targets, row, counts in zip(pushed.cpu(), ids.cpu(), real.cpu(), strict=True):
        padding = int((~counts).sum())
        distance = _only_distance(targets, row) if padding else None
        rows += distance is not None
        if distance is not None and abs(distance - right) == padding:
            moved += 1
            paddings.add(padding)
    return rows, moved, len(paddings)


def _only_distance(targets: torch.Tensor, row: torch.Tensor) -> int | None:
    """The one distance at which a row's targets are its ids; None: there is none, there are several, or there are too few targets."""
    found, width = [], len(row)
    for k in range(1 - width, width):
        at, there = _pairs(k, width)
        taught = targets[at] >= 0
        same = int((targets[at] == row[there])[taught].sum())
        if same >= LEAST_TARGETS and same >= SAME_TARGETS * int((targets >= 0).sum()):
            found.append(k)
    return found[0] if len(found) == 1 else None


def _commonest(counted: torch.Tensor, ids: torch.Tensor, real: torch.Tensor) -> dict[int, tuple[float, float]]:
    """k -> share of the positions with a gradient that have the most frequent of the ids k positions later, and its share of all tokens."""
    found = {}
    for k in DISTANCES:
        at, there = _pairs(k, ids.shape[1])
        beside = ids[:, there][counted[:, at] & real[:, there]]
        if len(beside):
            values, counts = torch.unique(beside, return_counts=True)
            overall = (ids[real] == values[counts.argmax()]).double().mean()
            found[k] = float(counts.max() / len(beside)), float(overall)
    return found
