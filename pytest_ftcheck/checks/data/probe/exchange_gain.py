"""Does a trained model prefer the labels of held-out rows to those of other rows?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ....instruments.batches import placed_tensors, rows_of, split, take_rows, to_device, with_values
from ....instruments.reader import Reader
from ....instruments.tasks import IGNORED
from ....instruments.tokens import find_tokens
from ....instruments.undisturbed import quiet

#: Rows that pass through the model, at most; rows that are compared, at least.
MOST_PASSES, LEAST_ROWS = 64, 8


def measure_answer_gain(
    reader: Reader, batches: Sequence[Any], device: torch.device, pad_token_id: int | None
) -> float | None:
    """Standard errors by which the log-likelihood of both places of an answer is higher than that of the next row's of the same length.

    In nats, dropout off; without dependence the mean difference is 0. None: fewer than 8 rows have another one of their length, or the
    logits cannot be read.
    """
    of_length: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    passed = 0
    with quiet(reader.model):
        for batch in batches:
            rows = min(rows_of(batch), MOST_PASSES - passed)
            if not rows:
                break
            passed += rows
            own = to_device(take_rows(batch, range(rows)), device)
            logits, labels, tokens = reader.logits(own), split(own)[1], find_tokens(own, pad_token_id)
            if logits is None or tokens is None or logits.shape[:2] != labels.shape:
                return None
            scores = logits.float().log_softmax(-1).cpu()
            for score, places, length in zip(scores, labels.cpu(), tokens.ends.tolist(), strict=True):
                if bool(((places >= 0) & (places < length)).all()):
                    of_length.setdefault(length, []).append((score, places))
    differences = []
    for group in of_length.values():
        for (score, own_places), (_, other) in zip(group, [*group[1:], group[0]], strict=True):
            if len(group) > 1:
                differences.append(
                    float((score.gather(1, own_places[:, None]) - score.gather(1, other[:, None])).sum())
                )
    return _standard_errors(differences)


def measure_source_gain(reader: Reader, batches: Sequence[Any], device: torch.device) -> float | None:
    """Standard errors by which the log-likelihood of targets is higher given their own sources than given those of the next rows.

    The difference of each row is a sum over its tokens, in nats, dropout off; without dependence its mean is 0. None: fewer than 8 rows in
    batches of two or more, or logits that cannot be read.
    """
    differences: list[float] = []
    with quiet(reader.model):
        for batch in batches:
            rows = min(rows_of(batch), MOST_PASSES // 2 - len(differences))
            if rows < 2:
                continue
            own = to_device(take_rows(batch, range(rows)), device)
            likelihoods = [_log_likelihoods(reader, b) for b in (own, _with_other_sources(own, rows))]
            if likelihoods[0] is None or likelihoods[1] is None:
                return None
            differences += (likelihoods[0] - likelihoods[1]).tolist()
    return _standard_errors(differences)


def _standard_errors(differences: list[float]) -> float | None:
    """The mean in units of its standard error."""
    if len(differences) < LEAST_ROWS:
        return None
    values = torch.tensor(differences, dtype=torch.float64, device="cpu")
    error = float(values.std()) / math.sqrt(len(values))
    return float(values.mean()) / error if error > 0 else 0.0


def _with_other_sources(batch: Any, rows: int) -> Any:
    """The same targets, each with the inputs of the next row; what the decoder is given stays with its target."""
    labels = split(batch)[1]
    changes = {
        path: value.roll(-1, 0)
        for path, value in placed_tensors(batch)
        if value.dim() and len(value) == rows and value is not labels and not _of_target(path)
    }
    return with_values(batch, changes)


def _of_target(path: Sequence[Any]) -> bool:
    return any(str(part).startswith("decoder") or str(part) in ("labels", "label") for part in path)


def _log_likelihoods(reader: Reader, batch: Any) -> torch.Tensor | None:
    """Of each row's target, a sum over its tokens."""
    logits, labels = reader.logits(batch), split(batch)[1]
    if logits is None or not isinstance(labels, torch.Tensor) or logits.shape[:-1] != labels.shape:
        return None
    targets = reader.targets(labels)
    counted = targets != IGNORED
    chosen = logits.float().log_softmax(-1).gather(-1, torch.where(counted, targets, 0)[..., None])[..., 0]
    return torch.where(counted, chosen, 0.0).sum(-1).cpu()
