"""Targets of a language model: which token of the input each position is taught to predict."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...core.measurement import Measurement


@dataclass(frozen=True)
class LmTargets(Measurement, probe="lm_targets"):
    """Read off the gradient with respect to the logits: the id that each position is taught to predict, beside the ids of the input."""

    #: Positions with a gradient.
    positions: int
    #: The logits of a position do not depend on the ids after it.
    causal: bool
    #: k -> share of these positions at which the id that is pushed up is the input's, k positions later.
    shares: dict[int, float] = field(default_factory=dict)
    #: Rows read whose labels are ids, and of these the rows that end in the most frequent last token; how often it is a label.
    rows: int = 0
    rows_with_end: int = 0
    end_labels: int = 0
    #: The ids are those that the decoder of an encoder-decoder model is given.
    of_decoder: bool = False
    #: k -> share of the positions with a gradient that have the most frequent of the ids k positions later, and the share of that id
    #: among all tokens: the mask, in a masked language model.
    commonest: dict[int, float] = field(default_factory=dict)
    commonest_overall: dict[int, float] = field(default_factory=dict)
    #: Rows with padding whose targets could be found again among their own ids, how many of them stand as far from the place they should
    #: have as the row has padding, and the different lengths of that padding.
    padded_rows: int = 0
    moved_by_padding: int = 0
    paddings: int = 0
    #: Share of the positions with a gradient that have none right before or after them, in rows that have several: chosen at random.
    scattered: float = 0.0
    #: Where a model that is not causal is taught the id one position later: share of the rows in which the logits of a position that is
    #: taught follow the ids after it. None: it is causal, or is taught another id.
    sees_next: float | None = None
