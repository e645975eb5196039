"""Training and evaluation mode: what is random when, and what should be."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...core.effect import Effect
from ...core.measurement import Measurement


@dataclass(frozen=True)
class DropoutSite:
    """One place where the model drops something at random."""

    name: str
    #: Class of the module, and the attribute that holds the rate.
    kind: str
    rate: float
    #: ``head`` or ``base``.
    part: str
    #: Of the looks at which the parameters around it were trainable: how many there were, and at which iterations it was off.
    looks: int = 0
    off: tuple[int, ...] = ()
    #: The parameters around it got gradients.
    trained: bool = True


@dataclass(frozen=True)
class Statistics:
    """The running statistics of one batch normalisation."""

    name: str
    #: None: all batches count alike.
    momentum: float | None
    #: They were changed during the run.
    changed: bool
    #: Looks at which it was in training mode.
    looks: int


@dataclass(frozen=True)
class Modes(Measurement, probe="modes"):
    """Training and evaluation mode: what is random when, and what should be."""

    #: Rows looked at.
    rows: int = 0
    #: Iterations at which modes were read, right before and right after the step.
    looked: tuple[int, ...] = ()
    #: Those at which the whole model was in evaluation mode, before and after.
    root_off: tuple[int, ...] = ()
    sites: tuple[DropoutSite, ...] = ()
    #: Two passes over the same rows with all modules in training mode, and in evaluation mode; None: not measured.
    training: Effect | None = None
    evaluation: Effect | None = None
    #: Module inside that takes the ids itself, its outputs in those two passes in evaluation mode, and whether it is a class of a library.
    base: str | None = None
    base_evaluation: Effect | None = None
    base_library: bool = False
    #: The user's ``evaluate``: forward passes of the whole model that it made, how many of them in training mode, and how many with
    #: dropout or batch statistics on; None: there is none.
    passes: int | None = None
    passes_training: int = 0
    passes_random: int = 0
    #: It was handed a model in training mode and gave it back in evaluation mode.
    leaves_evaluation_mode: bool = False
    #: It was handed a model with gradients switched on, and left them switched off.
    leaves_gradients_off: bool = False
    #: Parameters whose values it changed, and those whose ``requires_grad`` it changed.
    changes: tuple[str, ...] = ()
    freezes: tuple[str, ...] = ()
    #: At each step looked at, checksums of the random states in which the whole model's last pass in training mode began and ended; of
    #: passes that drew random numbers only.
    random_states: tuple[int, ...] = ()
    random_ends: tuple[int, ...] = ()
    #: Some dropout took out the very same values at each of its calls in those two passes in training mode.
    same_dropped: bool = False
    #: Checksums of the tensor that each step's last pass was given, and of the one in the batch that the step was given.
    inputs_used: tuple[int, ...] = ()
    inputs_given: tuple[int, ...] = ()
    #: Batch normalisations that were in training mode at each step looked at, and counted batches.
    statistics: tuple[Statistics, ...] = ()
    #: ``evaluation``, ``training`` or ``evaluate`` -> why it was not measured.
    unmeasured: dict[str, str] = field(default_factory=dict)
