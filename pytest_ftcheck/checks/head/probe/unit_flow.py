"""The units of a head over some rows: the input and the output of each linear layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from ....instruments.global_state import seed_everything
from ....instruments.reader import Reader
from ....instruments.undisturbed import quiet
from ..record import UnitState
from .layers import repeated

#: Rows of one layer that are kept (tokens count as rows), at most.
MOST_ROWS = 4096
#: A unit that never exceeds this is dead.
DEAD_BELOW = 1e-7
#: Size from which on every activation differs from the identity by more than rounding (tanh: by 0.3 %).
CURVED = 0.1

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu (tanh)": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
}


class Flow:
    """Inputs and outputs of some layers in one pass, in the order of their first calls."""

    def __init__(self) -> None:
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        self.logits: torch.Tensor | None = None

    @property
    def order(self) -> tuple[str, ...]:
        """Layers that were called, first to last."""
        return tuple(self.inputs)

    def pairs(self) -> list[tuple[str, str]]:
        """Pairs of layers in which each unit of the first is an input of the second."""
        return [
            (a, b)
            for a, b in zip(self.order, self.order[1:], strict=False)
            if self.outputs[a].shape == self.inputs[b].shape
        ]


def flow(model: nn.Module, reader: Reader, batches: Sequence[Any], layers: Mapping[str, nn.Module]) -> Flow:
    """One pass over the batches, dropout off."""
    pairs_of: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    now: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def remember(_: nn.Module, arguments: Any, out: Any) -> None:
            given = arguments[0] if isinstance(arguments, tuple) and arguments else None
            if name not in now and isinstance(given, torch.Tensor) and isinstance(out, torch.Tensor) and out.dim() > 1:
                now[name] = _flat(given), _flat(out)

        return remember

    handles = [module.register_forward_hook(hook(name)) for name, module in layers.items()]
    found, logits = Flow(), []
    try:
        with quiet(model):
            for batch in batches:
                now.clear()
                seed_everything(0)
                out = reader.logits(batch)
                if out is None:
                    reader.loss(batch)
                else:
                    logits.append(out.detach().float())
                for name, pair in now.items():
                    pairs_of.setdefault(name, []).append(pair)
    finally:
        for handle in handles:
            handle.remove()
    for name, pairs in pairs_of.items():
        if len(pairs) == len(batches):  # not a layer that is called only for some batches
            found.inputs[name] = torch.cat([a for a, _ in pairs])
            found.outputs[name] = torch.cat([b for _, b in pairs])
    if logits and len({v.shape[1:] for v in logits}) == 1:
        found.logits = torch.cat(logits)
    return found


def _flat(values: torch.Tensor) -> torch.Tensor:
    rows = values.detach().reshape(-1, values.shape[-1])
    if len(rows) > MOST_ROWS:
        rows = rows[:: -(-len(rows) // MOST_ROWS)]
    return rows.float().clone()


def activation(before: torch.Tensor, after: torch.Tensor) -> str | None:
    """Which of the usual activations was applied, if one was."""
    if not before.numel() or not bool(torch.isfinite(before).all()):
        return None
    size = max(float(after.abs().max()), 1e-6)
    # near zero tanh is the identity, above zero ReLU is
    distinguishable = float(before.min()) < -CURVED and float(before.abs().max()) > CURVED
    for name, function in _ACTIVATIONS.items():
        if name == "identity" and not distinguishable:
            continue
        if bool(((function(before) - after).abs() <= 1e-3 * after.abs() + 1e-5 * size).all()):
            return name
    return None


def variation(values: torch.Tensor) -> float:
    """rms over units of the standard deviation over rows, over the rms of all values.

    >>> variation(torch.ones(8, 4))
    0.0
    """
    v = values.double()
    size = float((v**2).mean()) ** 0.5
    return float(((v - v.mean(0)) ** 2).mean()) ** 0.5 / size if size > 0 else 0.0


def unit_state(before: torch.Tensor, after: torch.Tensor, kind: str | None) -> UnitState:
    """The units of one layer: ``before`` and ``after`` the activation, ``[rows, units]``."""
    dead = after.abs().amax(0) <= DEAD_BELOW
    saturated = None
    if kind == "tanh":
        saturated = float(((1 - after.double() ** 2) < 1e-3).double().mean())
    elif kind == "sigmoid":
        saturated = float(((after.double() * (1 - after.double())) < 0.25e-3).double().mean())
    return UnitState(
        dead=float(dead.double().mean()),
        # before the activation: saturated units have equal values without being identical
        twins=repeated(before[:, ~dead].t(), 1e-6),
        saturated=saturated,
        variation=variation(after),
        rms=float((after.double() ** 2).mean()) ** 0.5,
        mean_before=float(before.double().mean()),
        largest_before=float(before.max()),
    )
