"""Many heads of one shape computed side by side: their weights in stacked tensors, forward and backward in batched products.

Activations lie as ``[heads, units, rows]``: so the first layer of all heads is one matrix product with the rows that they share, and so
is the gradient of its weights. Both run at the speed of large products, where a head alone has to make do with small ones.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from ..instruments.snapshots import preserved_globals

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


# ---- folded from inits.pool
class Pool:
    """Memory by name, for one thread: every group of heads computes in that of the one before it.

    >>> pool = Pool()
    >>> pool.take("a", torch.zeros(4)).data_ptr() == pool.take("a", torch.zeros(2, 2)).data_ptr()
    True
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], torch.Tensor] = {}

    def take(self, name: object, like: torch.Tensor, *shape: int) -> torch.Tensor:
        """A tensor of this shape (default: that of ``like``) with whatever was in it; the same memory for the same name."""
        wanted = shape or tuple(like.shape)
        count = math.prod(wanted)
        key = (name, like.dtype, like.device)
        flat = self._kept.get(key)
        if flat is None or flat.numel() < count:
            flat = self._kept[key] = like.new_empty(count)
        return flat[:count].view(wanted)


# ---- folded from inits.stack
#: Activations that look at each value alone: they do not care how many heads' values they are given.
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Identity,
)  # fmt: skip
#: Functions that heads are written with, and the module that does the same.
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    torch.relu: nn.ReLU,
    F.relu: nn.ReLU,
    torch.tanh: nn.Tanh,
    F.tanh: nn.Tanh,
    torch.sigmoid: nn.Sigmoid,
    F.sigmoid: nn.Sigmoid,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.mish: nn.Mish,
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.selu: nn.SELU,
    F.softplus: nn.Softplus,
    F.hardswish: nn.Hardswish,
}
_METHODS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
#: Ways of copying or reshaping that leave ``[rows, width]`` as it is.
_SAME = ("contiguous", "clone", "float")

Kind = Literal["linear", "norm", "dropout", "activation"]


class Unstackable(Exception):
    """Why a head cannot be computed side by side with others of its kind."""


@dataclass(frozen=True)
class Layer:
    """One layer of a stack; ``module`` is the template's own, or one made for a function."""

    kind: Kind
    module: nn.Module

    @property
    def rate(self) -> float:
        """Share of the values that a dropout drops; 0 for other layers."""
        return float(self.module.p) if isinstance(self.module, nn.Dropout) else 0.0

    def tensors(self) -> list[nn.Parameter]:
        """Its parameters: the matrix first, then the bias."""
        return [p for p in (getattr(self.module, "weight", None), getattr(self.module, "bias", None)) if p is not None]


def read_stack(head: nn.Module) -> tuple[Layer, ...]:
    """The layers of a head in the order in which they are computed.

    :raises Unstackable: a layer of another kind, a branch, a hook, a layer used twice; says which.

    >>> [layer.kind for layer in read_stack(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 2)))]
    ['linear', 'activation', 'dropout', 'linear']
    """
    _refuse_extras(head)
    found = list(_of_module(head) if _known(head) else _of_chain(head))
    layers = tuple(layer for layer in found if not isinstance(layer.module, nn.Identity))
    if not any(layer.kind == "linear" for layer in layers):
        raise Unstackable("there is no linear layer in it")
    owners = [id(p) for layer in layers for p in layer.tensors()]
    if len(set(owners)) < len(owners):
        raise Unstackable("a layer, or its weights, are used twice")
    unused = {n for n, p in head.named_parameters()} - {n for n, p in head.named_parameters() if id(p) in owners}
    if unused:
        raise Unstackable(f"{min(unused)} belongs to no layer that is computed in turn")
    return layers


def _refuse_extras(head: nn.Module) -> None:
    for name, module in head.named_modules():
        where = f"{name or 'the head'} ({type(module).__name__})"
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        if any(hooks):
            raise Unstackable(f"{where} has hooks")
        if "parametrizations" in module._modules:
            raise Unstackable(f"{where} has parametrized weights")


def _known(module: nn.Module) -> bool:
    return _sequence(module) or _kind(module) is not None or type(module) is nn.Flatten


