"""Where a model drops values at random, and which values its dropout modules drop."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from ....instruments.uncompiled import leave_uncompiled

#: Functions ``(input, rate, training, ...)`` that drop values.
_DROPOUTS = (F.dropout, F.alpha_dropout, F.feature_alpha_dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout)
#: Attributes that hold the rate of a dropout which a module applies itself.
RATES = ("dropout", "attention_dropout", "dropout_p", "dropout_rate", "hidden_dropout", "attn_dropout", "p")
#: Values that a dropout must drop before the same pattern twice means something, and values of an output that is compared, at most.
MIN_DROPPED, MOST_COMPARED = 8, 1_000_000
#: Logits that are exactly zero, and their share, from which on rounding did not make them: of many in low precision single ones cancel out.
MIN_ZEROED, MIN_ZEROED_SHARE = 2, 0.01


@dataclass
class Site:
    """One place where something is dropped at random, while the run goes on."""

    name: str
    module: nn.Module
    kind: str
    rate: float
    #: The innermost module around it that has parameters, and its name: dropout matters while one of them is trained.
    owner: nn.Module
    owner_name: str
    observed: int = 0
    off_at: list[int] = field(default_factory=list)


def find_sites(model: nn.Module) -> Iterator[Site]:
    """Every dropout of a model: modules of that kind, and modules with a rate that they apply themselves."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for name, module in modules.items():
        kind_and_rate = _kind_and_rate(module)
        if kind_and_rate is None:
            continue
        owner_name = name
        while owner_name and next(modules[owner_name].parameters(), None) is None:
            owner_name = owner_name.rpartition(".")[0]
        yield Site(name, module, *kind_and_rate, modules[owner_name], owner_name)


def _kind_and_rate(module: nn.Module) -> tuple[str, float] | None:
    kind = type(module).__name__
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return kind, float(module.p)
    if isinstance(module, nn.RNNBase) and module.num_layers == 1:
        return None
    for attribute in RATES:
        value = module.__dict__.get(attribute)
        if isinstance(value, float) and not isinstance(value, bool) and 0 < value <= 1:
            return f"{kind}.{attribute}", value
    return None


@contextlib.contextmanager
def dropped_patterns(sites: Sequence[Site]) -> Iterator[dict[str, list[int]]]:
    """Inside the ``with``: checksums of which values each call of a dropout module drops, by module, if those are several."""
    patterns: dict[str, list[int]] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def compare(_module: nn.Module, args: Any, out: Any) -> None:
            given = args[0] if args and isinstance(args[0], torch.Tensor) else None
            if given is None or not isinstance(out, torch.Tensor) or given.shape != out.shape:
                return
            if out.numel() > MOST_COMPARED:
                return
            dropped = (out == 0) & (given != 0)
            if MIN_DROPPED <= int(dropped.sum()) < dropped.numel():
                patterns.setdefault(name, []).append(zlib.crc32(dropped.cpu().numpy().tobytes()))

        return compare

    with _hooked([s for s in sites if s.rate < 1], hook):
        yield patterns


@contextlib.contextmanager
def _hooked(sites: Sequence[Site], hook: Callable[[str], Callable[[nn.Module, Any, Any], None]]) -> Iterator[None]:
    """Inside the ``with``: ``hook(name)`` is a forward hook of each dropout module with a rate above 0."""
    modules = [s for s in sites if isinstance(s.module, nn.modules.dropout._DropoutNd) and s.rate > 0]
    handles = [s.module.register_forward_hook(hook(s.name)) for s in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def dropout_outputs(sites: Sequence[Site]) -> Iterator[dict[str, torch.Tensor]]:
    """Inside the ``with``: the last output of each dropout module with a rate above 0, large ones left out."""
    outputs: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _args: Any, out: Any) -> None:
            if isinstance(out, torch.Tensor) and out.numel() <= MOST_COMPARED:
                outputs[name] = out.detach()

        return keep

    with _hooked(sites, hook):
        yield outputs


class DropoutCalls(TorchFunctionMode):
    """Inside the ``with``: the output and the rate of each call of a dropout function in training mode, large outputs left out.

    A module of torch's calls such a function, too.

    >>> with DropoutCalls() as calls:
    ...     _ = F.dropout(torch.ones(2, 3), 0.5), F.dropout(torch.ones(2, 3), 0.5, training=False), torch.relu(torch.ones(2, 3))
    >>> [rate for _, rate in calls.outputs]
    [0.5]
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[tuple[torch.Tensor, float]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hands every call on. Inside this function the mode is off."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in _DROPOUTS and isinstance(out, torch.Tensor) and out.numel() <= MOST_COMPARED:
            rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
            if training and 0 < rate < 1:
                self.outputs.append((out.detach(), float(rate)))
        return out


leave_uncompiled(DropoutCalls.__torch_function__)


def rate_at_the_end(calls: DropoutCalls, logits: torch.Tensor) -> float | None:
    """The rate of the dropout whose output is the logits; None: none is."""
    return next((rate for out, rate in reversed(calls.outputs) if _same(out, logits)), None)


def last_of_all(outputs: dict[str, torch.Tensor], logits: torch.Tensor) -> str | None:
    """The dropout module whose output is the logits; None: none is.

    >>> last_of_all({"dropout": torch.ones(2, 3)}, torch.ones(2, 3)), last_of_all({"dropout": torch.ones(2, 3)}, torch.zeros(2, 3))
    ('dropout', None)
    """
    return next((name for name, out in outputs.items() if _same(out, logits)), None)


def zeroed_share(evaluation: torch.Tensor, training: Sequence[torch.Tensor]) -> float | None:
    """Share of the logits that are exactly zero in passes in training mode alone, others in each pass. None: none, or too few to tell.

    However it is written, dropout does that; a continuous output does not. A row that is zero throughout does not count: its features
    may have been dropped. Outputs of one sign do not, either: a ReLU ends them at zero.

    :param evaluation: logits in evaluation mode, ``(rows, ..., outputs)``.  :param training: those of the same rows in training mode.

    >>> logits = torch.tensor([[1.0, -2.0, 0.5], [0.3, -1.0, 2.0]])
    >>> one, two = (logits * torch.tensor(kept) for kept in ([1, 0, 1], [0, 1, 1]))
    >>> round(zeroed_share(logits, [one, two]), 2), zeroed_share(logits, [one, one]), zeroed_share(logits.abs(), [one, two])
    (0.33, None, None)
    """
    if evaluation.dim() < 2 or evaluation.numel() > MOST_COMPARED or bool((evaluation == 0).any()):
        return None
    if bool((evaluation > 0).all() or (evaluation < 0).all()) or any(z.shape != evaluation.shape for z in training):
        return None
    zeros = [(z == 0) & (z != 0).any(-1, keepdim=True) for z in training]
    count, share = sum(int(z.sum()) for z in zeros), float(torch.stack(zeros).double().mean())
    if count < MIN_ZEROED or share < MIN_ZEROED_SHARE or all(torch.equal(z, zeros[0]) for z in zeros):
        return None
    return share


def _same(out: torch.Tensor, logits: torch.Tensor) -> bool:
    """Whether these are the same values, in whatever shape and type."""
    return out.numel() == logits.numel() and torch.equal(out.reshape(-1).to(logits.dtype), logits.detach().reshape(-1))
