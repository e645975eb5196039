"""Many heads of one shape computed side by side: their weights in stacked tensors, forward and backward in batched products.

Activations lie as ``[heads, units, rows]``: so the first layer of all heads is one matrix product with the rows that they share, and so
is the gradient of its weights. Both run at the speed of large products, where a head alone has to make do with small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from .pool import Pool
from .stack import Layer

#: A unit that never exceeds this where it enters the next linear layer is dead (as in training/probes/head_units.py).
NOTHING = 1e-7


class Slot:
    """A stacked matrix and its bias, where their gradients go, and room for the hidden values that every step uses anew."""

    def __init__(
        self, number: int, tensors: Sequence[torch.Tensor], train: Sequence[bool], pool: Pool, *, relu: bool = False
    ) -> None:
        weight, bias = tensors[0], tensors[1] if len(tensors) > 1 else None
        self.weight, self.bias = weight, bias
        self.number, self._pool = number, pool
        self.grad = pool.take((number, "grad"), weight) if train[0] else None
        self.bias_grad = pool.take((number, "bias grad"), bias) if bias is not None and train[-1] else None
        #: A ReLU follows, and is computed in place.
        self.relu = relu

    def pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """``(values, gradients)`` of what is trained."""
        both = ((self.weight, self.grad), (self.bias, self.bias_grad))
        return [(v, g) for v, g in both if v is not None and g is not None]

    def room(self, what: str, rows: int) -> torch.Tensor:
        """Memory for ``[heads, units, rows]``; the same at every call."""
        return self._pool.take((self.number, what), self.weight, *self.weight.shape[:2], rows)


class Linear(torch.autograd.Function):
    """``W x + b`` for every head, and the ReLU behind it; the backward pass writes the gradients of W and b into their slot."""

    @staticmethod
    def forward(ctx: Any, _anchor: torch.Tensor, x: torch.Tensor, slot: Slot) -> torch.Tensor:
        """``x``: ``[inputs, rows]``, shared by all heads, or ``[heads, inputs, rows]``. Returns ``[heads, units, rows]``."""
        ctx.slot, ctx.x = slot, x
        ctx.out = multiply(slot, x, slot.room("out", x.shape[-1]))
        return ctx.out.detach()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor | None, None]:
        """Gradients of the weights into the slot, that of ``x`` returned where it is asked for."""
        slot, x, dz = ctx.slot, ctx.x, grads[0].contiguous()
        heads, units, rows = dz.shape
        if slot.relu:
            dz = torch.ops.aten.threshold_backward.grad_input(dz, ctx.out, 0, grad_input=slot.room("in", rows))
        if slot.grad is not None:
            if x.dim() == 2:
                torch.mm(dz.view(heads * units, rows), x.t(), out=slot.grad.view(heads * units, -1))
            else:
                torch.bmm(dz, x.transpose(1, 2), out=slot.grad)
        if slot.bias_grad is not None:
            torch.sum(dz, 2, out=slot.bias_grad)
        wanted = ctx.needs_input_grad[1]
        return None, torch.bmm(slot.weight.transpose(1, 2), dz) if wanted else None, None


class Affine(torch.autograd.Function):
    """``w * x + b`` for every unit of every head: the second half of a LayerNorm."""

    @staticmethod
    def forward(ctx: Any, _anchor: torch.Tensor, x: torch.Tensor, slot: Slot) -> torch.Tensor:
        """``x``: ``[heads, units, rows]``."""
        ctx.slot, ctx.x = slot, x
        out = x * slot.weight[:, :, None]
        return out if slot.bias is None else out + slot.bias[:, :, None]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor | None, None]:
        """As in :class:`Linear`."""
        slot, dz = ctx.slot, grads[0]
        if slot.grad is not None:
            torch.sum(dz * ctx.x, 2, out=slot.grad)
        if slot.bias_grad is not None:
            torch.sum(dz, 2, out=slot.bias_grad)
        return None, dz * slot.weight[:, :, None] if ctx.needs_input_grad[1] else None, None


def multiply(slot: Slot, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """``W x + b``, or its ReLU, as in :class:`Linear`; into ``out`` where that is given."""
    heads, units, inputs = slot.weight.shape
    if x.dim() == 2:
        flat = None if out is None else out.view(heads * units, -1)
        z = torch.mm(slot.weight.view(heads * units, inputs), x, out=flat).view(heads, units, -1)
        if slot.bias is not None:
            z.add_(slot.bias[:, :, None])
    elif slot.bias is None:
        z = torch.bmm(slot.weight, x, out=out)
    else:
        z = torch.baddbmm(slot.bias[:, :, None], slot.weight, x, out=out)
    return z.relu_() if slot.relu else z


class StackedHeads:
    """Copies of one head with weights of their own.

    :param layers: of the head, by :func:`read_stack`.
    :param starts: for each copy its parameters, layer by layer, matrices as ``[units, inputs]`` (:func:`parameters_of`).
    :param pool: memory to use; None: memory of their own.
    """

    def __init__(
        self, layers: Sequence[Layer], starts: Sequence[Sequence[torch.Tensor]], pool: Pool | None = None
    ) -> None:
        pool = pool or Pool()
        self.layers, self.heads = layers, len(starts)
        stacked = [
            torch.stack(same, out=pool.take(("values", i), same[0], len(same), *same[0].shape))
            for i, same in enumerate(zip(*starts, strict=True))
        ]
        self.slots: list[Slot | None] = []
        taken = 0
        for layer, behind in zip(layers, (*layers[1:], None), strict=True):
            tensors = layer.tensors()
            mine = stacked[taken : taken + len(tensors)]
            taken += len(tensors)
            relu = layer.kind == "linear" and behind is not None and type(behind.module) is nn.ReLU
            train = [p.requires_grad for p in tensors]
            self.slots.append(Slot(len(self.slots), mine, train, pool, relu=relu) if mine else None)
        self.values = stacked
        self.trained = [pair for slot in self.slots if slot is not None for pair in slot.pairs()]
        self.drops = any(layer.rate > 0 for layer in layers)
        #: Layers in front of the first dropout: they compute the same with dropout on and off.
        self.prefix = next((i for i, layer in enumerate(layers) if layer.rate > 0), len(layers))

    def forward(
        self,
        x: torch.Tensor,
        masks: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
        *,
        first: int = 0,
        last: int | None = None,
        dead: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The layers ``first`` up to ``last``.

        :param x: ``[width, rows]``, or ``[heads, width, rows]``.
        :param masks: ``(layer, values) -> factors`` of the dropout layers; None: dropout off.
        :param dead: gets ``[heads, units]`` of what enters each linear layer but the first: is it nothing on all these rows?
        """
        anchor = torch.zeros((), requires_grad=torch.is_grad_enabled(), device=x.device)
        linear_before = False
        for i in range(first, len(self.layers) if last is None else last):
            layer, slot = self.layers[i], self.slots[i]
            if layer.kind == "linear":
                assert slot is not None
                if dead is not None and linear_before:
                    low, high = torch.aminmax(x, dim=2)
                    dead.append(torch.maximum(high, -low) <= NOTHING)
                x = Linear.apply(anchor, x, slot) if torch.is_grad_enabled() else multiply(slot, x)  # type: ignore[no-untyped-call]
                linear_before = True
            elif layer.kind == "activation":
                done = i > 0 and (before := self.slots[i - 1]) is not None and before.relu
                x = x if done else layer.module(x)
            elif layer.kind == "dropout":
                if masks is not None and layer.rate > 0:
                    x = x * masks(i, x)
            else:
                x = self._normalised(layer.module, slot, x, anchor)
        return x if x.dim() == 3 else x.expand(self.heads, *x.shape)

    def _normalised(self, module: nn.Module, slot: Slot | None, x: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        assert isinstance(module, nn.LayerNorm)
        if x.dim() == 2:
            x = x.expand(self.heads, *x.shape)
        x = F.layer_norm(x.transpose(1, 2), module.normalized_shape, eps=module.eps).transpose(1, 2)
        return x if slot is None else Affine.apply(anchor, x, slot)  # type: ignore[no-untyped-call]


def parameters_of(layers: Sequence[Layer]) -> list[torch.Tensor]:
    """Copies of the parameters, matrices as ``[units, inputs]`` (transformers' Conv1D keeps them the other way round)."""
    out = []
    for layer in layers:
        flip = layer.kind == "linear" and not isinstance(layer.module, nn.Linear)
        for p in layer.tensors():
            out.append(
                (p.detach().t() if flip and p.dim() == 2 else p.detach()).clone(memory_format=torch.contiguous_format)
            )
    return out


def losses_of(task: str, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The task's mean loss for each head, ``[heads]``: cross-entropy, binary cross-entropy or squared error.

    :param z: logits ``[heads, outputs, rows]``.  :param y: labels ``[rows]`` or ``[outputs, rows]``, or with the heads in front.
    """
    heads, outputs, rows = z.shape
    if task == "single_label" and outputs > 1:
        labels = y.expand(heads, rows)
        return F.cross_entropy(z, labels, reduction="none").mean(1)
    # a single output and a row of labels, or as many outputs as labels
    labels = y if y.dim() > 1 and y.shape[-2:] == (outputs, rows) else y.unsqueeze(-2)
    labels = labels.to(z.dtype).expand(heads, outputs, rows)
    if task == "regression":
        return ((z - labels) ** 2).mean((1, 2))
    return F.binary_cross_entropy_with_logits(z, labels, reduction="none").mean((1, 2))
