"""By how much a loop's loss differs from the mean over this rank's rows: a loss over the rows of all ranks is summed over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ....instruments.loop_calls import LoopCallListener

#: Losses in which a target may be ignored.
_IGNORING = ("cross_entropy", "nll_loss")
#: The target that is ignored by default.
_IGNORED = -100


class LossWeights(LoopCallListener):
    """Between two optimizer steps: the sum over the backward passes of (what backward was called on) / (the mean of torch's loss), and the
    product of the factors of ``clip_grad_norm_``. Numbers stay on their device."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A step was taken."""
        self.weight: torch.Tensor | None = None
        self.clipped: torch.Tensor | None = None
        self._known = True
        self._means: list[torch.Tensor | None] = []

    def loss_called(self, function: str, loss: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """One of torch's losses was computed."""
        self._means.append(_mean(function, loss.detach(), args, kwargs))

    def backward_called(self, loss: torch.Tensor) -> None:
        """A backward pass of several losses, or of one that is none of torch's, has no known weight."""
        mean = self._means[0] if len(self._means) == 1 else None
        self._means = []
        if mean is None:
            self._known = False
            return
        weight = loss.detach().sum().float() / mean.float()
        self.weight = weight if self.weight is None else self.weight + weight

    def gradients_clipped(self, factor: torch.Tensor) -> None:
        """`clip_grad_norm_` multiplies the gradients."""
        factor = factor.detach().float().reshape(())
        self.clipped = factor if self.clipped is None else self.clipped * factor

    @property
    def known(self) -> torch.Tensor | None:
        """The weight; None: not known."""
        return self.weight if self._known else None


def _mean(function: str, loss: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The mean over the rows of a loss, whatever reduction it was computed with; None: not known."""
    if len(args) > 3 or kwargs.get("weight") is not None or kwargs.get("reduce") is not None:
        return None
    reduction = kwargs.get("reduction", "mean")
    if reduction == "mean":
        return loss
    target = args[1] if len(args) > 1 else kwargs["target"]
    if function in _IGNORING and not target.is_floating_point():
        count = (target != kwargs.get("ignore_index", _IGNORED)).sum()
    else:
        count = torch.tensor(float(target.numel()), device=loss.device)
    mean: torch.Tensor = loss.sum() / count
    return mean
