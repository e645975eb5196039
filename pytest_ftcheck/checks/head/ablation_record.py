"""What would have been: parts put back to where they began, and simpler heads."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.measurement import Measurement


@dataclass(frozen=True)
class Outcome:
    """Loss and metric of a changed model on the rows looked at, dropout off."""

    loss: float
    #: Share of right predictions; None: the task has none (regression, or it is not known).
    accuracy: float | None


@dataclass(frozen=True)
class Rewound:
    """One part put back to its initial values, all else as trained."""

    #: Prefix of parameter names, ``head`` or ``base``.
    part: str
    parameters: int
    rewound: Outcome
    #: The part's initial values in random order: as good a draw as the initial one, but not the one trained with.
    shuffled: Outcome | None = None


@dataclass(frozen=True)
class SimplerHead:
    """One linear layer in place of the head: ridge regression on what enters the head after training."""

    features: int
    outputs: int
    #: Rows it was fitted on, and linear layers it would replace.
    rows: int
    layers: int
    #: Share of right predictions, and of rows for which it predicts what the trained head predicts.
    accuracy: float
    agreement: float


@dataclass(frozen=True)
class Counterfactuals(Measurement, probe="counterfactuals"):
    """What would have been: parts put back to where they began, and simpler heads."""

    #: Rows looked at, and where they come from.
    rows: int
    source: str
    trained: Outcome
    #: Share of right predictions of a model that always says the same.
    baseline: float | None
    parts: tuple[Rewound, ...] = ()
    simpler: SimplerHead | None = None
