"""How large the logits of a newly made model of the same library class are."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from ....instruments.base_model import is_library
from ....instruments.batches import split
from ....instruments.configs import config_of
from ....instruments.probe import ProbeContext
from ....instruments.undisturbed import perturbed

#: A model with more parameters is not made a second time.
LARGEST = 30_000_000
#: A loss this many times that of a uniform prediction or more is what the limit of `initial_loss` may refuse, whatever its argument.
HIGH = 1.5


def logits_of_class(context: ProbeContext, batch: Any, logits: torch.Tensor) -> float | None:
    """Their size for these rows, as `size_of` says; None: the loss is not high, or the model is no library's, or is too large.

    The config's own values for the initial spread (``initializer_range`` and the like) are those of its class, so that a slip in one of
    them counts as the user's.
    """
    model, labels = context.model, split(batch)[1]
    if not is_library(model) or not isinstance(labels, torch.Tensor) or logits.shape[-1] < 2:
        return None
    parameters = dict(model.named_parameters())
    if sum(p.numel() for p in parameters.values()) > LARGEST:
        return None
    try:
        if float(context.reader.reference(logits.float(), labels)) <= HIGH * math.log(logits.shape[-1]):
            return None
        fresh = dict(type(model)(_with_spread_of_class(config_of(model))).named_parameters())
        if {n: p.shape for n, p in fresh.items()} != {n: p.shape for n, p in parameters.items()}:
            return None
        with perturbed(parameters.values()), torch.no_grad():
            for name, p in parameters.items():
                p.copy_(fresh[name])
            after = context.reader.logits(batch)
    except Exception:  # noqa: BLE001 - a class that needs more than its config
        return None
    return None if after is None else size_of(after)


def centred(logits: torch.Tensor) -> torch.Tensor:
    """``(rows, outputs of a row)``, without a row's mean, where it has more than one output."""
    z = logits.detach().float().reshape(len(logits), -1)
    return z - z.mean(1, keepdim=True) if z.shape[1] > 1 else z


def size_of(logits: torch.Tensor) -> float:
    """Root mean square around a row's mean."""
    return float(centred(logits).pow(2).mean().sqrt())


def _with_spread_of_class(config: Any) -> Any:
    """A copy of a config, whose settings of the initial weights are its class's defaults."""
    copied, default = copy.deepcopy(config), type(config)()
    for name in default.to_dict():
        if "init" in name and hasattr(copied, name):
            setattr(copied, name, getattr(default, name))
    return copied
