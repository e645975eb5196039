"""Losses known by name, right ones and wrong ones, distinguished by the direction of their gradient with respect to the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F  # noqa: N812

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
#: A loss is known when the cosine of its gradient with the standard's is above this in every class: class weights and the
#: reduction change its length only. Different losses have 0.99 or less at logits of spread 1.5.
SAME = 0.9995
#: From here on the rest is rounding: no other loss is nearer.
EQUAL = 1 - 1e-9


def _hot(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.one_hot(y, z.shape[-1]).to(z.dtype)


def _bce(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(z, y.to(z.dtype))


def _bce_probability(p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy(p.clamp(1e-7, 1 - 1e-7), y.to(p.dtype))


#: One label a row, one logit a class.
SINGLE: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "bce_one_hot": lambda z, y: _bce(z, _hot(z, y)),
    "squared_probabilities": lambda z, y: F.mse_loss(z.softmax(-1), _hot(z, y)),
    "squared_logits": lambda z, y: F.mse_loss(z, _hot(z, y)),
    "double_softmax": lambda z, y: F.cross_entropy(z.softmax(-1), y),
    "sigmoid_before_cross_entropy": lambda z, y: F.cross_entropy(z.sigmoid(), y),
    "nll_on_raw_logits": F.nll_loss,
    "nll_on_probabilities": lambda z, y: F.nll_loss(z.softmax(-1), y),
    "nll_on_sigmoid": lambda z, y: F.nll_loss(z.sigmoid(), y),
    "softmax_over_batch": lambda z, y: F.nll_loss(z.log_softmax(0), y),
    "double_softmax_over_batch": lambda z, y: F.cross_entropy(z.softmax(0), y),
    "sigmoid_before_bce": lambda z, y: _bce(z.sigmoid(), _hot(z, y)),
    "softmax_before_bce": lambda z, y: _bce(z.softmax(-1), _hot(z, y)),
}
#: One label a row, one logit.
BINARY: dict[str, Loss] = {
    "bce": _bce,
    "squared_probabilities": lambda z, y: F.mse_loss(z.sigmoid(), y.to(z.dtype)),
    "squared_logits": lambda z, y: F.mse_loss(z, y.to(z.dtype)),
    "sigmoid_before_bce": lambda z, y: _bce(z.sigmoid(), y),
    "softmax_over_batch": lambda z, y: _bce_probability(z.softmax(0), y),
}
#: Any number of tags a row.
TAGS: dict[str, Loss] = {
    "bce": _bce,
    "squared_probabilities": lambda z, y: F.mse_loss(z.sigmoid(), y.to(z.dtype)),
    "squared_logits": lambda z, y: F.mse_loss(z, y.to(z.dtype)),
    "cross_entropy_on_tags": lambda z, y: F.cross_entropy(z, y.to(z.dtype)),
    "sigmoid_before_bce": lambda z, y: _bce(z.sigmoid(), y),
    "softmax_before_bce": lambda z, y: _bce(z.softmax(-1), y),
    "softmax_on_tags": lambda z, y: _bce_probability(z.softmax(-1), y),
}
#: One number a row, or several.
REGRESSION: dict[str, Loss] = {
    "squared_error": lambda z, y: F.mse_loss(z, y.to(z.dtype)),
    "absolute_error": lambda z, y: F.l1_loss(z, y.to(z.dtype)),
    "huber": lambda z, y: F.smooth_l1_loss(z, y.to(z.dtype)),
    "bce": _bce,
}
#: The standard loss of each kind of label, by its name in the tables above.
STANDARD = {"single": "cross_entropy", "binary": "bce", "tags": "bce", "regression": "squared_error"}
TABLES = {"single": SINGLE, "binary": BINARY, "tags": TAGS, "regression": REGRESSION}


def gradient_of(loss: Loss, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The gradient of a standard loss with respect to the logits."""
    leaf = z.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        (g,) = torch.autograd.grad(loss(leaf, y), [leaf])
    return g


def recognised(
    kind: str, draws: Sequence[tuple[torch.Tensor, torch.Tensor]], labels: torch.Tensor, keep: torch.Tensor
) -> str | None:
    """Name of the loss that has these gradients; None: it is none of the known ones.

    :param kind: key of `TABLES`.
    :param draws: pairs of logits and the gradient that the loss had there, flat: ``(rows, outputs)`` or ``(rows,)``.
    :param labels: what the gradients are for: classes, tags or numbers.
    :param keep: rows that count.

    >>> z, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    >>> g = gradient_of(lambda z, y: 4 * F.cross_entropy(z, y, reduction="sum"), z, y)
    >>> recognised("single", [(z, g)], y, torch.ones(6, dtype=torch.bool))
    'cross_entropy'
    """
    y = labels[keep]
    groups = [torch.ones_like(y, dtype=torch.bool)] if kind == "regression" else [y == v for v in torch.unique(y)]
    given = [(z[keep].double(), g[keep].double()) for z, g in draws]
    best, name = SAME, None
    for candidate, loss in TABLES[kind].items():
        pairs = [(g, gradient_of(loss, z, y)) for z, g in given]
        least = 1.0
        for group in groups:
            a = torch.cat([own[group].reshape(-1) for own, _ in pairs])
            b = torch.cat([standard[group].reshape(-1) for _, standard in pairs])
            size = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
            least = min(least, float((a * b).sum() / size) if size > 0 else 1.0 if not a.any() and not b.any() else 0.0)
            if not least > best:
                break
        if least > best:
            best, name = least, candidate
        if best >= EQUAL:
            break
    return name