def _sequence(module: nn.Module) -> bool:
    """A Sequential that computes as one, whatever its class."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _kind(module: nn.Module) -> Kind | None:
    if type(module) is nn.Linear or type(module).__name__ == "Conv1D":  # transformers' own linear layer
        return "linear"
    if type(module) is nn.Dropout:
        return "dropout"
    if type(module) is nn.LayerNorm:
        return "norm" if len(module.normalized_shape) == 1 else None
    if type(module) in ELEMENTWISE or type(module).__module__ == "transformers.activations":
        return "activation"
    return None


def _of_module(module: nn.Module) -> Iterator[Layer]:
    if _sequence(module):
        for child in module._modules.values():  # children() would pass over one that comes twice
            assert child is not None
            if not _known(child) and not any(True for _ in child.children()):
                raise Unstackable(f"{type(child).__name__} is no Linear, activation, Dropout or LayerNorm")
            yield from _of_module(child) if _known(child) else _of_chain(child)
        return
    if type(module) is nn.Flatten:
        if module.start_dim != 1:
            raise Unstackable(f"Flatten(start_dim={module.start_dim}) mixes rows")
        return
    kind = _kind(module)
    assert kind is not None
    yield Layer(kind, module)


class _Tracer(fx.Tracer):
    """Looks into everything but the layers that we know."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one layer."""
        return (_known(m) and not _sequence(m)) or super().is_leaf_module(m, module_qualified_name)


def _of_chain(head: nn.Module) -> Iterator[Layer]:
    """The layers of a module whose ``forward`` calls them one after the other."""
    name = type(head).__name__
    modes = [(m, m.training) for m in head.modules()]
    try:
        with preserved_globals():
            graph = _Tracer().trace(_one_argument(head))
    except Exception as error:  # noqa: BLE001 - whatever the user's forward does with a stand-in for its input
        raise Unstackable(f"the order of {name}'s layers cannot be traced ({str(error).strip()[:80]})") from None
    finally:
        for module, mode in modes:
            module.training = mode
    current: fx.Node | None = None
    begun = False
    modules = dict(head.named_modules())
    for node in graph.nodes:
        if node.op == "placeholder":
            if current is None:
                current = node
            elif node.users:
                raise Unstackable(f"{name} takes more than one input")
            continue
        if node.op == "output":
            if node.args != (current,):
                raise Unstackable(f"{name} returns more than its last layer's output")
            return
        if current is None or list(node.all_input_nodes) != [current] or len(current.users) != 1:
            raise Unstackable(f"{name} has a branch at {node.name}")
        current = node
        if node.op == "call_module":
            module = modules[str(node.target).removeprefix("head.") if str(node.target) != "head" else ""]
            if not _known(module):
                raise Unstackable(
                    f"{node.target} is a {type(module).__name__}: no Linear, activation, Dropout or LayerNorm"
                )
            layers = list(_of_module(module))
        else:
            layers = _of_call(node, begun)
        begun = begun or any(layer.kind != "dropout" for layer in layers)
        yield from layers


def _one_argument(head: nn.Module) -> nn.Module:
    """``head`` without arguments that have a default (``**kwargs`` cannot be traced)."""

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, x: torch.Tensor) -> Any:
            return self.head(x)

    return Called().train()  # as it will be trained: F.dropout(x, training=self.training) is a dropout


def _of_call(node: fx.Node, begun: bool) -> list[Layer]:
    """The layer that a function or a method stands for."""
    target = node.target
    if node.op == "call_method" and isinstance(target, str):
        if target in _METHODS:
            return [Layer("activation", _METHODS[target]())]
        if target in _SAME or (target == "flatten" and node.args[1:] == (1,)):
            return []
        raise Unstackable(f"the order of its layers is mixed with .{target}()")
    if getattr(target, "__name__", "") == "getitem" and not begun:
        return []  # picks a token in front of the first layer: the features are of that token
    if target in (F.dropout, torch.dropout):
        settings = _settings(F.dropout, node)
        return [Layer("dropout", nn.Dropout(float(settings.get("p", 0.5))))] if settings.get("training", True) else []
    made = _FUNCTIONS.get(target)
    if made is not None and isinstance(target, Callable):  # type: ignore[arg-type]
        return [Layer("activation", _made(made, target, node))]
    raise Unstackable(f"{getattr(target, '__name__', target)} is no activation that is known")


def _made(kind: type[nn.Module], function: Any, node: fx.Node) -> nn.Module:
    accepted = set(inspect.signature(kind).parameters) - {"inplace"}
    try:
        return kind(**{k: v for k, v in _settings(function, node).items() if k in accepted})
    except TypeError as error:  # pragma: no cover - a setting that only the function has
        raise Unstackable(f"{node.name}: {error}") from None


def _settings(function: Any, node: fx.Node) -> dict[str, Any]:
    """Keyword arguments of a call, the input left out."""
    try:
        names = list(inspect.signature(function).parameters)[1:]
    except (TypeError, ValueError):  # a builtin: then by keyword only, but for GELU, whose signature is known
        names = []
        if len(node.args) > 1:
            raise Unstackable(f"the arguments of {node.name} cannot be read") from None
    given = dict(zip(names, node.args[1:], strict=False))
    return {**given, **node.kwargs}


def template_of(head: nn.Module) -> nn.Module:
    """An own copy of a head, with parameters that can be trained as the original's can."""
    made = copy.deepcopy(head)
    for module in made.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # autograd must find what entered
    return made
