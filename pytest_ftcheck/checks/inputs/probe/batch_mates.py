"""The same rows in another order and batched with other rows: do their outputs stay the same?"""

from __future__ import annotations

import torch
from torch import nn

from ....instruments.batches import take_rows
from ....instruments.tokens import Tokens
from ..record import BatchMatesMeasurement
from .forward import ROUNDINGS, Forward, Pass, Sample, by_row


def measure_batch_mates(
    forward: Forward, sample: Sample, tokens: Tokens | None, whole: Pass
) -> BatchMatesMeasurement | str:
    """Half of the rows of ``whole``, in the opposite order and behind other rows; or why that was not measured."""
    half = len(sample.rows) // 2
    kept = list(range(half))[::-1]
    others = [r for r in range(sample.count) if r not in sample.rows] or sample.rows[half:]
    mates = [others[i % len(others)] for i in range(len(sample.rows) - half)]
    chosen = [*mates, *(sample.rows[k] for k in kept)]
    chosen_tokens = None if sample.tokens is None else sample.tokens.of(chosen)
    changed = forward.run(take_rows(sample.batch, chosen), chosen_tokens)
    output = forward.effect(whole.logits[kept], changed.logits[len(mates) :], whole.logits)
    if output is None:
        return "the outputs are not finite"
    base_output = None
    if tokens is not None and whole.call and changed.call:
        before, after = whole.call.hidden, changed.call.hidden
        if before is not None and after is not None:
            before, after = by_row(before, tokens), by_row(after, chosen_tokens)
            base_output = forward.effect(before[kept], after[len(mates) :], before)
    base, library = (forward.base.name, forward.base.library) if forward.base else (None, False)
    reordered = _reordered(whole.logits, changed.logits, kept, ROUNDINGS * forward.precision * output.scale)
    statistics = _batch_statistics(forward.model)
    return BatchMatesMeasurement(half, output, base_output, base, library, statistics, reordered)


def _reordered(before: torch.Tensor, after: torch.Tensor, kept: list[int], rounding: float) -> bool:
    """Whether the outputs of the rows that both batches have are in both, but not at their places.

    :param kept: places in ``before`` of the rows that stand last in ``after``.
    """
    if before.shape[1:] != after.shape[1:] or len(before) < 2:
        return False
    same = (before[:, None].double() - after[None].double()).abs().amax(-1) <= rounding
    alike = (before[:, None].double() - before[None].double()).abs().amax(-1) <= rounding
    if int(alike.sum()) > len(before):  # equal outputs could be anybody's
        return False
    places = [(k, len(after) - len(kept) + i) for i, k in enumerate(kept)]
    return int(same.any(1).sum()) >= len(kept) and not all(bool(same[a, b]) for a, b in places)


def _batch_statistics(model: nn.Module) -> tuple[str, ...]:
    """Layers that normalise over the batch in evaluation mode, too."""
    kinds = (nn.modules.batchnorm._BatchNorm,)
    return tuple(n for n, m in model.named_modules() if isinstance(m, kinds) and m.running_mean is None)
