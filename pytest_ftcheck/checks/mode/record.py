"""What the modes probe measures: what is random in training and in evaluation mode, and what should be."""

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
    #: Steps observed while the parameters around it were trainable, and the iterations of those at which it was off.
    observed: int = 0
    off_at: tuple[int, ...] = ()
    #: The parameters around it got gradients.
    trained: bool = True


@dataclass(frozen=True)
class BatchNormStatistics:
    """The running statistics of one batch normalisation."""

    name: str
    #: None: all batches count alike.
    momentum: float | None
    #: They were changed during the run.
    changed: bool
    #: Observed steps at which it was in training mode.
    observed: int


@dataclass(frozen=True)
class Modes(Measurement, probe="modes"):
    """What is random in training and in evaluation mode, and in which mode the model's parts were while it trained."""

    #: Rows of the two passes.
    rows: int = 0
    #: Iterations at which modes were read, right before and right after the step.
    observed: tuple[int, ...] = ()
    #: Those at which the whole model was in evaluation mode, before and after.
    model_off_at: tuple[int, ...] = ()
    sites: tuple[DropoutSite, ...] = ()
    #: Two passes over the same rows with all modules in training mode, and in evaluation mode; None: not measured.
    training: Effect | None = None
    evaluation: Effect | None = None
    #: Where the passes in evaluation mode differ: two more that begin in the same random state, with other rows in between.
    evaluation_same_seed: Effect | None = None
    #: There, too: parameters in the graph of the logits that a pass makes anew, and that are not the model's.
    parameters_made: int = 0
    #: Module inside that takes the ids itself, its outputs in those two passes in evaluation mode, and whether its class is a library's.
    base: str | None = None
    base_evaluation: Effect | None = None
    base_library: bool = False
    #: The user's ``evaluate``: forward passes of the whole model that it made, how many of them in training mode, and how many with
    #: dropout or batch statistics on; None: there is none.
    passes: int | None = None
    passes_training: int = 0
    passes_random: int = 0
    #: It received a model in training mode and left it in evaluation mode.
    leaves_evaluation_mode: bool = False
    #: It was called with gradients switched on, and left them switched off.
    leaves_gradients_off: bool = False
    #: Parameters whose values it changed, and those whose ``requires_grad`` it changed.
    changes_values: tuple[str, ...] = ()
    changes_requires_grad: tuple[str, ...] = ()
    #: At each observed step, checksums of the random states in which the whole model's last pass in training mode began and ended; only
    #: of passes that drew random numbers.
    random_states_before: tuple[int, ...] = ()
    random_states_after: tuple[int, ...] = ()
    #: Some dropout dropped the very same values at each of its calls in those two passes in training mode.
    same_values_dropped: bool = False
    #: Dropout module whose output, in training mode, is the logits; None: none is, or it is not known.
    dropped_logits: str | None = None
    #: Rate of the dropout, a module's or a function's (``F.dropout``), whose output is the logits; None: none is, or it is not known.
    dropped_logits_rate: float | None = None
    #: Where neither is: share of the logits that only passes in training mode set to exactly zero, others at each; None: there is none.
    zeroed_logits: float | None = None
    #: Checksums of the tensors that each step's passes in training mode received, of all of them together, and of the one in the batch that
    #: the step was given.
    inputs_used: tuple[int, ...] = ()
    inputs_given: tuple[int, ...] = ()
    #: Batch normalisations that were in training mode at each observed step, and counted batches.
    batch_norms: tuple[BatchNormStatistics, ...] = ()
    #: ``evaluation``, ``training`` or ``evaluate`` -> why it was not measured.
    unmeasured: dict[str, str] = field(default_factory=dict)
    #: No pass was made, because they are over the budget: `unmeasured` says so.
    reduced: bool = False

    @property
    def training_may_be_random(self) -> bool:
        """Two passes in training mode differ, or were not compared."""
        return self.training is None or self.training.change > 0
