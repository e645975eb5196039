"""The user's own metric beside reference metrics, and beside well-known mistakes, on the same held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ....instruments.batches import IGNORED, Reader
from ....instruments.fixed_batch import gather_logits
from ....instruments.metrics import cut_of, predictions, references
from ..record import Evaluation


class Scoring:
    """Logits of the held-out rows, batch by batch, before and after the run."""

    def __init__(self, model: nn.Module, reader: Reader, batches: Sequence[Any], rows: int) -> None:
        self.model, self.reader, self.batches, self.rows = model, reader, batches, rows
        self.looks: list[list[tuple[torch.Tensor, torch.Tensor]]] = []

    def look(self) -> None:
        """Evaluate, dropout off."""
        found = [gather_logits(self.model, self.reader, [batch]) for batch in self.batches]
        self.looks.append([pair for pair in found if pair is not None])

    def record(self, evaluated: tuple[float, float] | None) -> Evaluation | None:
        """The numbers side by side; None where there is nothing to compare."""
        task = self.reader.task
        if evaluated is None or task is None or len(self.looks) != 2 or not all(self.looks):
            return None
        both = [_joined(look) for look in self.looks]
        if any(pair is None for pair in both):
            return None
        (first, labels), (last, _) = both  # type: ignore[misc]
        cut = cut_of(first, last)
        before, after = references(task, first, labels, cut), references(task, last, labels, cut)
        wrong = [mistakes(task, look) for look in self.looks]
        changed = baseline = None
        if task == "single_label":
            keep = labels.reshape(-1) != IGNORED
            guesses = [predictions(task, x, cut).reshape(-1)[keep] for x in (first, last)]
            changed = float((guesses[0] != guesses[1]).float().mean())
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
            references={k: (before[k], after[k]) for k in before},
            mistakes={k: (wrong[0][k], wrong[1][k]) for k in wrong[0] if k in wrong[1]},
            changed=changed,
            baseline=baseline,
            batches=len(self.looks[0]),
        )


def _joined(look: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor] | None:
    logits, labels = [x for x, _ in look], [y for _, y in look]
    if logits[0].dim() > 2:  # one label a token
        logits, labels = [x.reshape(-1, x.shape[-1]) for x in logits], [y.reshape(-1) for y in labels]
    if len({x.shape[1:] for x in logits}) > 1 or len({y.shape[1:] for y in labels}) > 1:
        return None
    return torch.cat(logits), torch.cat(labels)


def mistakes(task: str, look: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """What accuracy becomes by mistakes that are often made, batch by batch as in an evaluation loop."""
    if task != "single_label" or any(x.dim() != 2 or y.dim() != 1 or x.shape[1] < 2 for x, y in look):
        return {}
    right = total = 0
    pairs: list[float] = []
    least = 0
    rows = 0
    for logits, labels in look:
        across = logits.argmax(0)
        size = min(len(across), len(labels))
        right += int((across[:size] == labels[:size]).sum())
        total += size
        guess = logits.argmax(1)
        pairs.append(float((guess[:, None] == labels[None, :]).float().mean()))
        least += int((logits.argmin(1) == labels).sum())
        rows += len(labels)
    return {
        "argmax over the rows of a batch instead of the classes": right / max(1, total),
        "argmax over the rows of a batch instead of the classes, over all rows": right / max(1, rows),
        "every prediction compared with every label": float(np.mean(pairs)),
        "argmin instead of argmax": least / max(1, rows),
    }
