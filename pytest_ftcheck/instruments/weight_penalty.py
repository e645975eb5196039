"""Whether a loss is a penalty of the weights alone: no input of the model and no label can be in it."""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import nn

from .linear_terms import RESHAPES

#: Autograd nodes that are looked at, at most: a penalty has about three a tensor, and models have thousands of tensors.
NODES = 20_000
#: Names of nodes that take nothing but their inputs with a gradient, and constants; without the number at their end.
_LINEAR = {
    f"{name}Backward"
    for name in (*RESHAPES, "T", "Add", "Sub", "Rsub", "Neg", "Mul", "Div", "Sum", "Mean", "Stack", "Cat")
}
_OTHERS = {f"{name}Backward" for name in ("Pow", "Sqrt", "Abs", "Norm", "LinalgVectorNorm")}
_LEAF = "torch::autograd::AccumulateGrad"


def is_weight_penalty(root: Any, model: nn.Module) -> bool:
    """Whether a loss is a sum of norms, powers and the like of the model's parameters, and of nothing else; False: that is not certain.

    Numbers without a gradient may be added to its terms, or multiply them. Where they might be inputs, it is not certain.

    :param root: autograd node of the loss.

    >>> import torch
    >>> layer = nn.Linear(2, 2)
    >>> penalty = 1e-2 * sum((p**2).sum() for p in layer.parameters())
    >>> output = layer(torch.ones(1, 2))
    >>> [is_weight_penalty(x.grad_fn, layer) for x in (penalty, penalty + 1, output.sum(), output.sum() + penalty)]
    [True, True, False, False]
    >>> elsewhere = (layer.weight * torch.ones(2)).sum()
    >>> is_weight_penalty(elsewhere.grad_fn, layer)
    False
    """
    if root is None:
        return False
    weights = {id(p) for p in model.parameters()}
    # whether all between the loss and a node is linear: then a number without a gradient is no more than a constant
    first = (root, True)
    seen, queue = {first}, deque([first])
    while queue:
        node, linear = queue.popleft()
        if node.name() == _LEAF:
            if id(node.variable) not in weights:
                return False
            continue
        name = node.name().rstrip("0123456789")
        if name not in _LINEAR and name not in _OTHERS:
            return False
        behind = [following for following, _ in node.next_functions if following is not None]
        constants = len(behind) < len(node.next_functions)
        if not behind or (constants and not (linear and name in _LINEAR and _is_number(node))):
            return False
        # a product, or a quotient, of two parts with a gradient is not linear in them
        linear = linear and name in _LINEAR and not (name in ("MulBackward", "DivBackward") and not constants)
        for following in behind:
            if (following, linear) not in seen:
                seen.add((following, linear))
                queue.append((following, linear))
        if len(seen) > NODES:
            return False
    return True


def _is_number(node: Any) -> bool:
    """Whether what an autograd node belongs to is a single number, so that all its inputs are."""
    made: Any = getattr(node, "_input_metadata", None)
    return bool(made) and not tuple(made[0].shape)
