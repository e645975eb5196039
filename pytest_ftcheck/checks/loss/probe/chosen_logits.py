"""Logits of our choosing, in the shape of a batch's."""

from __future__ import annotations

from typing import Any

import torch

from .targets import Targets


class ChosenLogits:
    """Logits of our choosing for one batch, and its labels as `Targets`."""

    def __init__(self, batch: Any, target: Targets, logits: torch.Tensor) -> None:
        self.batch, self.target, self.shape = batch, target, logits.shape
        self.device = logits.device
        self.generator = torch.Generator().manual_seed(0)

    def random(self, spread: float) -> torch.Tensor:
        """Random logits of this standard deviation."""
        return spread * torch.randn(self.shape, generator=self.generator, device="cpu").to(self.device)

    def along(self, sign: torch.Tensor, margin: float) -> torch.Tensor:
        """Logits of this margin in the direction of the signs."""
        return (margin * sign).reshape(self.shape).to(self.device)

    def near_labels(self) -> torch.Tensor:
        """The labels themselves plus random numbers, for regression."""
        y = self.target.y
        return (y + self.random(1.0).reshape(y.shape)).reshape(self.shape)
