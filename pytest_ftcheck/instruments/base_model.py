"""The base of a classifier, the module inside that takes token ids and their mask: found, called, and its calls recorded."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..core.effect import Effect
from .undisturbed import parameters_of, perturbed

#: Numbers that are compared at once: 2 MB.
BLOCK = 2**18


@dataclass
class Call:
    """One call of the base, as the classifier made it."""

    arguments: dict[str, Any] = field(default_factory=dict)
    #: Keywords that are no parameters of its forward, and disappear in ``**kwargs``.
    unknown: tuple[str, ...] = ()
    hidden: torch.Tensor | None = None


@dataclass(frozen=True)
class BaseModel:
    """The base of one model."""

    name: str
    module: nn.Module
    parameters: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """How the names of its parameters in the model begin; empty: it is the model."""
        return f"{self.name}." if self.name else ""

    @property
    def library(self) -> bool:
        """Whether its class comes with transformers."""
        return is_library(self.module)

    def direct(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Its hidden states for these ids and this mask: ``(rows, columns, width)``."""
        out = hidden_of(self.module(input_ids=ids, attention_mask=mask), ids)
        if out is None:
            raise ValueError(f"{self.name} gives no vector for each token")
        return out


def is_library(module: nn.Module) -> bool:
    """Whether the class comes with transformers: then its behaviour is by design, and no fault of the training script."""
    # code of a model on the Hub is loaded as transformers_modules
    return type(module).__module__.startswith(("transformers.", "transformers_modules."))


def find_base_models(model: nn.Module) -> list[BaseModel]:
    """The modules inside whose ``forward`` takes ``input_ids`` and ``attention_mask``, the outermost first."""
    found = []
    for name, module in model.named_modules():
        if module is model:
            continue
        with contextlib.suppress(TypeError, ValueError):
            names = tuple(inspect.signature(module.forward).parameters)
            if "input_ids" in names and "attention_mask" in names:
                found.append(BaseModel(name, module, names))
    return found


def hidden_of(out: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """The hidden states, one vector a token, in a base's output; None: there are none."""
    if not isinstance(out, torch.Tensor):
        out = getattr(out, "last_hidden_state", None) if hasattr(out, "last_hidden_state") else _first(out)
    fits = isinstance(out, torch.Tensor) and out.dim() == 3 and out.shape[:2] == ids.shape
    return out if fits else None


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, (tuple, list)) and len(out) else None


@contextlib.contextmanager
def recorded_calls(inner: BaseModel | None, ids: torch.Tensor | None = None) -> Iterator[list[Call]]:
    """The calls of the base inside the ``with``; the hook is removed afterwards."""
    calls: list[Call] = []
    if inner is None:
        yield calls
        return
    signature = inspect.signature(inner.module.forward)
    rest = next((n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD), None)

    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        call = Call()
        with contextlib.suppress(TypeError):
            call.arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
            call.unknown = tuple(call.arguments.pop(rest, {})) if rest is not None else ()
        call.hidden = None if ids is None else hidden_of(out, ids)
        calls.append(call)

    handle = inner.module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@contextlib.contextmanager
def recorded_inputs(module: nn.Module | None) -> Iterator[list[torch.Tensor]]:
    """The first tensor of each call of a module inside the ``with``; the hook is removed afterwards."""
    seen: list[torch.Tensor] = []
    if module is None:
        yield seen
        return

    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        first = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
        if first is not None:
            seen.append(first.detach().clone())  # an activation may be changed in place later

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def effect(
    first: torch.Tensor, second: torch.Tensor, reference: torch.Tensor | None = None, precision: float | None = None
) -> Effect | None:
    """The largest difference between ``first`` and ``second``, with the spread of ``reference`` (by default ``first``) over its rows.

    None where a number is not finite, or the shapes differ.
    """
    if first.shape != second.shape or not first.numel():
        return None
    eps = precision or max(_eps(first), _eps(second))
    a, b = (v.detach().reshape(len(v), -1) for v in (first, second))
    all_rows = a if reference is None else reference.detach().reshape(len(reference), -1)
    change = squares = scale = 0.0
    for one, two in zip(_blocks(a), _blocks(b), strict=True):
        largest = float((one - two).abs().max())
        if not math.isfinite(largest):
            return None
        change = max(change, largest)
        scale = max(scale, float(one.abs().max()), float(two.abs().max()))
    for block in _blocks(all_rows):
        squares += float((block - block.mean(0)).square().sum())
        scale = max(scale, float(block.abs().max()))
        if not math.isfinite(squares):
            return None
    return Effect(change=change, spread=math.sqrt(squares / all_rows.numel()), scale=scale, precision=eps)


def _blocks(rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """Columns of all rows in float64, few enough to stay in the processor's cache."""
    for block in rows.split(max(1, BLOCK // len(rows)), dim=1):  # type: ignore[no-untyped-call]
        yield block.double()


def precision_of(model: nn.Module) -> float:
    """Relative spacing of numbers in the coarsest dtype of the weights, or of matrix products on a GPU."""
    coarsest = max(map(_eps, parameters_of(model)), default=0.0)
    fast = torch.get_float32_matmul_precision() != "highest" or torch.backends.cuda.matmul.allow_tf32
    on_gpu = any(p.device.type == "cuda" for p in parameters_of(model))
    return max(coarsest, 2.0**-10) if fast and on_gpu else coarsest


@contextlib.contextmanager
def rounded(model: nn.Module, precision: float) -> Iterator[None]:
    """Inside, every weight is one rounding error larger or smaller, the same way each time; afterwards every bit is as before."""
    weights = [p for p in model.parameters() if p.is_floating_point()]
    generator = torch.Generator("cpu").manual_seed(0)
    with perturbed(weights):
        for p in weights:
            signs = torch.randint(0, 2, p.shape, generator=generator, dtype=torch.int8, device="cpu").mul_(2).sub_(1)
            p.data.mul_(signs.to(p.device, p.dtype).mul_(precision).add_(1))
        yield


@contextlib.contextmanager
def output_types(model: nn.Module) -> Iterator[set[torch.dtype]]:
    """Floating-point dtypes of the outputs of all modules inside: under autocast they are coarser than the weights."""
    types: set[torch.dtype] = set()

    def hook(_module: nn.Module, _args: Any, out: Any) -> None:
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            types.add(out.dtype)

    handles = [m.register_forward_hook(hook) for m in model.modules() if not any(True for _ in m.children())]
    try:
        yield types
    finally:
        for handle in handles:
            handle.remove()


def _eps(value: torch.Tensor) -> float:
    return torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
