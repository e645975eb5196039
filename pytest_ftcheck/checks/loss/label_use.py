"""Which labels count, and for which logits: every row, class and tag counts, and a label acts on its own row's logits."""

from __future__ import annotations

from ...core.formatting import number, percent
from ...core.verdict import Verdict
from . import faults
from .loss_evidence import failure
from .record import LossShape

#: Share of rows whose label's logit the loss must raise most; a healthy loss does so in all.
LEAST_AGREEMENT = 0.7
#: Where another measurement shows whose label counts, a few rows that disagree are enough: rows next to each other often have one label.
SOME_DISAGREE = 0.95
#: A change of one row's label changes its own gradient at least this many times as much as another row's. Healthy: the others do not
#: change, or little (a loss standardised over the batch); broadcasting: exactly 1.
LEAST_OWN = 1.5
#: Share of tags that the loss must read: that it changes for a tag when this is flipped. Healthy losses read all.
LEAST_READ = 0.95
#: Share of tokens whose label must be paired with its own token's logits; healthy: all.
LEAST_OWN_TOKENS = 0.7


def find_own_predictions(shape: LossShape) -> Verdict | None:
    """Any confident answer has a low loss, and the labels are not read."""
    curve = shape.curve
    if shape.random or shape.uses_labels is not False or curve is None or curve.gain <= 0:
        return None
    right, wrong = curve.at(8.0)
    alike = abs(right - wrong) <= 0.05 * curve.gain  # false of NaN
    if not alike or curve.uniform - wrong < 0.5 * curve.gain:
        return None
    return failure(
        faults.OWN_PREDICTIONS_AS_TARGETS,
        f"The loss does not read the labels of the batch, and any confident answer has a low loss ({number(right)} if right, "
        f"{number(wrong)} if wrong, {number(curve.uniform)} if uniform).",
        shape,
        "the loss changes when a label does",
    )


def find_permuted_classes(shape: LossShape) -> Verdict | None:
    """The loss raises another class than the label, the same one in all rows of a class."""
    if not _disagrees(shape):
        return None
    raised = {label: other for label, other in enumerate(shape.raised_classes) if other >= 0}
    if len(raised) < 2 or len(set(raised.values())) != len(raised) or all(c == other for c, other in raised.items()):
        return None
    assert shape.agreement is not None
    pairs = ", ".join(f"{label} -> {other}" for label, other in list(raised.items())[:6])
    return failure(
        faults.LABELS_PERMUTED,
        f"The loss raises the logit of another class than the label ({pairs}) in {percent(1 - shape.agreement)} of the rows.",
        shape,
        f"the loss raises the label's logit most in {percent(LEAST_AGREEMENT)} of the rows; healthy: all",
    )


def find_labels_of_other_rows(shape: LossShape) -> Verdict | None:
    """A change of one row's label changes another row's gradient."""
    if not shape.direction_known or shape.agreement is None or shape.agreement > SOME_DISAGREE:
        return None
    if shape.own_over_other is None or shape.own_over_other >= 0.5:
        return None
    return failure(
        faults.LABELS_OF_OTHER_ROWS,
        "Labels are paired with the logits of other rows: a change of one row's label changes another row's gradient, and the loss raises "
        f"the label's logit most in only {percent(shape.agreement)} of the rows.",
        shape,
        "a row's gradient depends on its own label",
    )


def find_labels_of_other_tokens(shape: LossShape) -> Verdict | None:
    """One label a token, and a token's label changes the gradient of other tokens' logits."""
    if shape.by_row or shape.random or shape.own_tokens is None or shape.own_tokens >= LEAST_OWN_TOKENS:
        return None
    return failure(
        faults.LABELS_OF_OTHER_TOKENS,
        f"Labels are paired with the logits of other tokens: only {percent(shape.own_tokens)} of the tokens tried have a label that "
        "changes the gradient of their own logits (or those of the token before).",
        shape,
        f"a label changes the gradient of its own token, or of the one before, in {percent(LEAST_OWN_TOKENS)} of the tokens; healthy: all",
    )


def find_broadcasting(shape: LossShape) -> Verdict | None:
    """A row's label matters for all rows alike."""
    if shape.random or shape.own_over_other is None or shape.own_over_other > LEAST_OWN:
        return None
    undecided = not shape.direction_known or shape.agreement is None or shape.agreement > SOME_DISAGREE
    if shape.kind != "regression" and undecided:
        return None
    return failure(
        faults.REGRESSION_BROADCAST,
        "Each prediction is compared with every label of the batch: a change of one label changes its own row's gradient only "
        f"{number(shape.own_over_other)} times as much as any other row's.",
        shape,
        f"a label changes its own row's gradient at least {LEAST_OWN:g} times as much as others'; healthy: others' do not change",
    )


