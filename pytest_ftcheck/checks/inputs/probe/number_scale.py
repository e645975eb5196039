"""The numbers that enter the first layer with weights: their scale, and what the outputs do when they are standardised there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ....instruments.tokens import tensors_of
from ..record import NumberScale
from .forward import Forward

#: Standard deviation below which numbers hardly vary. Standardised numbers have 1, pixels of 0 to 1 have 0.2 to 0.3, and such pixels that
#: are divided by 255 once more 0.001: this is half-way, on a scale of logarithms.
SMALL = 0.016


def has_numbers(batch: Any) -> bool:
    """Whether some input of a batch holds several numbers a row."""
    return any(t.is_floating_point() and t.dim() > 1 and t[0].numel() > 1 for t in tensors_of(batch) if len(t))


def measure_number_scale(forward: Forward, batch: Any) -> NumberScale | None:
    """None: the first layer with weights gets no numbers, or normalises them (a LayerNorm, a BatchNorm in training)."""
    with _first_layer(forward.model) as found:
        outputs = forward.run(batch, None).logits
    if not found:
        return None
    name, module, values = found[0]
    if values.numel() < 2 or not bool(torch.isfinite(values).all()):
        return None
    mean, std = float(values.mean()), float(values.std())
    if isinstance(module, _NORMS) and std**2 >= getattr(module, "eps", 0.0):  # smaller numbers it cannot normalise
        return None
    scale = NumberScale(name, float(values.min()), float(values.max()), mean, std)
    if not std > 0 or (std >= SMALL and scale.rms <= scale.LARGE):
        return scale

    def standardise(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return ((args[0] - mean) / std, *args[1:])

    handle = module.register_forward_pre_hook(standardise)
    try:
        standardised = forward.run(batch, None).logits
    finally:
        handle.remove()
    return NumberScale(name, scale.least, scale.largest, mean, std, *_size(outputs), *_size(standardised))


_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LocalResponseNorm,
)


def _size(outputs: torch.Tensor) -> tuple[float, float]:
    """Root mean square around each row's mean (one output: around zero), and standard deviation over the rows."""
    z = outputs.float()
    centred = z - z.mean(1, keepdim=True) if z.shape[1] > 1 else z
    return float(centred.square().mean().sqrt()), float(z.std(0).mean())


@contextlib.contextmanager
def _first_layer(model: nn.Module) -> Iterator[list[tuple[str, nn.Module, torch.Tensor]]]:
    """Inside the ``with``: name, module and input of the first call of a layer with weights of its own that gets several numbers a row."""
    found: list[tuple[str, nn.Module, torch.Tensor]] = []
    embedded: list[bool] = []

    def hook(name: str) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            first = args[0] if args and isinstance(args[0], torch.Tensor) else None
            if found or embedded:
                return
            if first is None or not first.is_floating_point() or first.dim() < 2:
                embedded.append(True)  # of token ids, or called in another way
            else:
                found.append((name, module, first.detach().float()))

        return enter

    layers = [(n, m) for n, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None]
    leaves = [(n, m) for n, m in layers if next(m.children(), None) is None]
    handles = [m.register_forward_pre_hook(hook(n)) for n, m in leaves]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
