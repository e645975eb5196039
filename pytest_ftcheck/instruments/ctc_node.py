"""What a CTC loss was given, read off the autograd node that it left."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

#: Autograd nodes that are looked at behind a loss, the nearest first: a mean, a division by lengths, a sum with another term.
NODES = 64


class CtcGiven(NamedTuple):
    """The arguments of one call."""

    #: Labels within the target lengths, and how many of them are the blank.
    targets: int
    blanks: int
    #: Largest logarithm, in absolute value, of the sum of the probabilities of a frame: 0 for log-probabilities.
    log_mass: float


def ctc_behind(loss: torch.Tensor) -> CtcGiven | None:
    """The arguments of the CTC loss that a loss was computed from; None: there is none.

    >>> z = torch.zeros(5, 1, 3, requires_grad=True)
    >>> ctc_behind(torch.nn.functional.ctc_loss(z.log_softmax(-1), torch.tensor([[2, 0]]), (5,), (2,)))
    CtcGiven(targets=2, blanks=1, log_mass=0.0)
    """
    first = loss.grad_fn
    seen, queue = {first}, deque([first] if first is not None else [])
    while queue and len(seen) < NODES:
        node: Any = queue.popleft()
        if "CtcLoss" in node.name():
            return _given(node)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)
    return None


def _given(node: Any) -> CtcGiven:
    counted = _counted(node._saved_targets, [int(n) for n in node._saved_target_lengths])
    log_probs: torch.Tensor = node._saved_log_probs.detach()
    mass = log_probs.float().logsumexp(-1).reshape(log_probs.shape[0], -1)
    frames = torch.as_tensor([int(n) for n in node._saved_input_lengths], device=mass.device)
    real = torch.arange(len(mass), device=mass.device)[:, None] < frames
    largest = float(mass[real].abs().max()) if bool(real.any()) else 0.0
    return CtcGiven(len(counted), int((counted == node._saved_blank).sum()), round(largest, 6))


def _counted(targets: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """The labels that count: all of one row after another, or the first of each row."""
    if targets.dim() == 1:
        return targets
    return torch.cat([row[:length] for row, length in zip(targets, lengths, strict=True)])
