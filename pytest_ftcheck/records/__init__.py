"""What the experiments measured, one frozen dataclass each: plain numbers, filled by ``training/probes``, judged in ``checks``."""

from __future__ import annotations

from .counterfactuals import Counterfactuals
from .data import Data
from .head import Head
from .inputs import Inputs
from .loss_shape import LossShape
from .modes import Modes
from .reference import ReferenceGradient
from .retraining import Overfit, Permuted

__all__ = [
    "Counterfactuals",
    "Data",
    "Head",
    "Inputs",
    "LossShape",
    "Modes",
    "Overfit",
    "Permuted",
    "ReferenceGradient",
]
