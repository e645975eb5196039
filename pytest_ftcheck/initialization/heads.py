"""A classification head in one line of code: strategies draw it, and counterexamples print it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..core import arguments
from ..core.formatting import PrintedAsRepr

#: Activations by name, each without arguments.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
}

#: Hidden layers of a head.
MOST_LAYERS = 1000


class Head(PrintedAsRepr, nn.Sequential):
    """A classification head ``[rows, in_features] -> [rows, classes]``: linear layers with activations between them.

    Each hidden layer is ``Linear``, then ``LayerNorm`` if asked for, the activation, and ``Dropout`` if above 0. It is a plain
    ``nn.Sequential`` in all but its ``repr``, which is the code that makes it. Weights are torch's own default for
    ``nn.Linear``, drawn under ``seed``; torch's random state is neither used nor changed.

    :param in_features: width of the features, >= 1.  :param classes: outputs, >= 1.
    :param widths: of the hidden layers, in order; none makes a linear classifier.
    :param activation: one of `ACTIVATIONS`.  :param dropout: share dropped, in [0, 1).
    :param layer_norm: normalise before each activation.  :param bias: linear layers have biases.
    :raises ValueError, TypeError: an argument is none of these.

    >>> Head(384, 2, widths=[384], dropout=0.2)          # the founding question's head
    Head(384, 2, widths=(384,), dropout=0.2)
    >>> [type(layer).__name__ for layer in Head(384, 2, widths=[384], dropout=0.2)]
    ['Linear', 'ReLU', 'Dropout', 'Linear']
    """

    def __init__(
        self,
        in_features: int,
        classes: int,
        *,
        widths: Sequence[int] = (),
        activation: str = "relu",
        dropout: float = 0.0,
        layer_norm: bool = False,
        bias: bool = True,
        seed: int = 0,
    ) -> None:
        widths = arguments.items("widths", widths, "the hidden layers' widths, such as (64, 32)", most=MOST_LAYERS)
        sizes = {"in_features": in_features, **{f"widths[{i}]": w for i, w in enumerate(widths)}, "classes": classes}
        for name, size in sizes.items():
            arguments.whole(name, size, least=1, most=arguments.MOST_ITEMS)
        for (name, size), before in zip(list(sizes.items())[1:], sizes.values(), strict=False):
            arguments.together("weights", **{name: size, "width before it": before})
        arguments.one_of("activation", activation, tuple(ACTIVATIONS))
        arguments.number("dropout", dropout, least=0, below=1)
        arguments.seed("seed", seed)
        arguments.flag("layer_norm", layer_norm)
        arguments.flag("bias", bias)
        generator = torch.Generator().manual_seed(seed)
        *hidden, last = list(sizes.values())[1:]
        layers: list[nn.Module] = []
        before = in_features
        for width in hidden:
            layers.append(_linear(before, width, bias, generator))
            layers += [nn.LayerNorm(width)] * bool(layer_norm)
            layers.append(ACTIVATIONS[activation]())
            layers += [nn.Dropout(dropout)] * bool(dropout)
            before = width
        super().__init__(*layers, _linear(before, last, bias, generator))
        given = {
            "widths": tuple(hidden),
            "activation": activation,
            "dropout": dropout,
            "layer_norm": layer_norm,
            "bias": bias,
            "seed": seed,
        }
        plain = {"widths": (), "activation": "relu", "dropout": 0.0, "layer_norm": False, "bias": True, "seed": 0}
        if not hidden:  # settings of hidden layers that do not exist are left out
            given |= {name: plain[name] for name in ("activation", "dropout", "layer_norm")}
        self._made = (
            len(self),
            ", ".join([f"Head({in_features}, {classes}", *(f"{n}={v!r}" for n, v in given.items() if v != plain[n])]),
        )

    def __repr__(self) -> str:
        # once layers were added or removed, the code no longer describes it
        layers, code = self._made
        return f"{code})" if len(self) == layers else super().__repr__()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):  # a part of a head is a plain stack of layers
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


def _linear(fan_in: int, fan_out: int, bias: bool, generator: torch.Generator) -> nn.Linear:
    """Initialised as ``nn.Linear`` does it, from the given generator."""
    layer = nn.Linear(fan_in, fan_out, bias=bias, device="meta").to_empty(device="cpu")  # draws nothing
    with torch.no_grad():
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
        if bias:
            limit = 1 / math.sqrt(fan_in)
            layer.bias.uniform_(-limit, limit, generator=generator)
    return layer
