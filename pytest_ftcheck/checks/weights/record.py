"""What the loop loads into the model."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.measurement import Measurement


@dataclass(frozen=True)
class Restores(Measurement, probe="restores"):
    """Calls of the model's ``load_state_dict``, and those that were given the model's own weights, changed since they were kept."""

    calls: int = 0
    #: Calls in which every trainable parameter was given its own memory, and was written to since ``state_dict()`` had returned it.
    without_effect: int = 0
    #: Trainable parameters in the first of these; those of them that had been written to.
    parameters: int = 0
    changed: int = 0
