"""Labels of single tokens: which tokens they belong to, and whether padding counts in the loss."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...core.measurement import Measurement
from .trained_tokens_record import TrainedTokens


@dataclass(frozen=True)
class TokenLabels(Measurement, probe="token_labels"):
    """One label a token, as read off the batches."""

    rows: int
    #: Labels that are not -100, at real tokens and at padding.
    at_tokens: int
    at_padding: int
    #: The loss changes when the labels at padding do; None: there are none, or the loss could not be computed.
    padding_counts: bool | None = None
    #: How far away the token is (-1: the one before) -> how much better its id predicts the label than the most frequent label does, as
    #: a share of what is left to predict; on other rows than those it was fitted on. Empty: labels are token ids, or too few.
    explained: dict[int, float] = field(default_factory=dict)
    #: Which tokens count in the loss; None: not measured.
    trained: TrainedTokens | None = None
