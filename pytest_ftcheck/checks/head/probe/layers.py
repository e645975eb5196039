"""The linear layers of a head: which they are, and how they start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ....instruments.parameter_roles import in_part
from ..record import Layer

#: Values of a weight matrix that its moments are taken of, at most: more would tell no more.
VALUES = 1_000_000


def linear_layers(model: nn.Module, head: Sequence[str]) -> dict[str, nn.Module]:
    """Name -> linear layer of the head, adapters and layers without a floating-point matrix left out."""
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":  # transformers' own linear layer
            continue
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not weight.numel():
            continue
        if not weight.is_floating_point() or any(s.startswith(("lora_", "adapter")) for s in name.lower().split(".")):
            continue
        if in_part(f"{name}.weight", head):
            found[name] = module
    return found


def matrix_of(module: nn.Module) -> torch.Tensor:
    """The weights as ``[units, inputs]``."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach() if isinstance(module, nn.Linear) else weight.detach().t()


def describe_layer(name: str, module: nn.Module, following: nn.Module | None, *, last: bool) -> Layer:
    """A layer as it is now; ``following`` is the one that its units feed."""
    matrix = matrix_of(module)
    flat = matrix.reshape(-1)
    if flat.numel() > VALUES:
        flat = flat[:: -(-flat.numel() // VALUES)]
    finite = flat[torch.isfinite(flat)].double()
    bias = getattr(module, "bias", None)
    offsets = bias.detach().double() if isinstance(bias, torch.Tensor) and bias.numel() else None
    mean = float(finite.mean()) if len(finite) else 0.0
    centred = finite - mean
    variance = float((centred**2).mean()) if len(finite) else 0.0
    spread = float(finite.max() - finite.min()) if len(finite) else 0.0
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return Layer(
        name=name,
        units=matrix.shape[0],
        fan_in=matrix.shape[1],
        mean=mean,
        std=variance**0.5,
        largest=float(finite.abs().max()) if len(finite) else 0.0,
        kurtosis=float((centred**4).mean()) / variance**2 if variance > 0 and spread > 0 else None,
        nonfinite=int((~torch.isfinite(matrix)).sum()),
        constant=spread == 0,
        bias=None if offsets is None else float(offsets.abs().max()),
        bias_mean=None if offsets is None else float(offsets.mean()),
        last=last,
        trainable=weight.requires_grad,
        twins=twins(matrix, offsets, None if following is None else matrix_of(following)),
    )


def twins(incoming: torch.Tensor, bias: torch.Tensor | None, outgoing: torch.Tensor | None) -> float:
    """Share of units that have the incoming weights, and the outgoing ones, of another unit.

    >>> twins(torch.ones(4, 3), None, torch.ones(2, 4))
    1.0
    >>> twins(torch.ones(4, 3), None, torch.randn(2, 4))
    0.0
    """
    if outgoing is None or outgoing.shape[1] != len(incoming) or len(incoming) < 2:
        return 0.0
    columns = [incoming.double(), outgoing.t().double()]
    return repeated(torch.cat(columns if bias is None else [*columns, bias[:, None].double()], dim=1))


def repeated(rows: torch.Tensor, tolerance: float = 0.0) -> float:
    """Share of rows that equal another row, by the sum of their elements with random weights; without a tolerance, element by element."""
    if len(rows) < 2:
        return 0.0
    g = torch.Generator().manual_seed(0)
    weights = torch.randn(rows.shape[1], generator=g, dtype=torch.float64, device="cpu").to(rows.device)
    key = (rows.double() * weights).sum(1)
    order = torch.argsort(key)
    ordered = key[order]
    gap = (ordered[1:] - ordered[:-1]).abs()
    scale = (rows.double().abs() * weights.abs()).sum(1)[order]
    near = gap <= torch.maximum(scale[1:], scale[:-1]) * max(tolerance, 1e-12)
    if not tolerance and bool(near.any()):  # among thousands of rows some sums come that near by chance
        at = near.nonzero()[:, 0]
        near[at] = (rows[order[at]] == rows[order[at + 1]]).all(1)
    same = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    same[1:] |= near
    same[:-1] |= near
    return float(same.double().mean())
