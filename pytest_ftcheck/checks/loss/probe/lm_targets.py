"""The probe of a language model's targets."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from ....instruments.batches import own_copy, row_count, split, take_rows, with_values
from ....instruments.model_outputs import logits_in
from ....instruments.probe import LeftOut, Probe, ProbeContext
from ....instruments.row_hashes import vocabulary_of
from ....instruments.tasks import IGNORED
from ....instruments.tokens import find_tokens
from ....instruments.undisturbed import quiet
from ..lm_record import LmTargets

#: Rows used, and the distances k from a position to the token that it may be taught to predict.
ROWS, DISTANCES = 8, range(-2, 4)
#: Batches whose last tokens are read, at most.
BATCHES = 64


class LmTargetsProbe(Probe):
    """One backward pass as far as the logits, and one forward pass with another last token."""

    name = "lm_targets"
    order = 28

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        self.vocabulary = vocabulary_of(context.model)
        if getattr(getattr(context.model, "config", None), "is_encoder_decoder", False):
            raise LeftOut("the targets are those of a decoder with inputs of its own")
        tokens = find_tokens(context.fixed_batches[0], context.intent.pad_token_id)
        labels = split(context.fixed_batches[0])[1]
        if (
            tokens is None
            or not tokens.certain
            or (isinstance(labels, torch.Tensor) and labels.shape != tokens.ids.shape)
        ):
            raise LeftOut("there is not one label a token")
        self.rows = min(ROWS, row_count(split(context.fixed_batches[0])[0]) or 1)
        self.found: LmTargets | None = None

    def cost(self) -> float:
        """A forward and backward pass, and a forward pass."""
        return 4.0 * self.rows

    def before(self) -> None:
        """Measure before any step: a trained model pushes the same ids up."""
        batch = take_rows(self.context.fixed_batches[0], range(self.rows))
        tokens = find_tokens(batch, self.context.intent.pad_token_id)
        assert tokens is not None
        with quiet(self.context.model, grad=True):
            pushed = self._pushed_up(batch)
        ids, real = tokens.ids.to(pushed.device), tokens.real.to(pushed.device)
        if pushed.shape != ids.shape:
            raise LeftOut("there is not one prediction a token")
        counted = pushed >= 0
        shares = {}
        for k in DISTANCES:
            at = slice(max(0, -k), ids.shape[1] - max(0, k))
            there = slice(max(0, k), ids.shape[1] + min(0, k))
            both = counted[:, at] & real[:, there]
            shares[k] = float((pushed[:, at] == ids[:, there])[both].double().mean()) if bool(both.any()) else 0.0
        with quiet(self.context.model):
            causal = self._causal(batch, tokens.path, ids)
        self.found = LmTargets(int(counted.sum()), causal, shares, *self._end())

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

    def _causal(self, batch: Any, path: Any, ids: torch.Tensor) -> bool:
        """Whether the logits of earlier positions stay as they are when the second half of the ids changes."""
        half = max(1, ids.shape[1] // 2)
        other = ids.clone()
        other[:, half:] = other[:, half:].roll(1, 0).flip(1)
        after = self.context.reader.logits(with_values(batch, {path: other}))
        before = self.context.reader.logits(batch)
        if before is None or after is None or bool((other == ids).all()):
            raise LeftOut("whether positions see later ones could not be measured")
        change = (after[:, :half] - before[:, :half]).abs().max()
        return bool(change <= 1e-4 * before.abs().max())

    def record(self) -> LmTargets | None:
        """What was measured."""
        return self.found
