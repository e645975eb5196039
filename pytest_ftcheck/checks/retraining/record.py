"""What training again from the same start measured: on a single batch, and with permuted labels."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.measurement import Measurement
from ..head.ablation_record import Outcome


@dataclass(frozen=True)
class Attempt:
    """One attempt to overfit the batch, at one learning rate."""

    lr: float
    steps: int
    #: The run's own loss at the last step, and the lowest standard loss of all steps (None: it cannot be computed).
    loss: float
    reference: float | None
    #: Accuracy where the standard loss was lowest; None: the task has none.
    accuracy: float | None
    #: Largest difference between two rows' outputs at the end, over the largest output; None: no outputs could be read.
    row_difference: float | None
    fitted: bool


@dataclass(frozen=True)
class Overfit(Measurement, probe="overfit", on_request="it trains the model again", timed=True):
    """One batch, trained on alone from the run's start, dropout off, with an optimizer of our own."""

    rows: int
    #: Labels in it that count (one a row, a token or a tag).
    labels: int
    #: The run's own loss, and the standard loss, before the first step.
    loss: float
    reference: float | None
    #: Standard loss of the best constant prediction, and of the best one that depends on the inputs alone (rows with equal inputs may
    #: have different labels); None: unknown.
    constant_loss: float | None
    floor: float | None
    #: Accuracy of the best prediction that depends on the inputs alone; None: the task has none.
    attainable_accuracy: float | None
    attempts: tuple[Attempt, ...]
    #: Share of the model's parameters that are trainable.
    trainable: float
    #: ``evaluation``, or ``training`` where the model has no gradients in evaluation mode.
    mode: str = "evaluation"

    @property
    def fitted(self) -> bool:
        """The batch was overfit at one of the learning rates."""
        return any(a.fitted for a in self.attempts)

    @property
    def best(self) -> Attempt | None:
        """The attempt with the lowest loss."""
        return min(
            self.attempts, key=lambda a: (not a.fitted, a.loss if a.reference is None else a.reference), default=None
        )


@dataclass(frozen=True)
class Rerun:
    """Where one training from the run's start ended, dropout off."""

    #: Loss before the first step, and outcome after the last, on rows trained on, with the labels trained on.
    start: float
    fit: Outcome
    #: On held-out rows with their own labels; None: there are none.
    held_out: Outcome | None
    #: Root mean square of the trained weights' displacement.
    displacement: float


@dataclass(frozen=True)
class Permuted(Measurement, probe="permuted", on_request="it trains the model again", timed=True):
    """The run again from the same start: as it was, and with the labels permuted among the rows at random."""

    steps: int
    #: Distinct rows trained on; how many of them were scored afterwards; held-out rows scored.
    rows: int
    scored_rows: int
    held_out_rows: int
    #: Share of the labels that a permutation changed, on average.
    changed: float
    #: Standard loss of the best constant prediction: on the rows trained on, and held out.
    constant_loss: float | None
    held_out_constant_loss: float | None
    #: The run itself, as it ended; its repetition with the true labels; with permuted ones.
    run: Rerun
    true: Rerun
    permuted: tuple[Rerun, ...]
    #: Once more with the true labels, but with the standard loss in place of the run's own; None: the run's own is the standard loss.
    standard: Rerun | None = None
    #: The run's own loss and the standard loss of the first batch, before the first step; None: the run's own is the standard loss.
    own_first: float | None = None
    standard_first: float | None = None
    #: Accuracy of the best constant prediction on the held-out rows.
    baseline: float | None = None
