"""Many heads of one shape computed as one batch: their weights in stacked tensors, forward and backward in batched products.

Activations are laid out as ``[heads, units, rows]``. The first layer of all heads is then one matrix product with the rows that they share,
and so is the gradient of its weights. Both run at the speed of large products, where a single head needs small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from .layers import Layer

#: A unit is dead if its value never exceeds this where it enters the next linear layer (as in checks/head/probe/unit_flow.py).
DEAD_BELOW = 1e-7


class BufferPool:
    """Buffers by name, for one thread: each group of heads reuses the memory of the one before it.

    >>> pool = BufferPool()
    >>> pool.take("a", torch.zeros(4)).data_ptr() == pool.take("a", torch.zeros(2, 2)).data_ptr()
    True
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[object, ...], torch.Tensor] = {}

    def take(self, name: object, like: torch.Tensor, *shape: int) -> torch.Tensor:
        """A tensor of this shape (default: that of ``like``), not cleared; the same memory for the same name."""
        wanted = shape or tuple(like.shape)
        count = math.prod(wanted)
        key = (name, like.dtype, like.device)
        flat = self._buffers.get(key)
        if flat is None or flat.numel() < count:
            flat = self._buffers[key] = like.new_empty(count)
        return flat[:count].view(wanted)


class StackedLayer:
    """A stacked matrix and its bias, the buffers of their gradients, and those of the hidden values, which every step overwrites."""

    def __init__(
        self,
        number: int,
        tensors: Sequence[torch.Tensor],
        train: Sequence[bool],
        pool: BufferPool,
        *,
        relu: bool = False,
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

    def buffer(self, what: str, rows: int) -> torch.Tensor:
        """A buffer of ``[heads, units, rows]``; the same at every call."""
        return self._pool.take((self.number, what), self.weight, *self.weight.shape[:2], rows)


class Linear(torch.autograd.Function):
    """``W x + b`` for every head, and the ReLU behind it; the backward pass writes the gradients of W and b into their buffers."""

    @staticmethod
    def forward(ctx: Any, _anchor: torch.Tensor, x: torch.Tensor, layer: StackedLayer) -> torch.Tensor:
        """``x``: ``[inputs, rows]``, shared by all heads, or ``[heads, inputs, rows]``. Returns ``[heads, units, rows]``."""
        ctx.layer, ctx.x = layer, x
        ctx.out = multiply(layer, x, layer.buffer("out", x.shape[-1]))
        return ctx.out.detach()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor | None, None]:
        """Gradients of the weights into their buffers; that of ``x`` is returned where it is needed."""
        layer, x, dz = ctx.layer, ctx.x, grads[0].contiguous()
        heads, units, rows = dz.shape
        if layer.relu:
            dz = torch.ops.aten.threshold_backward.grad_input(dz, ctx.out, 0, grad_input=layer.buffer("in", rows))
        if layer.grad is not None:
            if x.dim() == 2:
                torch.mm(dz.view(heads * units, rows), x.t(), out=layer.grad.view(heads * units, -1))
            else:
                torch.bmm(dz, x.transpose(1, 2), out=layer.grad)
        if layer.bias_grad is not None:
            torch.sum(dz, 2, out=layer.bias_grad)
        wanted = ctx.needs_input_grad[1]
        return None, torch.bmm(layer.weight.transpose(1, 2), dz) if wanted else None, None


class Affine(torch.autograd.Function):
    """``w * x + b`` for every unit of every head: the second half of a LayerNorm."""

    @staticmethod
    def forward(ctx: Any, _anchor: torch.Tensor, x: torch.Tensor, layer: StackedLayer) -> torch.Tensor:
        """``x``: ``[heads, units, rows]``."""
        ctx.layer, ctx.x = layer, x
        out = x * layer.weight[:, :, None]
        return out if layer.bias is None else out + layer.bias[:, :, None]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor | None, None]:
        """As in :class:`Linear`."""
        layer, dz = ctx.layer, grads[0]
        if layer.grad is not None:
            torch.sum(dz * ctx.x, 2, out=layer.grad)
        if layer.bias_grad is not None:
            torch.sum(dz, 2, out=layer.bias_grad)
        return None, dz * layer.weight[:, :, None] if ctx.needs_input_grad[1] else None, None


