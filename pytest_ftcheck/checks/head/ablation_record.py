"""Ablations of a trained model: parts reset to their initial values, and simpler heads."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.measurement import Measurement


@dataclass(frozen=True)
class Outcome:
    """Loss and accuracy of a changed model on the measured rows, dropout off."""

    loss: float
    #: Share of correct predictions; None: the task has none (regression), or is not known.
    accuracy: float | None


@dataclass(frozen=True)
class Rewound:
    """One part reset to its initial values, all else as trained."""

    #: Prefix of parameter names, ``head`` or ``base``.
    part: str
    parameters: int
    rewound: Outcome
    #: With the part's initial values in random order: an equally good initialisation, but not the one that was trained.
    shuffled: Outcome | None = None


@dataclass(frozen=True)
class SimplerHead:
    """One linear layer in place of the head: ridge regression on the head's input after training."""

    features: int
    outputs: int
    #: Rows it was fitted on, and linear layers it would replace.
    rows: int
    layers: int
    #: Share of correct predictions, and of rows with the same prediction as the trained head's.
    accuracy: float
    agreement: float
    #: Name of the module that takes these features alone and returns the logits: the layer can stand in its place; empty: there is none.
    replaces: str = ""
    #: The layer that the features enter.
    first: str = ""


@dataclass(frozen=True)
class Counterfactuals(Measurement, probe="counterfactuals"):
    """Ablations of a trained model: parts reset to their initial values, and simpler heads."""

    #: Rows measured, and their source.
    rows: int
    source: str
    trained: Outcome
    #: Accuracy of the majority baseline.
    baseline: float | None
    parts: tuple[Rewound, ...] = ()
    simpler: SimplerHead | None = None
