"""The user's own metric beside reference metrics, and beside common mistakes, on the same held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ....instruments.fixed_rows import BatchRefused, gather_logits, joined
from ....instruments.metrics import cut_of, predictions, references
from ....instruments.reader import Reader
from ....instruments.task_readers.class_probabilities import ONE_CLASS, most_probable
from ....instruments.tasks import IGNORED
from ..record import Evaluation

#: Logits and labels of one batch.
Pair = tuple[torch.Tensor, torch.Tensor]


class HeldOutLogits:
    """Logits of the held-out rows, batch by batch, before and after the run."""

    def __init__(self, model: nn.Module, reader: Reader, batches: Sequence[Any], rows: int) -> None:
        self.model, self.reader, self.batches, self.rows = model, reader, batches, rows
        self.collected: list[list[Pair]] = []

    def collect(self) -> None:
        """Compute the logits of all held-out rows, dropout off."""
        try:
            pairs = [gather_logits(self.model, self.reader, [batch]) for batch in self.batches]
        except BatchRefused as refused:
            raise refused.error from None
        self.collected.append([pair for pair in pairs if pair is not None])

    def evaluation(self, evaluated: tuple[float, float] | None) -> Evaluation | None:
        """The user's metric beside references; None where there is nothing to compare.

        :param evaluated: what the user's ``evaluate`` gave before and after.
        """
        task = self.reader.task
        if evaluated is None or task is None or len(self.collected) != 2 or not all(self.collected):
            return None
        before, after = (_joined(pairs) for pairs in self.collected)
        if before is None or after is None:
            return None
        (first, labels), (last, _) = before, after
        cut = cut_of(first, last)
        first_references, last_references = references(task, first, labels, cut), references(task, last, labels, cut)
        first_mistakes, last_mistakes = (mistakes(task, pairs) for pairs in self.collected)
        changed = baseline = None
        task, labels = most_probable(task, labels)
        if task == "single_label":
            keep = labels.reshape(-1) != IGNORED
            first_guess, last_guess = (predictions(task, x, cut).reshape(-1)[keep] for x in (first, last))
            changed = float((first_guess != last_guess).float().mean())
            counts = torch.bincount(labels.reshape(-1)[keep].long())
            baseline = float(counts.max() / counts.sum())
        elif task == "multi_label":
            changed = float((predictions(task, first, cut) != predictions(task, last, cut)).float().mean())
            on = labels.float().mean(0)
            baseline = float(torch.maximum(on, 1 - on).mean())
        return Evaluation(
            rows=len(labels),
            first=evaluated[0],
            last=evaluated[1],
            references={k: (first_references[k], last_references[k]) for k in first_references},
            mistakes={k: (first_mistakes[k], last_mistakes[k]) for k in first_mistakes if k in last_mistakes},
            changed=changed,
            baseline=baseline,
            batches=len(self.collected[0]),
        )


def _joined(pairs: Sequence[Pair]) -> Pair | None:
    try:
        logits, labels = joined([x for x, _ in pairs], [y for _, y in pairs])
    except RuntimeError:  # of different forms
        return None
    if logits.dim() > 2:  # one label a token
        labels = labels.reshape(-1, *labels.shape[logits.dim() - 1 :])
        logits = logits.reshape(-1, logits.shape[-1])
    return logits, labels


def mistakes(task: str, pairs: Sequence[Pair]) -> dict[str, float]:
    """What common mistakes make of the accuracy, computed batch by batch as in an evaluation loop."""
    pairs = [(x, most_probable(task, y)[1]) for x, y in pairs]
    if task not in ONE_CLASS or any(x.dim() != 2 or y.dim() != 1 or x.shape[1] < 2 for x, y in pairs):
        return {}
    over_rows = over_all = compared = over_argmin = rows = 0
    all_pairs: list[float] = []
    for logits, labels in pairs:
        across = logits.argmax(0)
        size = min(len(across), len(labels))
        over_rows += int((across[:size] == labels[:size]).sum())
        compared += size
        over_all += int((logits.argmax() == labels).sum())
        all_pairs.append(float((logits.argmax(1)[:, None] == labels[None, :]).float().mean()))
        over_argmin += int((logits.argmin(1) == labels).sum())
        rows += len(labels)
    return {
        "argmax over the rows of a batch instead of the classes": over_rows / max(1, compared),
        "argmax over the rows of a batch instead of the classes, divided by all rows": over_rows / max(1, rows),
        "argmax without a dimension: one position in the whole batch": over_all / max(1, rows),
        "every prediction compared with every label": float(np.mean(all_pairs)),
        "argmin instead of argmax": over_argmin / max(1, rows),
    }
