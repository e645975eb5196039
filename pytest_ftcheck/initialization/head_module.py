"""A model's head as a separate module, with its input features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..checks.head.probe.layers import linear_layers
from ..checks.head.probe.unit_flow import activation, flow
from ..instruments.batches import Batches
from ..instruments.parameter_roles import find_head
from ..instruments.reader import Reader
from ..instruments.undisturbed import quiet
from .extract import extract_features, module_of
from .features import Features
from .heads import ACTIVATIONS

_MODULES: dict[str, Callable[[], nn.Module]] = {
    **ACTIVATIONS,
    "softplus": nn.Softplus,
    "gelu (tanh)": lambda: nn.GELU(approximate="tanh"),
    "identity": nn.Identity,
}


def head_of(model: Any, batches: Any, held_out: Any = None, *, head: Any = None) -> tuple[nn.Module, Features]:
    """A copy of a model's head, and its features: what :func:`sweep` takes.

    A head that is one module is copied as it is. Where it is several, called by the model's own ``forward`` (DistilBERT's
    ``pre_classifier`` and ``classifier``), the linear layers are chained in the order in which they run, with the activation between them
    recognised by its values; dropout between them is left out.

    :param model: arguments as in :func:`extract_features`.
    :raises ValueError: an unknown operation lies between two layers.

    >>> from pytest_ftcheck import tiny_distilbert, toy_batches
    >>> made, features = head_of(tiny_distilbert(seed=0), toy_batches(2))
    >>> len(made), features.width
    (4, 64)
    """
    made = module_of("model", model)
    source = Batches(batches, None)
    kept = source.source  # a one-shot iterator has been read by now
    features = extract_features(made, kept, held_out, head=head)
    prefixes = find_head(made, head)
    modules = dict(made.named_modules())
    if len(prefixes) == 1 and prefixes[0] in modules:
        return copy.deepcopy(modules[prefixes[0]]), features
    return _chain(made, source.take(0), linear_layers(made, prefixes)), features


def _chain(model: nn.Module, batch: Any, layers: dict[str, nn.Module]) -> nn.Module:
    with quiet(model), torch.no_grad():
        reader = Reader(model, batch)
    seen = flow(model, reader, [batch], layers)
    parts: list[nn.Module] = []
    for before, after in zip((None, *seen.order), seen.order, strict=False):
        if before is not None:
            out, entered = seen.outputs[before], seen.inputs[after]
            kind = activation(out, entered) if out.shape == entered.shape else None
            if kind is None:
                raise ValueError(
                    f"head: the operation between {before} and {after} is not a known activation; make the head a separate module"
                )
            parts.append(_MODULES[kind]())
        parts.append(copy.deepcopy(layers[after]))
    return nn.Sequential(*parts)
