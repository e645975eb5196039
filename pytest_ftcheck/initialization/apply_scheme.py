"""Applies a scheme to tensors: which layers it initialises, and with which values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..checks.head.probe.layers import linear_layers
from ..core import arguments
from ..core.init_distributions import Draw
from ..core.init_scheme import TORCH_BIAS, InitScheme
from ..instruments import given
from ..instruments.parameter_roles import find_head

M = TypeVar("M", bound=nn.Module)


def head_layers(module: nn.Module, only: str | Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Name -> linear layer that a scheme initialises, in the order of the module.

    Of a whole model those of its head, of any other module all. Adapters (``lora_``) and the original that PEFT keeps beside its trained
    copy are left out.

    :raises ValueError: there is none, or ``only`` names nothing.
    """
    given.module("module", module)
    for name, part in module.named_modules():
        if isinstance(getattr(part, "weight", None), nn.UninitializedParameter):
            raise ValueError(
                f"module: {name or type(part).__name__} has no values yet (a lazy layer): call the model once first"
            )
    prefixes = _prefixes(module, only)
    found = {
        n: m
        for n, m in (linear_layers(module, prefixes) if prefixes else _all(module)).items()
        if "original_module" not in n.split(".")
    }
    if not found:
        where = f" under {', '.join(prefixes)}" if prefixes else ""
        raise ValueError(
            f"module: no linear layer{where} in {type(module).__name__} (it has {_contents(module)}); an initialisation that matches "
            "nothing would silently change nothing"
        )
    for name, layer in found.items():
        if getattr(layer.weight, "is_meta", False):
            raise ValueError(
                f"module: {name or type(layer).__name__} has no values yet (a meta tensor): make it real first"
            )
    return found


def _prefixes(module: nn.Module, only: str | Sequence[str] | None) -> tuple[str, ...]:
    if only is not None:
        return find_head(module, only, "only")
    if isinstance(module, (nn.Linear, nn.Sequential, nn.ModuleList)):
        return ()
    try:
        return find_head(module, None)
    except ValueError:  # a head by itself has no head
        return ()


def _all(module: nn.Module) -> dict[str, nn.Module]:
    # as a child, so that a bare nn.Linear has a name
    found = linear_layers(nn.ModuleDict({"_": module}), ("_",))
    return {n[2:] if n != "_" else "": m for n, m in found.items()}


def _contents(module: nn.Module) -> str:
    kinds = dict.fromkeys(type(m).__name__ for m in module.modules() if not list(m.children()))
    return ", ".join(list(kinds)[:6]) or "nothing"


def apply(scheme: InitScheme, module: M, seed: int, only: str | Sequence[str] | None) -> M:
    """See `InitScheme.apply`."""
    arguments.seed("seed", seed)
    layers = list(head_layers(module, only).items())
    _check_prior(scheme, layers[-1])
    # on the CPU, in float32: the same values on every device and in every dtype
    generator = torch.Generator("cpu").manual_seed(seed)
    tied: set[int] = set()
    drawn: list[tuple[nn.Module, str, torch.Tensor]] = []
    with torch.no_grad(), torch.device("cpu"):  # whatever torch.set_default_device says
        for i, (_, layer) in enumerate(layers):
            if id(layer.weight) in tied:
                continue  # a tied layer is initialised once
            tied.add(id(layer.weight))
            for name, values in _drawn(scheme.at(i, len(layers)), layer, generator, last=i == len(layers) - 1):
                drawn.append((layer, name, _cast(values, getattr(layer, name))))
        for layer, name, values in drawn:  # all or nothing
            _put(layer, name, values)
    return module


def _check_prior(scheme: InitScheme, last: tuple[str, nn.Module]) -> None:
    name, layer = last
    prior = scheme.at(0, 1).prior
    if prior is None:
        return
    bias = getattr(layer, "bias", None)
    outputs = None if bias is None else bias.numel()
    one_logit = outputs == 1 and len(prior) == 2 and not scheme.tags
    if outputs != len(prior) and not one_logit:
        what = "has no bias" if outputs is None else f"has {outputs} outputs"
        raise ValueError(f"with_class_prior({prior!r}): {len(prior)} shares, but the last layer {name} {what}")


def _drawn(
    scheme: InitScheme, layer: nn.Module, generator: torch.Generator, *, last: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    transposed = not isinstance(layer, nn.Linear)  # transformers' Conv1D keeps [in, out]
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    shape = tuple(reversed(weight.shape)) if transposed else tuple(weight.shape)
    values = torch.empty(shape, dtype=torch.float32, device="cpu")
    fill(scheme.weight, values, generator, last=last)
    yield "weight", values.t() if transposed else values
    bias = getattr(layer, "bias", None)
    if isinstance(bias, torch.Tensor):
        yield "bias", bias_values(scheme, bias.numel(), shape[1], generator)


def bias_values(scheme: InitScheme, outputs: int, fan_in: int, generator: torch.Generator) -> torch.Tensor:
    """What the bias of one layer starts at, ``[outputs]``."""
    if scheme.prior is not None:
        shares = torch.tensor(scheme.prior, dtype=torch.float64, device="cpu")
        if scheme.tags or outputs == 1:
            shares = shares if scheme.tags else shares[1:]
            return torch.logit(shares).float()
        return shares.log().float()
    if scheme.bias == TORCH_BIAS:
        bound = 1 / math.sqrt(fan_in)
        values = torch.empty(outputs, dtype=torch.float32, device="cpu")
        return values.uniform_(-bound, bound, generator=generator)
    return torch.full((outputs,), float(scheme.bias), dtype=torch.float32, device="cpu")


def _cast(drawn: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    values = drawn.to(old.device, old.dtype)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"module: its {old.dtype} cannot hold the scheme's values (up to {float(drawn.abs().max()):.3g}): expected a smaller scale"
        )
    return values


def _put(layer: nn.Module, name: str, values: torch.Tensor) -> None:
    if parametrize.is_parametrized(layer, name):
        setattr(layer, name, values)  # through the parametrization's right inverse
    else:
        getattr(layer, name).copy_(values)


def fill(draw: Draw, weight: torch.Tensor, generator: torch.Generator, *, last: bool = False) -> None:
    """Fill a float32 CPU matrix ``[fan_out, fan_in]`` in place."""
    fan_out, fan_in = weight.shape
    init, std = nn.init, draw.std_of(fan_in, fan_out, last=last)
    if draw.family == "normal":
        init.normal_(weight, 0.0, std, generator=generator)
    elif draw.family == "uniform":
        bound = draw.bound_of(fan_in, fan_out) or 0.0
        init.uniform_(weight, -bound, bound, generator=generator)
    elif draw.kind == "truncated_normal":
        assert draw.std is not None
        assert draw.cut is not None
        init.trunc_normal_(weight, 0.0, draw.std, -draw.cut * draw.std, draw.cut * draw.std, generator=generator)
    elif draw.kind == "orthogonal":
        init.orthogonal_(weight, draw.gain or 1.0, generator=generator)
    elif draw.kind == "sparse":
        # not init.sparse_: it draws the places of the zeros from the global random state, generator or not
        weight.normal_(0.0, draw.std or 0.0, generator=generator)
        zeros = math.ceil((draw.sparsity or 0.0) * weight.shape[0])
        for column in range(weight.shape[1]):
            weight[torch.randperm(weight.shape[0], generator=generator, device="cpu")[:zeros], column] = 0
    elif draw.kind == "eye":
        with torch.device("cpu"):  # it makes a tensor of its own
            init.eye_(weight)
        weight.mul_(draw.gain or 1.0)
    else:
        init.constant_(weight, draw.value or 0.0)
