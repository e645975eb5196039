"""What an adapter of a training framework says of the loop that the framework runs, and whom it says it to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..instruments.reader import LossFn


@dataclass(frozen=True)
class StartedLoop:
    """What a framework's loop trains, known when its training begins."""

    model: nn.Module
    #: The optimizers that train the model; empty: adopted when they first step.
    optimizers: Sequence[torch.optim.Optimizer] = ()
    scheduler: Any = None
    #: A batch from the training set, made by the framework's own collator; no random state was drawn for it.
    probe_batch: Any = None
    #: The framework's own loss of a batch, ``(model, batch) -> loss`` or ``(loss, logits)``; None: the model's own.
    loss_fn: LossFn | None = None
    notes: Sequence[str] = ()


class LoopListener(Protocol):
    """Whom an adapter tells."""

    def training_begins(self, loop: StartedLoop) -> None:
        """The first iteration is about to begin; model, optimizers and data exist."""

    def training_ends(self, error: BaseException | None = None) -> None:
        """The last step was taken, and no other weights were loaded as yet; may be called twice."""


class FrameworkAdapter(Protocol):
    """One training framework's object, a ``Trainer`` say: its loop is watched between ``attach`` and ``detach``."""

    def attach(self, listener: LoopListener) -> None:
        """Tell this listener from now on."""

    def detach(self) -> None:
        """The framework's object is as it was before; never raises, may be called twice."""
