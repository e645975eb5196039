"""The twin of a base: the same class, built anew from the same config; its weights are the base's own."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from .....instruments.base_model import is_library
from .....instruments.configs import config_of
from .....instruments.probe import LeftOut

#: Above this many parameters the twin is built without memory for them, and takes its buffers from the base, too.
BUILT_WHOLE = 30_000_000
#: Parameters without gradient whose values are changed one by one, at most; each costs a forward pass of two rows.
TRIED = 16
#: How the names of the library's own attention implementations begin.
ATTENTION = ("eager", "sdpa", "flash", "flex", "paged")


class Twin:
    """Calls a base's class as its config makes it, with the base's own tensors.

    Raises `LeftOut` where the class and the config cannot make the same module.
    """

    def __init__(self, base: nn.Module) -> None:
        self.base = base
        parameters = dict(base.named_parameters(remove_duplicate=False))
        on_meta = sum(p.numel() for p in base.parameters()) > BUILT_WHOLE
        self.device = next(iter(parameters.values())).device
        self.module = _built(base, parameters, torch.device("meta") if on_meta else self.device).eval()
        if on_meta:
            _share_plain_tensors(base, self.module)
        if reason := _other_attention(base, self.module):
            raise LeftOut(reason)
        # 16-bit weights may have been made with or after their buffers: then those are not the config's to the last bit
        theirs = on_meta or any(p.dtype.itemsize < 4 for p in parameters.values() if p.is_floating_point())
        kept = set(base.state_dict(keep_vars=True)) if not theirs else set()
        self.tensors: dict[str, torch.Tensor] = dict(parameters)
        own = dict(base.named_buffers(remove_duplicate=False))
        for name, buffer in self.module.named_buffers(remove_duplicate=False):
            like = own.get(name)
            if like is not None and (theirs or name in kept):
                self.tensors[name] = like.clone()  # a forward pass may write into a buffer
            elif buffer.device.type == "meta":
                raise LeftOut(f"it has no buffer {name}, which its class makes")
            elif like is not None:
                self.tensors[name] = buffer.to(like.dtype)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The twin's output."""
        return torch.func.functional_call(self.module, self.tensors, args, kwargs, tie_weights=False)

    def without_gradient(self, args: tuple[Any, ...], kwargs: dict[str, Any], names: Sequence[str]) -> tuple[str, ...]:
        """Those of these parameters that no output of the twin is differentiable with respect to.

        Outputs are the tensors that the base returns side by side (the last hidden state, a pooled vector), not the intermediate states in
        tuples beside them. A gradient of exactly zero is one: that is a matter of the values, not of the class. Of a class that refuses
        gradients in evaluation mode (Reformer), those that no output follows.
        """
        own = dict(self.base.named_parameters())
        asked = {n: own[n] for n in names if n in own and own[n].requires_grad and own[n].is_floating_point()}
        if not asked:
            return ()
        try:
            with torch.enable_grad():
                outputs = [v for v in self._outputs(args, kwargs) if v.requires_grad]
                if not outputs:
                    return ()
                total = torch.stack([o.double().sum() for o in outputs]).sum()
                gradients = torch.autograd.grad(total, list(asked.values()), allow_unused=True)
        except Exception:  # noqa: BLE001 - it has values all the same
            return self._not_followed(args, kwargs, asked)
        return tuple(name for name, g in zip(asked, gradients, strict=True) if g is None)

    def _not_followed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], asked: Mapping[str, torch.Tensor]
    ) -> tuple[str, ...]:
        """Those whose values change no bit of the outputs."""
        kept, found = self.tensors, []
        try:
            with torch.no_grad():
                before = self._outputs(args, kwargs)
                for name, p in itertools.islice(asked.items(), TRIED):
                    other = torch.rand(p.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
                    self.tensors = {**kept, name: p + other.to(p)}
                    after = self._outputs(args, kwargs)
                    if len(before) == len(after) and all(map(torch.equal, before, after)):
                        found.append(name)
        finally:
            self.tensors = kept
        return tuple(found)

    def _outputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        out = self(args, kwargs)
        values = out.values() if isinstance(out, Mapping) else out if isinstance(out, (tuple, list)) else [out]
        return [v for v in values if isinstance(v, torch.Tensor)]


def not_comparable(base: nn.Module) -> str:
    """Why a twin from class and config cannot be the same module; empty: it can."""
    name = type(base).__name__
    if not is_library(base):
        return f"{name} is no class of the library's, so what it computes is its author's choice"
    if config_of(base) is None:
        return f"{name} has no config to build a twin from"
    for module in base.modules():
        kind = type(module)
        if kind.__module__.split(".")[0] == "peft":
            return f"{name} is adapted by PEFT ({kind.__name__}), and is not to compute what its class computes"
        if kind.__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            return f"{name} is compiled by torch.compile: its submodules are not called one by one"
        if parametrize.is_parametrized(module):
            return f"{name} is parametrised (torch.nn.utils.parametrize)"
        if kind.__module__.startswith("torch.ao."):
            return f"{name} is quantised ({kind.__name__})"
    if getattr(base, "is_quantized", False) or getattr(base, "quantization_method", None):
        return f"{name} is quantised"
    return _special_parameters(base, name) or _special_attention(base, name)


def _special_parameters(base: nn.Module, name: str) -> str:
    parameters = list(base.parameters())
    for p in parameters:
        if type(p) is not nn.Parameter or type(p.data) is not torch.Tensor:
            return f"the parameters of {name} are of type {type(p).__name__}: quantised, or shared among processes"
        if not p.is_floating_point():
            return f"{name} is quantised (parameters of type {p.dtype})"
    devices = {str(p.device) for p in parameters}
    if len(devices) != 1 or "meta" in devices:
        return f"the parameters of {name} are not all on one device"
    return ""


def _special_attention(base: nn.Module, name: str) -> str:
    attention = attention_of(base)
    if attention and "/" not in attention and not attention.startswith(ATTENTION):
        return f"the attention implementation of {name}, {attention!r}, is not one of the library's"
    return ""


def attention_of(module: nn.Module) -> str:
    """The attention implementation that a config names; empty: none."""
    value = getattr(config_of(module), "_attn_implementation", None)
    return value if isinstance(value, str) else ""


def _other_attention(base: nn.Module, twin: nn.Module) -> str:
    """Why the twin has another attention implementation, of the library's, too; empty: it has the same."""
    if attention_of(base) != attention_of(twin):
        return f"its attention implementation is {attention_of(base)!r}; built anew it is {attention_of(twin)!r}"
    theirs = dict(base.named_modules())
    for name, module in twin.named_modules():
        other = theirs.get(name, module)
        both = (type(other), type(module))
        if type(other) is not type(module) and is_library(other) and all("ttention" in c.__name__ for c in both):
            return f"the attention implementation of {name} is {both[0].__name__}; built anew it is {both[1].__name__}"
    return ""


def _built(base: nn.Module, parameters: dict[str, nn.Parameter], device: torch.device) -> nn.Module:
    """A module of the base's class with parameters of the same names and shapes."""
    shapes = {n: p.shape for n, p in parameters.items()}
    unlike = ""
    for flags in _constructor_flags(type(base)):
        try:
            with device:
                twin = type(base)(copy.deepcopy(base.config), **flags)
        except Exception as error:  # noqa: BLE001 - a constructor that needs more than its config
            name = type(base).__name__
            raise LeftOut(f"{name} cannot be built from its config alone ({type(error).__name__})") from None
        made = {n: p.shape for n, p in twin.named_parameters(remove_duplicate=False)}
        if made == shapes:
            return twin
        unlike = unlike or min(n for n in {*made, *shapes} if made.get(n) != shapes.get(n))
    raise LeftOut(f"{type(base).__name__} has other parameters than its config makes (first: {unlike})")


def _share_plain_tensors(base: nn.Module, twin: nn.Module) -> None:
    """Gives a twin without memory the tensors that modules of the base hold as plain attributes."""
    theirs = dict(base.named_modules())
    for name, module in twin.named_modules():
        for key, value in list(vars(module).items()):
            other = vars(theirs[name]).get(key) if name in theirs else None
            if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
                vars(module)[key] = other


def _constructor_flags(kind: type[nn.Module]) -> Iterator[dict[str, bool]]:
    """Values of the constructor's own switches, such as ``add_pooling_layer``: as they are by default, then otherwise."""
    switches: dict[str, bool] = {}
    with contextlib.suppress(TypeError, ValueError):
        found = inspect.signature(kind).parameters.values()
        switches = {p.name: p.default for p in found if isinstance(p.default, bool)}
    for values in itertools.islice(itertools.product((False, True), repeat=len(switches)), 8):
        yield {name: default != other for (name, default), other in zip(switches.items(), values, strict=True)}
