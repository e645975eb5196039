"""The keyword arguments of ``finetune``, listed once: for type checkers and editors, and for all that hands them on. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import torch

    from ..core.intent import Intent
    from ..instruments.metrics import MetricFn
    from ..instruments.reader import Forward, LossFn

#: The user's own loop body: ``(model, batch, optimizer, scheduler) -> loss``.
StepFn = Callable[[Any, Any, Any, Any], Any]
#: The user's own functions ``(path, model, optimizer, scheduler)`` that save a checkpoint, and load it into other objects.
Checkpoint = tuple[Callable[[Any, Any, Any, Any], Any], Callable[[Any, Any, Any, Any], Any]]


class OwnArguments(TypedDict, total=False):
    """What `finetune` itself takes by keyword, without ``seeds`` and ``executor``; each is explained there."""

    optimizer: torch.optim.Optimizer | Callable[[Any], torch.optim.Optimizer] | str | None
    scheduler: Any
    loss_fn: LossFn | None
    forward: Forward | None
    step: StepFn | None
    head: str | Sequence[str] | None
    metrics: Mapping[str, MetricFn] | None
    eval_batches: Iterable[Any] | None
    evaluate: Callable[[Any], float] | None
    intent: Intent | None
    probes: Sequence[str] | None
    checkpoint: Checkpoint | None


class FinetuneArguments(OwnArguments, total=False):
    """The same and the fields of `Recipe`, which `finetune` takes one by one, too."""

    lr: float
    warmup: float
    schedule: str
    steps: int
    weight_decay: float
    max_grad_norm: float | None
    seed: int
    device: str | None
    threads: int | None
    dtype: str | None
    autocast: str | None
    max_seconds: float | None


#: Names of what ``finetune`` takes beside model, batches and the fields of the recipe (``optimizer`` is both).
ARGUMENTS = ("recipe", *OwnArguments.__annotations__, "seeds", "executor")
