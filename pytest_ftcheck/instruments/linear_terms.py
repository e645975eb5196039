"""What a loss that is backpropagated holds beside the terms that it was made from: a part without a gradient, if it is linear in them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

#: Autograd nodes that are looked at, at most: a loss is made from a handful of terms.
NODES = 200
#: Autograd nodes that only put numbers into another shape or type, without the ``Backward`` and the number at the end of their names.
RESHAPES = (
    "View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "ToCopy", "Clone", "Alias", "Expand", "Permute", "Transpose",
)  # fmt: skip
#: Names of nodes that are linear in their one input with a gradient, without the number at their end.
_LINEAR = frozenset(
    f"{name}Backward"
    for name in (
        *("Add", "Sub", "Rsub", "Neg", "Sum", "Mean", "Stack", "Cat"),
        *(*RESHAPES, "T"),
        *("Select", "Index", "Slice", "MaskedSelect"),
    )
)
#: Linear where only the first input has a gradient, or only one of the two.
_DIVISION, _PRODUCT = "DivBackward", "MulBackward"


def is_linear(root: Any, terms: Mapping[Any, Any]) -> bool:
    """Whether a loss is a linear function of some terms, and nothing else in it has a gradient.

    :param root: autograd node of the loss.  :param terms: those of the terms.

    >>> w = torch.ones(2, requires_grad=True)
    >>> a, b = (w * 2).sum(), (w**2).sum()
    >>> known = {a.grad_fn: 1}
    >>> [is_linear(loss.grad_fn, known) for loss in (a / 4 + b.detach(), a + b, a * a, 1 / a, a.exp())]
    [True, False, False, False, False]
    """
    seen, queue = {root}, deque([root])
    while queue:
        node = queue.popleft()
        if node in terms:
            continue
        with_gradient = [i for i, (following, _) in enumerate(node.next_functions) if following is not None]
        name = node.name().rstrip("0123456789")
        product = name == _PRODUCT and len(with_gradient) == 1
        if not (name in _LINEAR or product or (name == _DIVISION and with_gradient == [0])) or not with_gradient:
            return False
        for i in with_gradient:
            following = node.next_functions[i][0]
            if following not in seen:
                seen.add(following)
                queue.append(following)
        if len(seen) > NODES:
            return False
    return True


class Term:
    """A term of a loss: its value, and the gradient that arrives at it."""

    def __init__(self, value: torch.Tensor) -> None:
        self._value = value.detach().clone()  # it may be changed in place before backward()
        self._gradient: torch.Tensor | None = None
        value.register_hook(self._note)  # type: ignore[no-untyped-call]

    def _note(self, gradient: torch.Tensor) -> None:
        """A hook; the gradient is not changed."""
        self._gradient = gradient.detach()

    def negative(self) -> bool:
        """Whether it is maximised, in all rows if it has one a row."""
        g = self._gradient
        return g is not None and bool((g <= 0).all()) and bool((g < 0).any())

    def share(self) -> float | None:
        """What it contributes to a loss that is linear in it; None: no gradient arrived."""
        g = self._gradient
        return None if g is None else float((g.double() * self._value.double()).sum())
