"""The loss as a function of the logits, and the logits as a function of the last layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...core.measurement import Measurement

#: Least cosine of a sound loss's gradient with that of the standard loss: 0.5 to 1 were measured.
SOUND = 0.5
#: Tasks whose standard loss is a cross-entropy, of a row or of a tag.
OF_CLASSES = ("single_label", "multi_label", "class_probabilities")
#: Reasons why the loss was not measured: it reads no labels; it is NaN at chosen logits.
OF_NO_LABELS = "the loss reads no labels, and relates outputs of the model to each other (self-supervised): it is not one of these labels"
NOT_A_NUMBER = "the loss of chosen logits is NaN: it takes other outputs than those"


@dataclass(frozen=True)
class LossCurve:
    """The loss along one direction of the logits: ``m`` at the label and ``-m`` elsewhere (tags: ``m`` where set, ``-m`` where not)."""

    #: The values of ``m``, rising from 0; the loss for the right answer; the loss for a wrong one.
    margins: tuple[float, ...]
    right: tuple[float, ...]
    wrong: tuple[float, ...]

    @property
    def uniform(self) -> float:
        """The loss of a uniform prediction: all logits are 0."""
        return self.right[0]

    @property
    def least(self) -> float:
        """The lowest loss for the right answer."""
        return min(self.right)

    @property
    def gain(self) -> float:
        """How far the loss can fall below that of a uniform prediction."""
        return self.uniform - self.least

    @property
    def best_margin(self) -> float:
        """The margin at which the right answer has the lowest loss."""
        return self.margins[self.right.index(self.least)]

    def at(self, margin: float) -> tuple[float, float]:
        """The losses of the right and of a wrong answer at this margin, or at the largest if it was not measured."""
        index = self.margins.index(margin) if margin in self.margins else -1
        return self.right[index], self.wrong[index]


@dataclass(frozen=True)
class LossShape(Measurement, probe="loss_shape"):
    """The loss as a function of the logits, and the logits as a function of the last layer, before the first step."""

    #: Rows used.
    rows: int = 0
    #: How labels and logits were read: ``single`` (a logit a class), ``binary`` (one logit), ``tags``, ``regression``; None: not at all.
    kind: str | None = None
    #: Logits a row.
    outputs: int = 0
    #: Why chosen logits could not be passed to the loss, if so: then nothing below is known, up to `last_layer`.
    reason: str | None = None
    #: The module whose output was replaced, "" for the model itself.
    site: str = ""
    #: What the model returns in place of logits: ``probabilities``, ``log_probabilities``; None: neither.
    form: str | None = None
    #: The loss draws random numbers of its own: its direction is not judged.
    random: bool = False
    #: The loss depends on the logits; it has a gradient there.
    depends: bool | None = None
    differentiable: bool | None = None
    #: The loss takes one row's logits and one row's label at a time (False: tokens, whose labels may be shifted by one on purpose).
    by_row: bool = True
    curve: LossCurve | None = None
    #: Slope of the loss at logits near zero towards the right answer (positive: it falls that way).
    slope: float | None = None
    #: Sum of a row's gradient over its size: 0 for a loss that depends only on differences between logits.
    shift: float | None = None
    #: Name of the loss, if its gradients are those of a known one (`known_losses`).
    known: str | None = None
    #: Length of the gradient as a multiple of the standard loss's, and their cosine, at random logits.
    scale: float | None = None
    cosine: float | None = None
    #: Share of rows (tags: of entries) in which the loss raises the label's logit most; rows with a gradient.
    agreement: float | None = None
    agreement_rows: int = 0
    #: For each class, the class whose logit the loss raises most in its rows; -1: several, or no such rows.
    raised_classes: tuple[int, ...] = ()
    #: The loss changes when a label does.
    uses_labels: bool | None = None
    #: The class that labels of -100 are read as, how many of them are, and of how many; None: none is, or there are few.
    ignored_as: tuple[int, int, int] | None = None
    #: Rows that never get a gradient, however wrong they are, though their label counts.
    ignored_rows: tuple[int, ...] = ()
    #: Classes whose rows get none, and how many classes were tried.
    ignored_classes: tuple[int, ...] = ()
    tried_classes: int = 0
    #: How much a row of each class counts (one logit: of the negative and of the positive class), relative to their mean; empty: not
    #: measured.
    class_weights: tuple[float, ...] = ()
    #: How much a change of one row's label changes its own gradient, over how much it changes another row's (mean); None: not measured,
    #: or the other rows' gradients do not change at all.
    own_over_other: float | None = None
    #: Label values (0: negative, 1: positive) of tags, or of one logit, whose entries get no gradient anywhere.
    ignored_values: tuple[int, ...] = ()
    #: Share of tags whose own gradient is not zero, and the same when the tag is flipped.
    unread_tags: float | None = None
    #: Share of tags that, flipped, change another tag's gradient in the row instead; among all tags whose own gradient is not zero.
    crossed_tags: float | None = None
    #: One label a token: share of tokens whose label changes its own token's gradient (or that of the token before) twice as much as
    #: any other's.
    own_tokens: float | None = None
    #: Length of the weights' gradient that does not come from the standard loss of the logits, over the length of that which does; None:
    #: the loss is little more than the standard's.
    other_terms: float | None = None
    #: The last layer with as many outputs as logits ("" for none).
    last_layer: str = ""
    #: Logits when that layer returns 1 and 100, -1 and -100, equal for all outputs; the largest difference between two logits that
    #: outputs of +100 and -100 make, before the run and after it; the loss along the layer's outputs.
    high_logits: tuple[float, float] | None = None
    low_logits: tuple[float, float] | None = None
    reach: float | None = None
    reach_last: float | None = None
    last_layer_curve: LossCurve | None = None
    #: Rows have the same logits where that layer returns the same for all of them: nothing passes it by. None: not known.
    nothing_passes_by: bool | None = None
    #: Largest margin of a right logit over the next (one logit, tags: over zero) that any weights give a row; infinity: more than matters.
    largest_margin: float | None = None
    #: Largest margin that any row had after the run.
    largest_margin_last: float | None = None
    #: Largest class number in any label at hand (regression: least and greatest number), and the number of labels read.
    largest_label: int | None = None
    label_range: tuple[float, float] | None = None
    labels_seen: int = 0
    #: Regression: how many different labels there are, where they are whole numbers from 0 on without a gap; None: they are not.
    label_levels: int | None = None
    #: Regression without a last layer (a cosine): the least and the largest output that any weights give a row, the range of the labels
    #: at most; None: not measured.
    output_bounds: tuple[float, float] | None = None
    #: The outputs are the model's vocabulary: no text has all of its words.
    vocabulary: bool = False
    #: Spread of the real logits over the rows (standard deviation, mean over outputs), and their root mean square around a row's mean
    #: (one output: around zero), before the run and after it.
    spread_first: float | None = None
    spread_last: float | None = None
    size_first: float | None = None
    size_last: float | None = None
    #: The same of a newly made model of the same library class, where the loss is far above that of a uniform prediction. None: it is not,
    #: or the model is no library's, or is too large to be made again.
    size_of_class: float | None = None
    #: Large logits stay the same when the last matrices are halved: they do not depend on the initial weights' scale. None: not large.
    scale_free: bool | None = None
    #: The same of minus the loss, where the loss points away from the labels: an optimizer that maximizes descends that. None: it does not.
    of_minus: LossShape | None = None
    #: Smallest number of values that a BatchNorm in training mode normalises over at once; its name.
    norm_values: int | None = None
    norm_name: str = ""

    @property
    def direction_known(self) -> bool:
        """Whether the gradient's direction in each row can be compared with the row's label."""
        return (
            not self.random and self.by_row and self.uses_labels is True and self.kind in ("single", "tags", "binary")
        )

    @property
    def of_classes(self) -> bool:
        """False where the outputs are seen to be no logits of the labels: the gradient is far from the standard loss's, and from its
        opposite, and any confident answer, right or wrong, has a higher loss than a uniform one (a mean and a variance)."""
        curve = self.curve
        if (
            self.kind not in ("single", "binary", "tags")
            or curve is None
            or self.cosine is None
            or self.known is not None
        ):
            return True
        return (
            abs(self.cosine) >= SOUND or self.agreement == 1 or min(curve.right[-1], curve.wrong[-1]) <= curve.uniform
        )

    @property
    def unbounded_below(self) -> bool:
        """Whether the right answer's loss still falls at the largest margins, about as fast as at the start."""
        curve = self.curve
        if curve is None or len(curve.margins) < 2 or not self.slope or self.slope <= 0:
            return False
        width = curve.margins[-1] - curve.margins[-2]
        return curve.right[-2] - curve.right[-1] > 0.25 * self.slope * width

    @property
    def temperature(self) -> float | None:
        """T, where the loss is cross-entropy of logits / T; None: it is not."""
        curve, classes = self.curve, self.outputs if self.kind == "single" else 2
        if self.kind not in ("single", "binary") or self.random or curve is None or not self.slope or self.slope <= 0:
            return None
        width = 2.0 if self.kind == "single" else 1.0  # between logits of m and -m, or between m and nothing
        temperature = width * (classes - 1) / classes / self.slope

        def differs(loss: float, margin: float) -> bool:
            exponent = max(-700.0, min(700.0, -width * margin / temperature))
            standard = math.log1p((classes - 1) * math.exp(exponent))
            return abs(loss - standard) > 0.01 * max(standard, math.log(classes))

        for margin, right, wrong in zip(curve.margins, curve.right, curve.wrong, strict=True):
            if differs(right, margin) or (self.kind == "binary" and differs(wrong, -margin)):
                return None
        return temperature
