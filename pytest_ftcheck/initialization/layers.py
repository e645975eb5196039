"""The layers of a head in the order in which they are computed, read from its modules or traced through its ``forward``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from ..core.formatting import text_of
from ..instruments.global_state import preserved_globals
from .heads import ACTIVATIONS

#: Activations that look at each value alone: they work on the values of any number of heads.
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Identity,
)  # fmt: skip
#: Activations that are methods of a tensor, and functions of ``torch``, too.
_METHODS = ("relu", "tanh", "sigmoid")
#: Functional activations, and the module that computes the same.
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    **{getattr(F, name): kind for name, kind in ACTIVATIONS.items()},
    **{getattr(torch, name): ACTIVATIONS[name] for name in _METHODS},
    F.mish: nn.Mish,
    F.softplus: nn.Softplus,
    F.hardswish: nn.Hardswish,
}
#: Ways of copying or reshaping that leave ``[rows, width]`` as it is.
_IDENTITY_METHODS = ("contiguous", "clone", "float")

Kind = Literal["linear", "norm", "dropout", "activation"]


class Unstackable(Exception):
    """A head cannot be computed in one batch with copies of itself; its text is the reason."""


@dataclass(frozen=True)
class Layer:
    """One layer of a head; ``module`` is the head's own, or one made for a functional call."""

    kind: Kind
    module: nn.Module

    @property
    def rate(self) -> float:
        """Share of the values that a dropout drops; 0 for other layers."""
        return float(self.module.p) if isinstance(self.module, nn.Dropout) else 0.0

    def tensors(self) -> list[nn.Parameter]:
        """Its parameters: the matrix first, then the bias."""
        return [p for p in (getattr(self.module, "weight", None), getattr(self.module, "bias", None)) if p is not None]


def read_layers(head: nn.Module) -> tuple[Layer, ...]:
    """The layers of a head in the order in which they are computed.

    :raises Unstackable: a layer of another kind, a branch, a hook, a layer used twice; the message names it.

    >>> [layer.kind for layer in read_layers(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 2)))]
    ['linear', 'activation', 'dropout', 'linear']
    """
    _refuse_hooks(head)
    found = list(_layers_of_module(head) if _is_known(head) else _traced_layers(head))
    layers = tuple(layer for layer in found if not isinstance(layer.module, nn.Identity))
    if not any(layer.kind == "linear" for layer in layers):
        raise Unstackable("there is no linear layer in it")
    owners = [id(p) for layer in layers for p in layer.tensors()]
    if len(set(owners)) < len(owners):
        raise Unstackable("a layer, or its weights, are used twice")
    unused = {n for n, p in head.named_parameters()} - {n for n, p in head.named_parameters() if id(p) in owners}
    if unused:
        raise Unstackable(f"{min(unused)} is not in the chain of layers")
    return layers


def _refuse_hooks(head: nn.Module) -> None:
    for name, module in head.named_modules():
        where = f"{name or 'the head'} ({type(module).__name__})"
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        if any(hooks):
            raise Unstackable(f"{where} has hooks")
        if "parametrizations" in module._modules:
            raise Unstackable(f"{where} has parametrized weights")


def _is_known(module: nn.Module) -> bool:
    return _is_sequence(module) or _kind_of(module) is not None or type(module) is nn.Flatten


def _is_sequence(module: nn.Module) -> bool:
    """A Sequential that computes as one, whatever its class."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _kind_of(module: nn.Module) -> Kind | None:
    if type(module) is nn.Linear or type(module).__name__ == "Conv1D":  # transformers' own linear layer
        return "linear"
    if type(module) is nn.Dropout:
        return "dropout"
    if type(module) is nn.LayerNorm:
        return "norm" if len(module.normalized_shape) == 1 else None
    if type(module) in ELEMENTWISE or type(module).__module__ == "transformers.activations":
        return "activation"
    return None


def _layers_of_module(module: nn.Module) -> Iterator[Layer]:
    if _is_sequence(module):
        for child in module._modules.values():  # children() would pass over one that comes twice
            assert child is not None
            if not _is_known(child) and not any(True for _ in child.children()):
                raise Unstackable(f"{type(child).__name__} is not a Linear, an activation, a Dropout or a LayerNorm")
            yield from _layers_of_module(child) if _is_known(child) else _traced_layers(child)
        return
    if type(module) is nn.Flatten:
        if module.start_dim != 1:
            raise Unstackable(f"Flatten(start_dim={module.start_dim}) mixes rows")
        return
    kind = _kind_of(module)
    assert kind is not None
    yield Layer(kind, module)


class _Tracer(fx.Tracer):
    """Traces into every module that is not one known layer."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one layer."""
        return (_is_known(m) and not _is_sequence(m)) or super().is_leaf_module(m, module_qualified_name)


def _traced_layers(head: nn.Module) -> Iterator[Layer]:
    """The layers of a module whose ``forward`` calls them in a chain."""
    name = type(head).__name__
    modes = [(m, m.training) for m in head.modules()]
    try:
        with preserved_globals():
            graph = _Tracer().trace(_one_argument(head))
    except Exception as error:  # noqa: BLE001 - whatever the user's forward does with a stand-in for its input
        raise Unstackable(f"{name}.forward() cannot be traced ({text_of(error).strip()[:80]})") from None
    finally:
        for module, mode in modes:
            module.training = mode
    current: fx.Node | None = None
    started = False
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
            if not _is_known(module):
                raise Unstackable(
                    f"{node.target} is a {type(module).__name__}: not a Linear, an activation, a Dropout or a LayerNorm"
                )
            layers = list(_layers_of_module(module))
        else:
            layers = _layers_of_call(node, started)
        started = started or any(layer.kind != "dropout" for layer in layers)
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


def _layers_of_call(node: fx.Node, started: bool) -> list[Layer]:
    """The layer that a function or a method call computes."""
    target = node.target
    if node.op == "call_method" and isinstance(target, str):
        if target in _METHODS:
            return [Layer("activation", ACTIVATIONS[target]())]
        if target in _IDENTITY_METHODS or (target == "flatten" and node.args[1:] == (1,)):
            return []
        raise Unstackable(f"its layers are mixed with .{target}()")
    if getattr(target, "__name__", "") == "getitem" and not started:
        return []  # selects a token before the first layer: the features are of that token
    if target in (F.dropout, torch.dropout):
        settings = _settings(F.dropout, node)
        return [Layer("dropout", nn.Dropout(float(settings.get("p", 0.5))))] if settings.get("training", True) else []
    kind = _FUNCTIONS.get(target)
    if kind is not None and isinstance(target, Callable):  # type: ignore[arg-type]
        return [Layer("activation", _module_for(kind, target, node))]
    raise Unstackable(f"{getattr(target, '__name__', target)} is not a known activation")


def _module_for(kind: type[nn.Module], function: Any, node: fx.Node) -> nn.Module:
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
    """A copy of a head that trains the same parameters."""
    template = copy.deepcopy(head)
    for module in template.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # autograd needs the input
    return template