def multiply(layer: StackedLayer, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """``W x + b``, or its ReLU, as in :class:`Linear`; into ``out`` where that is given."""
    heads, units, inputs = layer.weight.shape
    if x.dim() == 2:
        flat = None if out is None else out.view(heads * units, -1)
        z = torch.mm(layer.weight.view(heads * units, inputs), x, out=flat).view(heads, units, -1)
        if layer.bias is not None:
            z.add_(layer.bias[:, :, None])
    elif layer.bias is None:
        z = torch.bmm(layer.weight, x, out=out)
    else:
        z = torch.baddbmm(layer.bias[:, :, None], layer.weight, x, out=out)
    return z.relu_() if layer.relu else z


class StackedHeads:
    """Copies of one head with weights of their own.

    :param layers: of the head, by :func:`~.layers.read_layers`.
    :param starts: for each copy its parameters, layer by layer, matrices as ``[units, inputs]`` (:func:`parameters_of`).
    :param pool: buffers to use; None: new ones.
    """

    def __init__(
        self, layers: Sequence[Layer], starts: Sequence[Sequence[torch.Tensor]], pool: BufferPool | None = None
    ) -> None:
        pool = pool or BufferPool()
        self.layers, self.heads = layers, len(starts)
        values = [
            torch.stack(same, out=pool.take(("values", i), same[0], len(same), *same[0].shape))
            for i, same in enumerate(zip(*starts, strict=True))
        ]
        self.stacked: list[StackedLayer | None] = []
        taken = 0
        for layer, behind in zip(layers, (*layers[1:], None), strict=True):
            tensors = layer.tensors()
            mine = values[taken : taken + len(tensors)]
            taken += len(tensors)
            relu = layer.kind == "linear" and behind is not None and type(behind.module) is nn.ReLU
            train = [p.requires_grad for p in tensors]
            self.stacked.append(StackedLayer(len(self.stacked), mine, train, pool, relu=relu) if mine else None)
        self.values = values
        self.trained = [pair for stacked in self.stacked if stacked is not None for pair in stacked.pairs()]
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
        :param dead: gets ``[heads, units]`` for the input of each linear layer but the first: whether a unit is dead on all these rows.
        """
        anchor = torch.zeros((), requires_grad=torch.is_grad_enabled(), device=x.device)
        linear_before = False
        for i in range(first, len(self.layers) if last is None else last):
            layer, stacked = self.layers[i], self.stacked[i]
            if layer.kind == "linear":
                assert stacked is not None
                if dead is not None and linear_before:
                    low, high = torch.aminmax(x, dim=2)
                    dead.append(torch.maximum(high, -low) <= DEAD_BELOW)
                x = Linear.apply(anchor, x, stacked) if torch.is_grad_enabled() else multiply(stacked, x)  # type: ignore[no-untyped-call]
                linear_before = True
            elif layer.kind == "activation":
                done = i > 0 and (before := self.stacked[i - 1]) is not None and before.relu
                x = x if done else layer.module(x)
            elif layer.kind == "dropout":
                if masks is not None and layer.rate > 0:
                    x = x * masks(i, x)
            else:
                x = self._normalised(layer.module, stacked, x, anchor)
        return x if x.dim() == 3 else x.expand(self.heads, *x.shape)

    def _normalised(
        self, module: nn.Module, stacked: StackedLayer | None, x: torch.Tensor, anchor: torch.Tensor
    ) -> torch.Tensor:
        assert isinstance(module, nn.LayerNorm)
        if x.dim() == 2:
            x = x.expand(self.heads, *x.shape)
        x = F.layer_norm(x.transpose(1, 2), module.normalized_shape, eps=module.eps).transpose(1, 2)
        return x if stacked is None else Affine.apply(anchor, x, stacked)  # type: ignore[no-untyped-call]


def parameters_of(layers: Sequence[Layer]) -> list[torch.Tensor]:
    """Copies of the parameters, matrices as ``[units, inputs]`` (transformers' Conv1D has them transposed)."""
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
