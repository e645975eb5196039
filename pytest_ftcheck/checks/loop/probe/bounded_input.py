"""Between which numbers an input of a loss lies whatever the weights are, read off the operation that made it."""

from __future__ import annotations

from typing import Any

import torch

from ....instruments.linear_terms import RESHAPES
from ..record import Bounds

#: Lengths of vectors that were divided by their own: bfloat16 rounds each element by up to 0.4 %.
LENGTH = 0.01
#: Names of nodes whose numbers are some of those they are given.
_SELECTIONS = (*RESHAPES, "Diagonal", "Select", "Index", "Slice", "MaskedSelect")
#: Operations that hand numbers on, at most.
STEPS = 16
_SIGMOID, _TANH, _SUM, _PRODUCT, _MATRICES = (
    "SigmoidBackward",
    "TanhBackward",
    "SumBackward1",
    "MulBackward",
    "MmBackward",
)


def bounds_of(given: torch.Tensor) -> Bounds | None:
    """The bounds of a sigmoid, a tanh, or products of vectors of length 1; None: it is none of these.

    >>> a, b = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    >>> found = [bounds_of(x) for x in (a, a.sigmoid(), (a * b).sum(1), torch.cosine_similarity(a, b))]
    >>> [None if b is None else (b.kind, b.low, b.high) for b in found]
    [None, ('sigmoid', 0.0, 1.0), None, ('cosine', -1.0, 1.0)]
    """
    node: Any = given.grad_fn
    for _ in range(STEPS):
        if node is None or not node.name().startswith(_SELECTIONS):
            break
        node = node.next_functions[0][0]
    name = "" if node is None else node.name()
    if name.startswith(_SIGMOID):
        return Bounds("sigmoid", 0.0, 1.0)
    if name.startswith(_TANH):
        return Bounds("tanh", -1.0, 1.0)
    return Bounds("cosine", -1.0, 1.0) if _is_cosine(node, name) else None


def _is_cosine(node: Any, name: str) -> bool:
    if name.startswith(_MATRICES):
        return _are_units(node._saved_self, 1) and _are_units(node._saved_mat2, 0)
    if name != _SUM or len(node._saved_dim) != 1:
        return False
    product = node.next_functions[0][0]
    if product is None or not product.name().startswith(_PRODUCT):
        return False
    columns = len(node._saved_self_sym_sizes)
    dim = node._saved_dim[0]
    dim = dim - columns if dim < columns else dim - 2**64  # from the end; a negative one is kept as an unsigned number
    return _are_units(product._saved_self, dim) and _are_units(product._saved_other, dim)


def _are_units(vectors: torch.Tensor | None, dim: int) -> bool:
    """Whether all have length 1, and are longer than one number, which is 1 or -1 then."""
    if vectors is None or not vectors.numel() or vectors.shape[dim] < 2:
        return False
    lengths = vectors.detach().float().norm(dim=dim)
    return bool(((lengths - 1).abs() < LENGTH).all())
