"""Tensors for which the optimizer found the gradient of another tensor of the same shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..record import Exchange

#: From this cosine on a gradient is the tensor's own (the limit of `grads_match_reference`); ...
SAME = 0.999
#: ... below it is that of another tensor if 1 - cosine is at most this share of what it is for its own.
NEARER = 0.1


def exchanged(
    names: Sequence[str],
    shapes: Sequence[torch.Size],
    actual: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
) -> tuple[Exchange, ...]:
    """Which gradients are those of another tensor.

    Chance cannot do this: random directions in n dimensions have a cosine of 1/sqrt(n). Two tensors whose own gradients are alike (biases
    that are added in one place) are left out, for what was found is then the tensor's own, too.

    :param names, shapes: of each tensor.
    :param actual, reference: what the optimizer found and what was recomputed: the same elements of all tensors of one shape, flat.

    >>> a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, -1.0, 0.5])
    >>> shapes = [torch.Size([3])] * 2
    >>> [(e.tensor, e.of) for e in exchanged(["a", "b"], shapes, [b, a], [a, b])]
    [('a', 'b'), ('b', 'a')]
    >>> exchanged(["a", "b"], shapes, [a, 2 * b], [a, b])
    ()
    """
    found = []
    for i, name in enumerate(names):
        own = _cosine(actual[i], reference[i])
        if own >= SAME:
            continue
        others = [j for j, shape in enumerate(shapes) if j != i and shape == shapes[i]]
        scores = [(_cosine(actual[i], reference[j]), names[j]) for j in others]
        best = max(scores, default=(0.0, ""))
        if 1 - best[0] <= NEARER * (1 - own):
            found.append(Exchange(name, best[1], own, best[0]))
    return tuple(found)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    length = float(a.norm() * b.norm())
    return max(-1.0, min(1.0, float(a @ b) / length)) if length > 0 else 0.0
