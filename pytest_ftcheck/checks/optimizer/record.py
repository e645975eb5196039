"""The optimizer before the run."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.measurement import Measurement


@dataclass(frozen=True)
class OptimizerStart(Measurement, probe="optimizer_start"):
    """What the optimizer had done before the run."""

    #: Most steps that it has counted for one of its tensors; 0: none, or it counts none.
    steps: int
    #: Tensors of the model for which it keeps state: moments, a velocity.
    with_state: int
