"""The same rows in another order and batched with other rows: do their outputs stay the same?"""

from __future__ import annotations

from torch import nn

from ....instruments.batches import take_rows
from ....instruments.tokens import Tokens
from ..record import BatchMatesMeasurement
from .forward import Forward, Pass, Sample, by_row


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
    return BatchMatesMeasurement(half, output, base_output, base, library, _batch_statistics(forward.model))


def _batch_statistics(model: nn.Module) -> tuple[str, ...]:
    """Layers that normalise over the batch in evaluation mode, too."""
    kinds = (nn.modules.batchnorm._BatchNorm,)
    return tuple(n for n, m in model.named_modules() if isinstance(m, kinds) and m.running_mean is None)
