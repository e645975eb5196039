"""The run again, from the same start, with labels that have nothing to do with the rows: does the run do better than that?

Comparing a training with trainings on permuted labels is the permutation test of Ojala and Garriga, JMLR 11 (2010), and the
randomisation of Zhang et al., "Understanding deep learning requires rethinking generalization", ICLR 2017.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ....instruments.batches import own_copy, split, to_device
from ....instruments.logit_injection import with_labels
from ....instruments.probe import LeftOut, Probe, ProbeContext
from ....instruments.snapshots import quiet, seed_everything
from ...head.probe.head import first_rows, rows_of
from ..record import Permuted, Rerun
from .rerun import (
    Again,
    Deadline,
    Start,
    blind_loss,
    casting,
    clip,
    counted,
    gradients_of,
    logits_for,
    score,
    settings_of,
)

#: Trainings with permuted labels: enough for a prediction interval, and each costs what the run did.
PERMUTATIONS = 6
#: Rows looked at afterwards, of those trained on and of those held out.
LOOKED_AT, HELD_OUT = 256, 512
#: A permutation that leaves more labels where they were does not tell trainings apart.
LEAST_CHANGED = 0.1


class PermutedProbe(Probe):
    """The run repeated with true and with permuted labels."""

    name = "permuted"
    order = 90
    default = False

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        if not context.recipe_loop:
            raise LeftOut(
                "the loop is your own: only a loop of ours can be run again with other labels (leave step= out)"
            )
        if context.recipe.autocast == "float16" and context.device.type == "cuda":
            raise LeftOut("runs under a GradScaler are not repeated: autocast='bfloat16' needs none")
        if not isinstance(split(context.fixed_batches[0])[1], torch.Tensor):
            raise LeftOut(
                "the labels cannot be seen in the batches: give (inputs, labels), or a mapping with the key 'labels'"
            )
        self.deadline = Deadline(context.recipe.max_seconds)
        self.start: Start | None = None
        self.again: Again | None = None
        self.batches: list[Any] = []
        self.settings: list[list[dict[str, Any]]] = []
        self.found: Permuted | None = None

    def cost(self) -> float:
        """A training for each permutation, and one or two with the true labels."""
        return 3.0 * rows_of(self.context.fixed_batches[0]) * self.context.steps * (PERMUTATIONS + 2)

    def before(self) -> None:
        """Keep the initial values of what may learn."""
        self.start = Start(self.context.model)
        self.again = Again(self.context.optimizer, self.start.parameters)

    def iteration(self, number: int, batch: Any) -> None:
        """Keep the batch, and what the optimizer is set to."""
        known = self.context.batches.list
        # a list is there to be looked at again, and the same rows keep their labels from one round to the next
        self.batches.append(own_copy(batch) if known is None else known[number % len(known)])
        self.settings.append(settings_of(self.context.optimizer))

    def after(self) -> None:
        """Train again: as it was, with the textbook loss, with permuted labels."""
        assert self.start is not None
        assert self.again is not None
        if not self.again.same_groups(self.context.optimizer):
            raise LeftOut("the optimizer was given other tensors in the run: it cannot be repeated")
        context, task = self.context, self.context.reader.task
        distinct = list({id(b): b for b in self.batches}.values())
        orders = [self._permuted(distinct, seed) for seed in range(PERMUTATIONS)]
        changed = [
            sum(int((split(o)[1] != split(b)[1]).sum()) for o, b in zip(order, distinct, strict=True))
            / max(1, sum(int(counted(task, split(b)[1]).sum()) for b in distinct))
            for order in orders
        ]
        if sum(changed) / len(changed) < LEAST_CHANGED:
            raise LeftOut("the labels are all but the same: permuting them changes next to nothing")
        self._labels_matter(distinct, orders)
        looked_at = self._looked_at(distinct)
        held = [to_device(b, context.device) for b in first_rows(context.held_out or (), HELD_OUT)]

        def ended(fitted: Sequence[Any], first: float) -> Rerun:
            assert self.start is not None
            return Rerun(first, score(context, fitted), score(context, held) if held else None, self.start.moved())

        now = ended(looked_at, math.nan)
        with self.start.again():
            self.start.put_back()
            run = dataclasses.replace(now, start=score(context, looked_at).loss)
            true = self._train(self._sequence(distinct, distinct), self._own, looked_at, ended)
            textbook: Rerun | None = None
            firsts: tuple[float | None, float | None] = (None, None)
            if task is not None and (context.reader.loss_fn is not None or context.reader._own_loss):
                firsts = self._firsts()
                textbook = self._train(self._sequence(distinct, distinct), self._textbook, looked_at, ended)
            permuted = [
                self._train(self._sequence(distinct, order), self._own, self._looked_at(order), ended)
                for order in orders
            ]
        self.found = Permuted(
            steps=len(self.batches),
            rows=sum(rows_of(b) for b in distinct),
            looked_at=sum(rows_of(b) for b in looked_at),
            held_out_rows=sum(rows_of(b) for b in held),
            changed=sum(changed) / len(changed),
            prior=_prior(task, looked_at),
            held_out_prior=_prior(task, held) if held else None,
            run=run,
            true=true,
            permuted=tuple(permuted),
            textbook=textbook,
            own_first=firsts[0],
            textbook_first=firsts[1],
            baseline=_baseline(task, held),
        )
        self.start, self.again, self.batches = None, None, []

    def record(self) -> Permuted | None:
        """What was measured."""
        return self.found

    # ------------------------------------------------------------------ labels
    def _permuted(self, batches: Sequence[Any], seed: int) -> list[Any]:
        """The same batches, their labels dealt out among all rows (all tokens, where each has one) at random."""
        task = self.context.reader.task
        labels = [split(b)[1] for b in batches]
        if not all(isinstance(y, torch.Tensor) and y.dim() for y in labels):
            raise LeftOut("the labels cannot be seen in all batches")
        # of tags and of several numbers a whole row is dealt out, of tokens each that counts
        single = task == "single_label" or all(y.dim() == 1 for y in labels)
        keep = [counted(task, y) if single else torch.ones(len(y), dtype=torch.bool, device=y.device) for y in labels]
        pool = torch.cat([y[k] for y, k in zip(labels, keep, strict=True)])
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
        dealt = pool[order.to(pool.device)]
        out, at = [], 0
        for batch, y, k in zip(batches, labels, keep, strict=True):
            new = y.clone()
            count = int(k.sum())
            new[k] = dealt[at : at + count]
            at += count
            out.append(with_labels(batch, new))
        return out

    def _labels_matter(self, batches: Sequence[Any], orders: Sequence[Sequence[Any]]) -> None:
        reader = self.context.reader
        with quiet(self.context.model):
            for other in orders:
                for a, b in zip(batches[:2], other[:2], strict=True):
                    values = []
                    for batch in (a, b):
                        seed_everything(0)
                        values.append(float(reader.loss(to_device(batch, self.context.device))[0]))
                    if values[0] != values[1]:
                        return
        raise LeftOut("the loss does not depend on the labels in the batches: others would change nothing")

    def _looked_at(self, batches: Sequence[Any]) -> list[Any]:
        return [to_device(b, self.context.device) for b in first_rows(batches, LOOKED_AT)]

    def _sequence(self, distinct: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        """The batches of the run in their order, each in its other form."""
        other = {id(b): o for b, o in zip(distinct, others, strict=True)}
        return [other[id(b)] for b in self.batches]

    # ------------------------------------------------------------------ the training
    def _own(self, batch: Any) -> torch.Tensor:
        return torch.as_tensor(self.context.reader.loss(batch)[0])

    def _textbook(self, batch: Any) -> torch.Tensor:
        logits = logits_for(self.context.reader, batch)
        if logits is None:
            raise LeftOut("no outputs to compare with the labels")
        return self.context.reader.reference(logits.float(), split(batch)[1])

    def _firsts(self) -> tuple[float, float]:
        """Own and textbook loss of the first batch before the first step, dropout off."""
        assert self.start is not None
        self.start.put_back()
        batch = to_device(self.batches[0], self.context.device)
        with quiet(self.context.model):
            seed_everything(0)
            return float(self._own(batch)), float(self._textbook(batch))

    def _train(
        self,
        batches: Sequence[Any],
        loss_of: Callable[[Any], torch.Tensor],
        looked_at: Sequence[Any],
        ended: Callable[[Sequence[Any], float], Rerun],
    ) -> Rerun:
        """One training from the start; every one draws the same random numbers."""
        assert self.start is not None
        assert self.again is not None
        context, parameters, again = self.context, self.start.parameters, self.again
        self.start.put_back()
        first = score(context, looked_at).loss
        seed_everything(context.recipe.seed)
        again.begin()
        with torch.enable_grad():
            for batch, settings in zip(batches, self.settings, strict=True):
                self.deadline.look()
                told: list[float] = []

                def backward(batch: Any = batch, told: list[float] = told) -> torch.Tensor:
                    with torch.enable_grad(), casting(context):
                        loss = loss_of(to_device(batch, context.device))
                    gradients = gradients_of(loss, parameters)
                    if not again.closure:  # as in our own loop
                        clip(gradients, context.recipe.max_grad_norm)
                    for p, g in zip(parameters, gradients, strict=True):
                        p.grad = g
                    told.append(float(loss.detach()))
                    return loss.detach()

                with torch.no_grad() if not again.closure else torch.enable_grad():
                    again.step(settings, backward)
                if told and not math.isfinite(told[-1]):
                    break
        for p in parameters:
            p.grad = None
        return ended(looked_at, first)


def _prior(task: str | None, batches: Sequence[Any]) -> float | None:
    return blind_loss(task, [split(b)[1] for b in batches]) if task is not None else None


def _baseline(task: str | None, held: Sequence[Any]) -> float | None:
    labels = [split(b)[1] for b in held]
    if not labels or task not in ("single_label", "multi_label"):
        return None
    if task == "multi_label":
        on = torch.cat([y.float() for y in labels]).mean(0)
        return float(torch.maximum(on, 1 - on).mean())
    flat = torch.cat([y[counted(task, y)].reshape(-1) for y in labels])
    counts = torch.unique(flat, return_counts=True)[1]
    return float(counts.max() / counts.sum()) if len(counts) else None
