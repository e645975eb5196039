"""The loss as a function of the logits, and the logits as a function of the last layer."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.measurement import Measurement


@dataclass(frozen=True)
class LossCurve:
    """The loss along one direction of the logits: ``m`` at the label and ``-m`` elsewhere (tags: ``m`` where set, ``-m`` where not)."""

    #: The values of ``m``, rising from 0; the loss for the right answer; the loss for a wrong one.
    margins: tuple[float, ...]
    right: tuple[float, ...]
    wrong: tuple[float, ...]

    @property
    def gain(self) -> float:
        """How far the loss can fall from "all classes alike"."""
        return self.right[0] - min(self.right)

    @property
    def best(self) -> float:
        """The margin at which the right answer scores best."""
        return self.margins[self.right.index(min(self.right))]


@dataclass(frozen=True)
class LossShape(Measurement, probe="loss_shape"):
    """The loss as a function of the logits, and the logits as a function of the last layer, before the first step."""

    #: Rows looked at.
    rows: int = 0
    #: How labels and logits were read: ``single`` (a logit a class), ``binary`` (one logit), ``tags``, ``regression``; None: not at all.
    kind: str | None = None
    #: Logits a row.
    outputs: int = 0
    #: Why chosen logits could not be put in front of the loss, if so: then nothing below is known, up to `deep_site`.
    reason: str | None = None
    #: The module whose output was replaced, "" for the model itself.
    site: str = ""
    #: What the model gives in place of logits: ``probabilities``, ``log_probabilities``; None: neither.
    form: str | None = None
    #: The loss draws random numbers of its own: its direction is not judged.
    random: bool = False
    #: The loss depends on the logits; it has a gradient there.
    depends: bool | None = None
    differentiable: bool | None = None
    #: The loss is a function of one row's logits and one row's label a row (not of tokens, which may be meant shifted by one).
    by_row: bool = True
    curve: LossCurve | None = None
    #: Slope of the loss at logits near zero towards the right answer (positive: it falls that way).
    slope: float | None = None
    #: Sum of a row's gradient over its size: 0 for a loss that sees only differences between logits.
    shift: float | None = None
    #: Name of the loss, if its gradients are those of a known one (`textbook`).
    known: str | None = None
    #: Length of the gradient as a multiple of the textbook loss's, and their cosine, at random logits.
    scale: float | None = None
    cosine: float | None = None
    #: Share of rows (tags: of entries) whose label is what the loss pushes up most; rows that told.
    agreement: float | None = None
    agreeing: int = 0
    #: What the loss pushes up most for rows of each class, where it is one class for all of them; -1: several, or no such rows.
    pushed: tuple[int, ...] = ()
    #: The loss changes when a label does.
    uses_labels: bool | None = None
    #: Rows that never get a gradient, however wrong they are, though their label counts.
    silent_rows: tuple[int, ...] = ()
    #: Classes whose rows get none, and how many classes were tried.
    silent_classes: tuple[int, ...] = ()
    tried_classes: int = 0
    #: What a change of one row's label does to its own gradient, over what it does to another row's (mean); None: not measured,
    #: or the others do not notice at all.
    own_over_other: float | None = None
    #: Label values (0: off, 1: on) of tags, or of one logit, whose entries get no gradient anywhere.
    silent_values: tuple[int, ...] = ()
    #: Share of tags whose own gradient is not zero, and the same when the tag is turned over.
    unread_tags: float | None = None
    #: Of these, share that moves another tag's gradient in the row instead, among all tags whose own gradient is not zero.
    strayed_tags: float | None = None
    #: One label a token: share of tokens whose label moves its own token's gradient (or that of the token before) twice as much as
    #: any other's.
    own_tokens: float | None = None
    #: Length of the weights' gradient that does not come from the textbook loss of the logits, over the length of that which does; None:
    #: the loss is little more than the textbook's.
    other_terms: float | None = None
    #: The last layer with as many outputs as logits ("" for none), what becomes of it, and the loss along its outputs.
    deep_site: str = ""
    #: Logits when that layer gives 1 and 100, -1 and -100, alike for all outputs; the largest difference between two logits that outputs of
    #: +100 and -100 make.
    high: tuple[float, float] | None = None
    low: tuple[float, float] | None = None
    reach: float | None = None
    reach_last: float | None = None
    deep_curve: LossCurve | None = None
    #: Largest lead of a right logit over the next (one logit, tags: over zero) that any weights give a row; infinity: more than matters.
    lead: float | None = None
    #: Largest lead that any row had after the run.
    lead_last: float | None = None
    #: Largest class number in any label at hand (regression: least and greatest number), and the labels looked at.
    largest_label: int | None = None
    label_range: tuple[float, float] | None = None
    labels_seen: int = 0
    #: Spread of the real logits over the rows (standard deviation, mean over outputs), and their root mean square around a row's mean
    #: (one output: around zero), before the run and after it.
    spread_first: float | None = None
    spread_last: float | None = None
    size_first: float | None = None
    size_last: float | None = None
    #: Logits that are large are the same with the last matrices half as large: it is no matter of how these were drawn. None: not large.
    scale_free: bool | None = None
    #: Smallest number of values that a BatchNorm in training mode normalises over at once; its name.
    norm_values: int | None = None
    norm_name: str = ""
