"""The run again, from the same start, with the labels permuted among the rows: does the run do better than that?

Comparing a training with trainings on permuted labels is the permutation test of Ojala and Garriga, JMLR 11 (2010), and the
randomisation of Zhang et al., "Understanding deep learning requires rethinking generalization", ICLR 2017.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ....instruments.batches import own_copy, split, to_device, with_labels
from ....instruments.global_state import seed_everything
from ....instruments.model_outputs import as_loss
from ....instruments.probe import LeftOut, Probe, ProbeContext
from ....instruments.row_hashes import RowReader, Rows
from ....instruments.task_readers.class_probabilities import ONE_CLASS, most_probable
from ....instruments.undisturbed import quiet
from ...head.probe.head import first_rows, rows_of
from ..record import Permuted, Rerun
from .rerun import (
    Deadline,
    InitialState,
    OptimizerCopy,
    casting,
    clip,
    constant_prediction_loss,
    counted,
    gradients_of,
    logits_for,
    score,
    settings_of,
)

#: Trainings with permuted labels: enough for a prediction interval, and each costs what the run did.
PERMUTATIONS = 6
#: Rows scored afterwards, of those trained on and of those held out, at most.
SCORED, HELD_OUT = 256, 512
#: Least share of the labels that the permutations must change, for the trainings to differ.
LEAST_LABELS_CHANGED = 0.1


class PermutedProbe(Probe):
    """The run repeated with true and with permuted labels."""

    name = "permuted"
    order = 90
    default = False

    def __init__(self, context: ProbeContext) -> None:
        super().__init__(context)
        if not context.recipe_loop:
            raise LeftOut(
                "the loop is your own, and only a loop of ours can be run again with other labels (leave step= out)"
            )
        if context.recipe.autocast == "float16" and context.device.type == "cuda":
            raise LeftOut("runs under a GradScaler are not repeated: autocast='bfloat16' needs none")
        if not isinstance(split(context.fixed_batches[0])[1], torch.Tensor):
            raise LeftOut(
                "the labels cannot be found in the batches: give (inputs, labels), or a mapping with the key 'labels'"
            )
        self.deadline = Deadline(context.recipe.max_seconds)
        self.start: InitialState | None = None
        self.optimizer: OptimizerCopy | None = None
        self.batches: list[Any] = []
        self.contents: list[list[bytes]] = []
        self.distinct_rows = 0
        self.settings: list[list[dict[str, Any]]] = []
        self.permuted: Permuted | None = None

    def cost(self) -> float:
        """A training for each permutation, and one or two with the true labels."""
        return 3.0 * rows_of(self.context.fixed_batches[0]) * self.context.steps * (PERMUTATIONS + 2)

    def before(self) -> None:
        """Keep the initial values of the trainable weights, and a copy of the optimizer."""
        self.start = InitialState(self.context.model)
        self.optimizer = OptimizerCopy(self.context.optimizer, self.start.parameters)

    def iteration(self, number: int, batch: Any) -> None:
        """Keep the batch, and the optimizer's settings."""
        known = self.context.batches.list
        # a list can be read again, and the same rows keep their labels from one epoch to the next
        self.batches.append(own_copy(batch) if known is None else known[number % len(known)])
        self.settings.append(settings_of(self.context.optimizer))

    def after(self) -> None:
        """Train again: as before, with the standard loss, with permuted labels."""
        assert self.start is not None
        assert self.optimizer is not None
        if not self.optimizer.same_groups(self.context.optimizer):
            raise LeftOut("the optimizer's tensors changed in the run, so it cannot be repeated")
        context, task = self.context, self.context.reader.task
        distinct = list({id(b): b for b in self.batches}.values())
        self.contents = self._row_contents(distinct)
        orders = [self._permuted(distinct, seed) for seed in range(PERMUTATIONS)]
        changed = [
            sum(int((split(o)[1] != split(b)[1]).sum()) for o, b in zip(order, distinct, strict=True))
            / max(1, sum(int(counted(task, split(b)[1]).sum()) for b in distinct))
            for order in orders
        ]
        if sum(changed) / len(changed) < LEAST_LABELS_CHANGED:
            raise LeftOut("the labels are almost all the same, so permuting them changes next to nothing")
        self._require_use_of_labels(distinct, orders)
        scored = self._scored(distinct)
        held = [to_device(b, context.device) for b in first_rows(context.held_out or (), HELD_OUT)]

        def ended(fitted: Sequence[Any], first: float) -> Rerun:
            assert self.start is not None
            return Rerun(
                first, score(context, fitted), score(context, held) if held else None, self.start.displacement()
            )

        now = ended(scored, math.nan)
        with self.start.retraining():
            self.start.restore()
            run = dataclasses.replace(now, start=score(context, scored).loss)
            true = self._train(self._sequence(distinct, distinct), self._own, scored, ended)
            standard: Rerun | None = None
            firsts: tuple[float | None, float | None] = (None, None)
            if task is not None and (context.reader.loss_fn is not None or context.reader.uses_own_loss):
                firsts = self._firsts()
                standard = self._train(self._sequence(distinct, distinct), self._standard, scored, ended)
            permuted = [
                self._train(self._sequence(distinct, order), self._own, self._scored(order), ended) for order in orders
            ]
        self.permuted = Permuted(
            steps=len(self.batches),
            rows=self.distinct_rows,
            scored_rows=sum(rows_of(b) for b in scored),
            held_out_rows=sum(rows_of(b) for b in held),
            changed=sum(changed) / len(changed),
            constant_loss=_constant_loss(task, scored),
            held_out_constant_loss=_constant_loss(task, held) if held else None,
            run=run,
            true=true,
            permuted=tuple(permuted),
            standard=standard,
            own_first=firsts[0],
            standard_first=firsts[1],
            baseline=_baseline(task, held),
        )
        self.start, self.optimizer, self.batches = None, None, []

    def record(self) -> Permuted | None:
        """What was measured."""
        return self.permuted

    # ------------------------------------------------------------------ labels
    def _permuted(self, batches: Sequence[Any], seed: int) -> list[Any]:
        """The same batches, their labels permuted among all distinct rows (all tokens, where each has one) at random.

        A row that comes in several epochs keeps its permuted label: with another one each time it could not be memorised, and the run
        with the true labels would do better merely because it can.
        """
        task = self.context.reader.task
        labels = [split(b)[1] for b in batches]
        if not all(isinstance(y, torch.Tensor) and y.dim() for y in labels):
            raise LeftOut("the labels cannot be found in all batches")
        # tags and several numbers are permuted by row, labels of tokens one by one where they count
        single = task == "single_label" or all(y.dim() == 1 for y in labels)
        keep = [counted(task, y) if single else torch.ones(len(y), dtype=torch.bool, device=y.device) for y in labels]
        pool = torch.cat([y[k] for y, k in zip(labels, keep, strict=True)])
        first, group = self._first_visits(pool, keep)
        order = torch.randperm(len(first), generator=torch.Generator().manual_seed(seed), device="cpu")
        permuted = pool[first][order.to(pool.device)][group]
        out, at = [], 0
        for batch, y, k in zip(batches, labels, keep, strict=True):
            new = y.clone()
            count = int(k.sum())
            new[k] = permuted[at : at + count]
            at += count
            out.append(with_labels(batch, new))
        return out

    def _row_contents(self, batches: Sequence[Any]) -> list[list[bytes]]:
        """A hash of the inputs of each row of each batch; empty for a batch that cannot be read by rows."""
        reader = RowReader(self.context.model, self.context.intent.pad_token_id)
        contents = []
        for batch in batches:
            rows = Rows()
            reader.read(batch, rows)
            contents.append(rows.contents)
        return contents

    def _first_visits(self, pool: torch.Tensor, keep: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Where in the pool of labels each distinct row (or token) with its label comes first; and which of them each label belongs to."""
        values = pool.reshape(len(pool), -1).cpu().numpy()
        index: dict[Any, int] = {}
        first: list[int] = []
        group: list[int] = []
        rows: set[Any] = set()
        for number, (kept, contents) in enumerate(zip(keep, self.contents, strict=True)):
            known = contents if len(contents) == len(kept) else []
            for place in torch.nonzero(kept.cpu()).tolist():
                row = known[place[0]] if known else (number, place[0])
                key = (row, tuple(place[1:]), values[len(group)].tobytes())
                if key not in index:
                    index[key] = len(first)
                    first.append(len(group))
                group.append(index[key])
                rows.add(row)
        self.distinct_rows = len(rows)
        return torch.tensor(first, device=pool.device), torch.tensor(group, device=pool.device)

    def _require_use_of_labels(self, batches: Sequence[Any], orders: Sequence[Sequence[Any]]) -> None:
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
        raise LeftOut("the loss does not depend on the labels in the batches, so other labels would change nothing")

    def _scored(self, batches: Sequence[Any]) -> list[Any]:
        return [to_device(b, self.context.device) for b in first_rows(batches, min(SCORED, self.distinct_rows))]

    def _sequence(self, distinct: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        """The batches of the run in their order, each with its other labels."""
        other = {id(b): o for b, o in zip(distinct, others, strict=True)}
        return [other[id(b)] for b in self.batches]

    # ------------------------------------------------------------------ the training
    def _own(self, batch: Any) -> torch.Tensor:
        return as_loss(self.context.reader.loss(batch)[0])

    def _standard(self, batch: Any) -> torch.Tensor:
        logits = logits_for(self.context.reader, batch)
        if logits is None:
            raise LeftOut("there are no outputs to compare with the labels")
        return self.context.reader.reference(logits.float(), split(batch)[1])

    def _firsts(self) -> tuple[float, float]:
        """Own and standard loss of the first batch before the first step, dropout off."""
        assert self.start is not None
        self.start.restore()
        batch = to_device(self.batches[0], self.context.device)
        with quiet(self.context.model):
            seed_everything(0)
            return float(self._own(batch)), float(self._standard(batch))

    def _train(
        self,
        batches: Sequence[Any],
        loss_of: Callable[[Any], torch.Tensor],
        scored: Sequence[Any],
        ended: Callable[[Sequence[Any], float], Rerun],
    ) -> Rerun:
        """One training from the start; all use the same random numbers."""
        assert self.start is not None
        assert self.optimizer is not None
        context, parameters, optimizer = self.context, self.start.parameters, self.optimizer
        self.start.restore()
        first = score(context, scored).loss
        seed_everything(context.recipe.seed)
        optimizer.reset()
        with torch.enable_grad():
            for batch, settings in zip(batches, self.settings, strict=True):
                self.deadline.check()
                losses: list[float] = []

                def backward(batch: Any = batch, losses: list[float] = losses) -> torch.Tensor:
                    with torch.enable_grad(), casting(context):
                        loss = loss_of(to_device(batch, context.device))
                    gradients = gradients_of(loss, parameters)
                    if not optimizer.closure:  # as in our own loop
                        clip(gradients, context.recipe.max_grad_norm)
                    for p, g in zip(parameters, gradients, strict=True):
                        p.grad = g
                    losses.append(float(loss.detach()))
                    return loss.detach()

                with torch.no_grad() if not optimizer.closure else torch.enable_grad():
                    optimizer.step(settings, backward)
                if losses and not math.isfinite(losses[-1]):
                    break
        for p in parameters:
            p.grad = None
        return ended(scored, first)


def _constant_loss(task: str | None, batches: Sequence[Any]) -> float | None:
    return constant_prediction_loss(task, [split(b)[1] for b in batches]) if task is not None else None


def _baseline(task: str | None, held: Sequence[Any]) -> float | None:
    labels = [split(b)[1] for b in held]
    if not labels or task not in (*ONE_CLASS, "multi_label"):
        return None
    if task == "multi_label":
        on = torch.cat([y.float() for y in labels]).mean(0)
        return float(torch.maximum(on, 1 - on).mean())
    classes = [most_probable(task, y) for y in labels]
    flat = torch.cat([y[counted(task, y)].reshape(-1) for task, y in classes])
    counts = torch.unique(flat, return_counts=True)[1]
    return float(counts.max() / counts.sum()) if len(counts) else None
