"""Does the loss follow its own gradient? One part of the model is moved along it, and the loss is computed again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ....instruments.batches import row_count, split, take_rows
from ....instruments.global_state import preserved_globals
from ....instruments.parameter_roles import in_part
from ....instruments.reader import Reader
from ....instruments.undisturbed import perturbed, quiet
from ..record import Slope

#: Rows of the batch that are used, at most; where a row is costly. The derivative is that of the same rows, so more of them make the
#: comparison no sharper.
ROWS, FEW_ROWS = 8, 4
#: The stride is chosen such that the loss should change by this share of itself ...
CHANGE = 1e-3
#: ... but moves no part by more than this share of its own norm: further away the gradient is another.
REACH = 5e-3
#: A predicted change below this share of the loss is too near to the rounding of float32 (6e-8, summed over many terms).
LEAST = 2e-5
#: Where the ratio is not 1, the stride is shortened by this factor repeatedly, as long as the predicted change is large enough.
SHORTEN = 5.0
#: A ratio this near to 1 needs no second measurement with a shorter stride. Nor does it need the loss in the opposite direction: the ratio
#: in both is this one plus half of what the loss bends over the stride, and only a reversed gradient is a fault.
AGREES = 0.1
#: Elements of a part of which a copy is made, at most.
MOST = 300_000_000


def parts_of(model: nn.Module, head: Sequence[str]) -> dict[str, list[nn.Parameter]]:
    """The trainable float parameters of the head, of the base, and of the embedding tables."""
    tables = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) and not m.sparse for p in m.parameters(False)
    }
    found: dict[str, list[nn.Parameter]] = {"head": [], "base": [], "embeddings": []}
    for name, p in model.named_parameters():
        if p.requires_grad and p.dtype in (torch.float32, torch.float64) and p.numel():
            part = "head" if in_part(name, tuple(head)) else "base"
            found[part].append(p)
            if id(p) in tables and part == "base":
                found["embeddings"].append(p)
    return {part: p for part, p in found.items() if p and sum(q.numel() for q in p) <= MOST}


def slopes(
    model: nn.Module, reader: Reader, head: Sequence[str], batch: Any, known: Sequence[str] = (), rows: int = ROWS
) -> list[Slope]:
    """One `Slope` for each part, but those known, whose gradient predicts a large enough change; dropout off, everything is restored.

    :param rows: of the batch that are used, at most.
    """
    if (row_count(split(batch)[0]) or 0) > rows:
        batch = take_rows(batch, range(rows))
    parts = {part: ps for part, ps in parts_of(model, head).items() if part not in known}
    every = list({id(p): p for ps in parts.values() for p in ps}.values())
    if not every:
        return []
    with quiet(model, grad=True), preserved_globals():
        loss = reader.loss(batch)[0]
        value = float(loss.detach())
        if not loss.requires_grad or not math.isfinite(value):
            return []
        grads = torch.autograd.grad(loss, every, allow_unused=True)
    gradient = {id(p): g for p, g in zip(every, grads, strict=True) if g is not None and not g.is_sparse}
    found = [_slope(model, reader, batch, part, ps, gradient, value) for part, ps in parts.items()]
    return [s for s in found if s is not None]


def _slope(
    model: nn.Module,
    reader: Reader,
    batch: Any,
    part: str,
    parameters: Sequence[nn.Parameter],
    gradient: dict[int, torch.Tensor],
    loss: float,
) -> Slope | None:
    moved = [p for p in parameters if id(p) in gradient]
    length = _norm([gradient[id(p)] for p in moved])
    size = _norm([p.detach() for p in moved])
    if not moved or not math.isfinite(length) or length == 0:
        return None
    stride = min(CHANGE * abs(loss) / length, REACH * size)
    if stride * length < LEAST * abs(loss) or stride == 0:
        return None

    own = [p.data for p in moved]

    def loss_at(h: float) -> float:
        with torch.no_grad():
            for p, start in zip(moved, own, strict=True):
                torch.add(start, gradient[id(p)], alpha=h / length, out=p.data)
        # the same random numbers each time: a model that hashes, or drops out in eval mode, is compared with itself
        with quiet(model), preserved_globals():
            return float(reader.loss(batch)[0])

    def change(h: float, ahead: float) -> float:
        return (ahead - loss_at(-h)) / (2 * h * length)

    with perturbed(moved):
        ahead = loss_at(stride)
        longer = shortest = (ahead - loss) / (stride * length)
        if abs(shortest - 1) >= AGREES:
            longer = shortest = change(stride, ahead)
        while abs(shortest - 1) >= AGREES and stride * length >= SHORTEN * LEAST * abs(loss):
            stride /= SHORTEN
            longer, shortest = shortest, change(stride, loss_at(stride))
    if not math.isfinite(longer) or not math.isfinite(shortest):
        return None
    return Slope(part, longer, shortest, stride * length / abs(loss))


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float(torch.linalg.vector_norm(t.float())) ** 2 for t in tensors))
