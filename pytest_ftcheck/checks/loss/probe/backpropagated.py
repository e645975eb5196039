"""What a backpropagated value is made of: the losses of torch behind it, their items, and the weight that the graph gives them."""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from ..loss_scale_record import Term

#: Autograd nodes between a value and the losses behind it that are looked at.
NODES = 500
_OURS = __name__.partition(".")[0] + "."
REDUCTIONS = ("mean", "sum", "none")


@dataclass
class LossOutput:
    """What a loss function returned, and what it averages or adds up."""

    function: str
    output: torch.Tensor
    reduction: str
    #: The sum of the weights of the items that count; of a loss that is not reduced, which elements count (None: all).
    items: torch.Tensor | float
    counted: torch.Tensor | None = None


@dataclass
class WeighedLoss:
    """A loss behind a value, and the gradient of the value with respect to it."""

    loss: LossOutput
    gradient: torch.Tensor

    def term(self) -> Term:
        """The same in plain numbers; the device is waited for."""
        loss, gradient = self.loss, self.gradient.detach().double()
        items = float(loss.items)
        if loss.reduction == "none":
            counted = gradient if loss.counted is None else gradient[loss.counted]
            return Term(loss.function, "none", float(torch.count_nonzero(counted)), float(counted.sum()))
        weight = float(gradient) * (items if loss.reduction == "sum" else 1.0)
        return Term(loss.function, loss.reduction, items, weight)


def read_loss(function: str, output: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> LossOutput | None:
    """The output of a loss function with what it averages over; None: it has no graph, or was called in a way that is not known."""
    if not isinstance(output, torch.Tensor) or output.grad_fn is None:
        return None
    given = _signature(function).bind(*args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    if a.get("size_average") is not None or a.get("reduce") is not None or a["reduction"] not in REDUCTIONS:
        return None
    items, counted = _items(function, a)
    return LossOutput(function, output, a["reduction"], items, counted)


@functools.cache
def _signature(function: str) -> inspect.Signature:
    return inspect.signature(getattr(F, function))


def _items(function: str, a: Mapping[str, Any]) -> tuple[torch.Tensor | float, torch.Tensor | None]:
    given, target = a["input"].detach(), a["target"].detach()
    if function in ("cross_entropy", "nll_loss"):
        if target.is_floating_point():  # a probability for each class
            return target.numel() / target.shape[min(1, target.dim() - 1)], None
        counted = target != a["ignore_index"]
        if a["weight"] is None:
            return counted.sum(), counted
        return a["weight"].detach()[target[counted]].sum(), counted
    if function == "multi_margin_loss":
        return float(target.numel()), None
    return float(torch.broadcast_tensors(given, target)[0].numel()), None  # type: ignore[no-untyped-call]


def losses_behind(value: torch.Tensor, losses: Sequence[LossOutput]) -> list[WeighedLoss]:
    """Those of the losses that a value was computed from, with their gradients; empty where these cannot be had without running code that
    is not torch's.

    Only the few nodes between the value and the losses are run, and their buffers are kept: the loop's own ``backward()`` finds all as it
    was.

    >>> logits, labels = torch.randn(6, 3, requires_grad=True), torch.tensor([0, 1, 2, 0, 1, -100])
    >>> loss = F.cross_entropy(logits, labels, reduction="sum")
    >>> known = read_loss("cross_entropy", loss, (logits, labels), {"reduction": "sum"})
    >>> [(found.term().items, round(found.term().weight, 6)) for found in losses_behind(loss / 5 + logits.square().sum(), [known])]
    [(5.0, 1.0)]
    """
    if not losses or value.grad_fn is None or value.numel() != 1:
        return []
    outputs = [loss.output for loss in losses]
    if any(_has_hooks(t) for t in (value, *outputs)) or not _is_torchs_own(value, outputs):
        return []
    gradients = torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True)
    return [WeighedLoss(loss, g) for loss, g in zip(losses, gradients, strict=True) if g is not None]


def _has_hooks(tensor: torch.Tensor) -> bool:
    """Whether a hook of the user's own would run; ours only look."""
    hooks: Any = tensor._backward_hooks or {}
    return tensor.retains_grad or any(
        not str(getattr(hook, "__module__", "")).startswith(_OURS) for hook in hooks.values()
    )


def _is_torchs_own(value: torch.Tensor, outputs: Sequence[torch.Tensor]) -> bool:
    """Whether no function of the user's own lies between a value and these outputs. Nodes older than all of these are not between."""
    ends = {o.grad_fn for o in outputs}
    oldest = min(_age(node) for node in ends)
    queue, known = deque([value.grad_fn]), {value.grad_fn}
    while queue:
        node = queue.popleft()
        if node in ends:
            continue
        if len(known) > NODES or isinstance(node, torch.autograd.function.BackwardCFunction):
            return False
        for following, _ in node.next_functions:  # type: ignore[union-attr]
            if following is not None and following not in known and _age(following) >= oldest:
                known.add(following)
                queue.append(following)
    return True


def _age(node: Any) -> int:
    return int(node._sequence_nr())
