"""What a row costs, and what all probes of a run may cost.

Counted in work, not in seconds, so that the same run has the same probes on every machine.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from .batches import tensors_in
from .undisturbed import parameters_of

#: Probes may cost this share of the training itself, in rows through a forward pass (a training row counts as three) ...
SHARE = 0.6
#: ... and this many floating-point operations in any case: somewhat more than a second on one core.
FREE = 4e10
#: A row of more floating-point operations is costly: some probes use fewer rows then. 5e8 parameters times tokens.
COSTLY = 1e9
#: Floating-point operations in a matrix product that take as long as the loss of one output does: its exponential, and memory that is
#: read and written several times. Measured by ``benchmarks/scale.py --loss``: cross-entropy takes 0.7 to 2.2 ns an output and forward
#: pass, on a core that does 35 to 70 operations a nanosecond.
PER_OUTPUT = 60.0
#: Floating-point operations in a matrix product that take as long as the calls that one parameter tensor costs in a forward pass, however
#: small it is. Measured by ``benchmarks/scale.py --calls``: 0.9e6 and 1.2e6 with 500 and 5,000 tensors. `FREE` pays for so many tensors.
PER_TENSOR, FREE_TENSORS = 1e6, 500


def row_work(model: nn.Module, tokens: int, outputs: int = 0) -> float:
    """Floating-point operations of one row through the model, and its loss.

    :param tokens: of a row.  :param outputs: numbers of a row in the logits: of a token-level head, outputs times tokens.
    """
    size = sum(p.numel() for p in parameters_of(model))
    return 2.0 * max(1, size) * max(1, tokens) + PER_OUTPUT * outputs


def call_work(model: nn.Module) -> float:
    """What the calls of one forward pass cost beyond the numbers, of a model with thousands of tensors, in floating-point operations.

    >>> call_work(nn.Linear(2, 2))
    0.0
    """
    return PER_TENSOR * max(0, len(parameters_of(model)) - FREE_TENSORS)


def allowance(model: nn.Module, rows: int, tokens: int, steps: int, outputs: int = 0) -> float:
    """Rows that all probes together may pass through the model.

    :param rows: of a training batch.  :param steps: of the training.  :param tokens, outputs: of a row, as for `row_work`.
    """
    return SHARE * 3 * rows * steps + FREE / (row_work(model, tokens, outputs) + call_work(model) / max(1, rows))


def tokens_of(batch: Any) -> int:
    """Tokens in a row: the width of the widest integer tensor of a batch; 1 where there is none."""
    widths = [math.prod(t.shape[1:]) for t in tensors_in(batch) if t.dim() >= 2 and not t.is_floating_point()]
    return max([1, *widths])
