"""Whether the loss that a watched loop tells can be the one that was read from the probe batch: its graph says what it is made of."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

#: Nodes looked at behind the loss, the nearest first: a loss function is a handful, and what follows is the model.
NODES = 200
#: What stands in the graph of each loss that we choose where the user has none (`batches.Reader`).
MARKS = {
    "cross-entropy of the logits": ("LogSoftmax", "Logsumexp", "CrossEntropy"),
    "binary cross-entropy of one logit": ("BinaryCrossEntropyWithLogits", "LogSigmoid"),
    "binary cross-entropy of the logits, one a tag": ("BinaryCrossEntropyWithLogits", "LogSigmoid"),
}


def ingredients(loss: Any) -> frozenset[str]:
    """Names of the autograd nodes next to a loss; empty for a number, or a loss without a graph.

    >>> loss = torch.nn.functional.binary_cross_entropy(torch.randn(3, requires_grad=True).sigmoid(), torch.ones(3))
    >>> sorted(ingredients(loss))
    ['BinaryCrossEntropyBackward0', 'SigmoidBackward0', 'torch::autograd::AccumulateGrad']
    """
    first = loss.grad_fn if isinstance(loss, torch.Tensor) else None
    names: set[str] = set()
    seen, queue = {first}, deque([first] if first is not None else [])
    while queue and len(seen) <= NODES:
        node = queue.popleft()
        names.add(node.name())
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)
    return frozenset(names)


def other_loss(read: str, names: frozenset[str]) -> str | None:
    """Why the loss that was read is not that of the loop, where the graph shows it; else None.

    >>> other_loss("cross-entropy of the logits", frozenset({"NllLossBackward0", "LogBackward0", "SoftmaxBackward0"}))
    "the loop's loss is not the cross-entropy of the logits that was read from probe_batch: pass loss_fn=(model, batch) -> loss"
    """
    marks = MARKS.get(read)
    if not names or marks is None or any(mark.lower() in name.lower() for mark in marks for name in names):
        return None
    return f"the loop's loss is not the {read} that was read from probe_batch: pass loss_fn=(model, batch) -> loss"
