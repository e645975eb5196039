"""What training again from the same start gave: on one batch alone, and with labels that have nothing to do with the rows."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.measurement import Measurement
from ..head.ablation_record import Outcome


@dataclass(frozen=True)
class Attempt:
    """One try to learn the batch, at one learning rate."""

    lr: float
    steps: int
    #: The run's own loss at the last step, and the lowest textbook loss on the way (None: it cannot be computed).
    loss: float
    reference: float | None
    #: Share of right predictions where the textbook loss was lowest; None: the task has none.
    right: float | None
    #: Largest difference between two rows' outputs at the end, over the largest output; None: no outputs to be had.
    apart: float | None
    fitted: bool


@dataclass(frozen=True)
class Overfit(Measurement, probe="overfit", on_request="it trains the model again", timed=True):
    """One batch, trained on alone from the run's start, dropout off, with an optimizer of our own."""

    rows: int
    #: Labels in it that count (one a row, a token or a tag).
    labels: int
    #: The run's own loss, and the textbook loss, before the first step.
    loss: float
    reference: float | None
    #: Textbook loss of the best answer that is the same for every row, and of the best one that the inputs allow (rows
    #: with equal inputs and different labels); None: unknown.
    prior: float | None
    floor: float | None
    #: Share of right predictions that the inputs allow; None: the task has none.
    possible: float | None
    attempts: tuple[Attempt, ...]
    #: Share of the model's parameters that may learn.
    trainable: float
    #: ``evaluation``, or ``training`` where the model has no gradients in evaluation mode.
    mode: str = "evaluation"

    @property
    def fitted(self) -> bool:
        """The batch was learnt at one of the learning rates."""
        return any(a.fitted for a in self.attempts)

    @property
    def best(self) -> Attempt | None:
        """The attempt that came furthest."""
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
    #: Root mean square of the way that the trained weights came.
    moved: float


@dataclass(frozen=True)
class Permuted(Measurement, probe="permuted", on_request="it trains the model again", timed=True):
    """The run again from the same start: as it was, and with labels dealt out among the rows at random."""

    steps: int
    #: Different rows trained on; rows of them looked at afterwards; held-out rows looked at.
    rows: int
    looked_at: int
    held_out_rows: int
    #: Share of the labels that a permutation changed, on average.
    changed: float
    #: Textbook loss of the best answer that is the same for every row: on the rows trained on, and held out.
    prior: float | None
    held_out_prior: float | None
    #: The run itself, as it ended; its repetition with the true labels; with permuted ones.
    run: Rerun
    true: Rerun
    permuted: tuple[Rerun, ...]
    #: Once more with the true labels, but with the textbook loss in place of the run's own; None: it is the run's own.
    textbook: Rerun | None = None
    #: The run's own loss before the first step, on the first batch, and the textbook loss of the same; None: it is no loss of its own.
    own_first: float | None = None
    textbook_first: float | None = None
    #: Best share of right predictions on the held-out rows by saying the same for each.
    baseline: float | None = None
