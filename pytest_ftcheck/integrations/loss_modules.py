"""A trainer whose loss is a module of its own, as sentence-transformers': its parameters are trained, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..instruments.reader import LossFn
from .outermost_calls import OutermostCalls


class WithLoss(nn.Module):
    """A model and the modules of its loss, side by side, to be watched as one; it is not called.

    >>> both = WithLoss(nn.Linear(2, 3), {"loss": nn.Linear(3, 1)})
    >>> [n for n, _ in both.named_parameters()], both.eval().training
    (['model.weight', 'model.bias', 'loss.weight', 'loss.bias'], False)
    """

    def __init__(self, model: nn.Module, losses: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        for name, loss in losses.items():
            self.add_module(name, loss)

    @property
    def training(self) -> bool:
        """The model's mode: a trainer switches the model, and leaves the loss as it is."""
        return bool(self._modules["model"].training) if "model" in self._modules else True  # type: ignore[union-attr]

    @training.setter
    def training(self, mode: bool) -> None:
        """The modes of the children are set one by one."""


class LossOfModules:
    """``(model, batch) -> loss`` of a trainer whose loss is a module; and the logits, if the model or the loss gives any.

    :param loss_fn: the same of the model alone.
    """

    def __init__(self, both: WithLoss, loss_fn: LossFn) -> None:
        self.both, self.loss_fn = both, loss_fn

    def __call__(self, _: Any, batch: Any) -> Any:
        losses = [m for m in self.both.children() if m is not self.both.model]
        with OutermostCalls(self.both, transparent=losses) as calls:
            found = self.loss_fn(self.both.model, batch)
        if isinstance(found, tuple):
            return found
        logits = calls.logits()
        return found if logits is None else (found, logits)


def with_loss_module(trainer: Any, model: nn.Module, loss_fn: LossFn | None) -> tuple[nn.Module, LossFn | None]:
    """What is trained, and its loss: the model, together with the trainer's ``loss`` where that is a module (or a mapping of modules) with
    parameters of its own.

    :param loss_fn: ``(model, batch) -> loss`` of the model.
    """
    loss = getattr(trainer, "loss", None)
    named = dict(loss) if isinstance(loss, Mapping) else {"loss": loss}
    losses = {_name(name): module for name, module in named.items() if isinstance(module, nn.Module)}
    if not losses:
        return model, loss_fn
    both = WithLoss(model, losses)
    of_model = {id(p) for p in model.parameters()}
    whole = both if any(id(p) not in of_model for p in both.parameters()) else model
    return whole, None if loss_fn is None else LossOfModules(both, loss_fn)


def _name(key: Any) -> str:
    """A name that a child may have."""
    name = "".join(c if c.isalnum() or c in "_-" else "_" for c in str(key)) or "loss"
    return f"loss_{name}" if name == "model" or hasattr(nn.Module, name) else name
