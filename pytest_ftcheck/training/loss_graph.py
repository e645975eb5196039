"""What the autograd graph of a loss shows: whether there is one, and whether it is that of another loss."""

from __future__ import annotations

import re
from collections import deque
from typing import Any

import torch

from ..core.formatting import text_of

#: Nodes of the graph that are read, those nearest to the loss first: a loss function has a handful, and behind them comes the model.
NODES = 200
#: Standard loss, as `Reader` names it -> names of autograd nodes, one of which its graph contains.
NODES_OF_LOSS = {
    "cross-entropy of the logits": ("LogSoftmax", "Logsumexp", "CrossEntropy"),
    "binary cross-entropy of one logit": ("BinaryCrossEntropyWithLogits", "LogSigmoid"),
    "binary cross-entropy of the logits, one a tag": ("BinaryCrossEntropyWithLogits", "LogSigmoid"),
}
#: torch's message for a loss that is detached from the weights.
_NO_GRAPH = re.compile(r"does not require grad and does not have a grad_fn")


def has_no_graph(error: BaseException) -> bool:
    """Whether backward failed because the loss has no graph."""
    return isinstance(error, RuntimeError) and bool(_NO_GRAPH.search(text_of(error)))


def nodes_near(loss: Any) -> frozenset[str]:
    """Names of the autograd nodes nearest to a loss; empty for a number, or a loss without a graph.

    >>> loss = torch.nn.functional.binary_cross_entropy(torch.randn(3, requires_grad=True).sigmoid(), torch.ones(3))
    >>> sorted(nodes_near(loss))
    ['BinaryCrossEntropyBackward0', 'SigmoidBackward0', 'torch::autograd::AccumulateGrad']
    """
    first = loss.grad_fn if isinstance(loss, torch.Tensor) else None
    names: set[str] = set()
    known, queue = {first}, deque([first] if first is not None else [])
    while queue and len(known) <= NODES:
        node = queue.popleft()
        names.add(node.name())
        for following, _ in node.next_functions:
            if following is not None and following not in known:
                known.add(following)
                queue.append(following)
    return frozenset(names)


def differs_from(loss: str, nodes: frozenset[str]) -> str | None:
    """Why the loop's loss is not this standard loss, where its graph shows that; else None.

    :param nodes: as from `nodes_near`.

    >>> differs_from("cross-entropy of the logits", frozenset({"NllLossBackward0", "LogBackward0", "SoftmaxBackward0"}))
    "the loop's loss is not the cross-entropy of the logits, which probe_batch is read with: pass loss_fn=(model, batch) -> loss"
    """
    expected = NODES_OF_LOSS.get(loss)
    if not nodes or expected is None or any(part.lower() in name.lower() for part in expected for name in nodes):
        return None
    return f"the loop's loss is not the {loss}, which probe_batch is read with: pass loss_fn=(model, batch) -> loss"