def find_ignored_value(shape: LossShape) -> Verdict | None:
    """Positive labels, or negative ones, get no gradient."""
    if shape.random or len(shape.ignored_values) != 1:
        return None
    positive = shape.ignored_values[0] == 1
    what = "tags" if shape.kind == "tags" else "labels"
    return failure(
        faults.POSITIVES_IGNORED if positive else faults.NEGATIVES_IGNORED,
        f"{'Positive' if positive else 'Negative'} {what} get no gradient, however wrong they are: predicting "
        f"{'negative' if positive else 'positive'} everywhere has the lowest loss.",
        shape,
        "labels of either value get a gradient",
    )


def find_unread_tags(shape: LossShape) -> Verdict | None:
    """Flipping a tag leaves its own gradient unchanged."""
    if shape.kind != "tags" or shape.random or shape.unread_tags is None or shape.unread_tags <= 1 - LEAST_READ:
        return None
    limit = f"at least {percent(LEAST_READ)} of the tags are read; healthy: all"
    crossed = shape.crossed_tags or 0.0
    if min(shape.unread_tags, crossed) >= LEAST_READ:
        other_order = faults.LABELS_PERMUTED.because(
            "the columns of the labels are in another order than those of the logits",
            "use one list of tags for labels and outputs",
        )
        headline = f"{percent(crossed)} of the tags, when flipped, change the gradient of another tag's logit, not of their own."
        return failure(other_order, headline, shape, limit)
    unread = percent(shape.unread_tags)
    headline = (
        f"The loss does not read all tags of a row: flipping a tag leaves its gradient unchanged for {unread} of them."
    )
    return failure(faults.TAGS_NOT_READ, headline, shape, limit)


def find_lowered_labels(shape: LossShape) -> Verdict | None:
    """The loss lowers the label's logit in every row."""
    if not shape.direction_known or shape.agreement is None or shape.agreement > 0.05 or shape.agreement_rows < 4:
        return None
    single = shape.kind == "single"
    if single and not _wrong_is_lower(shape):
        return None
    flipped_tags = faults.LABELS_PERMUTED.because(
        "the labels are flipped (1 - y), or the logits or the loss are multiplied by -1",
        "give the loss the labels and logits as they are",
    )
    return failure(
        faults.LOSS_NEGATED if single else flipped_tags,
        "The loss gradient lowers the label's logit in every row and raises the others.",
        shape,
        "the loss falls as the label's logit grows",
    )


def find_ignored_class(shape: LossShape) -> Verdict | None:
    """No row of a class gets a gradient."""
    if shape.random or not shape.by_row or not 0 < len(shape.ignored_classes) < shape.tried_classes:
        return None
    used = [c for c in shape.ignored_classes if shape.largest_label is None or c <= shape.largest_label]
    if not used or len(shape.ignored_rows) > shape.rows / 2:  # most rows are ignored: that is not about classes
        return None
    names = ", ".join(map(str, used[:6]))
    if shape.kind == "tags":
        tag_ignored = faults.CLASS_IGNORED.because(
            "the weight of the tag is zero, or its column is sliced away", "give every tag a positive weight"
        )
        headline = f"Tag {names} gets no gradient in any row, however wrong it is."
        return failure(tag_ignored, headline, shape, "every tag gets a gradient")
    headline = f"Rows of class {names} get no gradient, however wrong they are."
    return failure(faults.CLASS_IGNORED, headline, shape, "every class's rows get a gradient")


def find_counted_ignored_labels(shape: LossShape) -> Verdict | None:
    """Labels of -100 have the gradient of a class."""
    if shape.ignored_as is None:
        return None
    label, read, ignored = shape.ignored_as
    if read < LEAST_READ * ignored:
        return None
    return failure(
        faults.IGNORED_LABELS_COUNT,
        f"{read} of {ignored} labels of -100 that were looked at count as class {label}: they have its cross-entropy's gradient.",
        shape,
        "labels of -100 have no gradient, or that of another term",
    )


def find_ignored_rows(shape: LossShape) -> Verdict | None:
    """Some rows get no gradient."""
    if shape.random or not shape.by_row or shape.rows < 3 or not shape.ignored_rows:
        return None
    names = ", ".join(map(str, shape.ignored_rows[:6])) + (", ..." if len(shape.ignored_rows) > 6 else "")
    return failure(
        faults.ROWS_IGNORED,
        f"{len(shape.ignored_rows)} of {shape.rows} rows get no gradient, however wrong they are (rows {names}).",
        shape,
        "every row whose label counts gets a gradient: at random logits, where it alone is wrong, or where it alone is right",
    )


def _wrong_is_lower(shape: LossShape) -> bool:
    """Wrong answers have a lower loss than right ones."""
    if shape.curve is None:
        return False
    right, wrong = shape.curve.at(2.0)
    return wrong < right


def _disagrees(shape: LossShape) -> bool:
    """In too many rows the loss does not raise the label's logit most."""
    return (
        shape.direction_known
        and shape.agreement is not None
        and shape.agreement <= LEAST_AGREEMENT
        and shape.agreement_rows >= 4
    )
