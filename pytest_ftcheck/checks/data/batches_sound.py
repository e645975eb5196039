"""The batches are fit to learn from."""

from __future__ import annotations

import math
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..loss.record import LossShape
from ..mode.record import Modes
from ..spec import Fault, Stage, check, combine, not_measured
from . import faults
from .held_out import better_than_chance
from .held_out_apart import held_out_apart, one_part_is_balanced
from .record import FEW_DRAWN, MIN_DRAWN, Data, Order

NAME = "batches_sound"
#: Rows below which a share of rows says little.
MIN_ROWS = 32
#: Embedding tables below this are alphabets, boards, genes: there one symbol may well fill most positions.
MIN_VOCABULARY = 100
#: Tokens below which shares of ids are not judged.
MIN_TOKENS = 200
#: Largest share of one id among the tokens (of the last id of the vocabulary): the most common word of English text has 5 to 7 %.
MOST_ONE_ID, MOST_LAST_ID = 0.6, 0.4
#: Rows that are all of one length count as truncated up to this many tokens beside the special ones, unless this accuracy is possible.
TRUNCATED_TO, POSSIBLE_ACCURACY = 2, 0.97
#: Inputs nearly all the same: different rows are at most this share of the rows, and knowing them gains at most this much accuracy.
MOST_DISTINCT, MOST_GAIN = 0.25, 0.05
#: Median tokens in a row up to which inputs that are nearly all the same are probably truncated.
TRUNCATED_LENGTH = 3
#: Batches, and shares of them, from which batches of one row (one class) are judged; by chance at most the last share.
MIN_BATCHES, MOST_UNIFORM, MOST_BY_CHANCE = 4, 0.8, 0.2
#: Rows read from the data set of which this share was never drawn: the data set has rows that the loader does not draw.
NEVER_DRAWN = 0.5
#: The same few rows: at most this share of the rows of one epoch are distinct (a data set whose rows are repeated twenty times reaches
#: it, but fills batches with different rows), and the values at their positions could form this many times as many rows.
MOST_REPEATED, MIN_POSSIBLE = 0.05, 10.0
#: Cohen's kappa up to which two visits of the same rows agree slightly at best. Label noise that is drawn anew at each visit stays
#: above it as long as fewer than a quarter of the labels of two classes are flipped.
SLIGHT_AGREEMENT = 0.2
#: Rows of one label that all come again with the same other label: label noise of 50 % does that to 16 rows with a probability of 2e-5.
MIN_RECODED = 16
#: Steps of which the model's own input is known, from which on one and the same input is judged.
MIN_STEPS = 4
#: Probability below which a class of the held-out rows is not missing from the training rows by chance.
MISSING_BY_CHANCE = 1e-6
#: Contradicting labels: this share of the rows, at most this possible accuracy, and rows of this many tokens at least.
MOST_CONTRADICTORY, HOPELESS_ACCURACY, MIN_LENGTH = 0.8, 0.6, 5
#: A class overlaps with another if this share of its distinct inputs, which must be `MIN_RECODED`, have both labels, and equally often.
#: Annotators differ, but hardly ever balance on a whole class: two who agreed on one row in four of it would do so on 15 of 16 rows with a
#: probability of 0.06, and three never do.
OVERLAPPING = 0.9
#: Sorted by class: at most this share of the label changes of random order, which must be this many at least.
SORTED_CHANGES, MIN_CHANGES = 0.1, 10.0
#: Values of a channel in one batch: two values, normalised, are always -1 and 1.
MIN_VALUES = 3
#: Share of the majority class from which on a note mentions imbalance; ratio of class weights from which on the loss makes up for it.
IMBALANCE, WEIGHTED = 0.9, 1.5
#: An output is never a label only if a class of this part of an equal share would have been there.
RARE = 0.25
#: Share of copies that is worth a remark: well above the near-duplicates of web corpora (Lee et al. 2022, arXiv:2107.06499).
MOST_COPIES = 0.25
#: p-value of a macro recall that shows that rare classes are learnt all the same.
BETTER = 0.01


@check(
    stage=Stage.DATA,
    position=1,
    faults=(
        faults.INPUTS_NAN,
        faults.LABELS_NAN,
        faults.LABELS_ALL_IGNORED,
        faults.ONE_CLASS_ONLY,
        faults.LABELS_CONSTANT,
        faults.MASK_EMPTY,
        faults.TEXTS_CUT_OFF,
        faults.IDS_CLAMPED,
        faults.WORDS_UNKNOWN,
        faults.INPUTS_ALIKE,
        faults.ONE_ROW_REPEATED,
        faults.SAME_BATCH,
        faults.FEW_ROWS_DRAWN,
        faults.CLASS_MISSING,
        faults.SORTED_BY_CLASS,
        faults.BATCHES_OF_ONE_CLASS,
        faults.LABELS_CHANGE,
        faults.LABELS_CONTRADICT,
        faults.BATCHNORM_ON_FEW,
        faults.CLASSES_IMBALANCED,
        faults.OUTPUT_NEVER_A_LABEL,
        faults.ROWS_REPEATED,
        faults.LABELS_APART,
        faults.TOKENS_APART,
        faults.NUMBERS_APART,
    ),
    measurements=(Data,),
)
def check_batches_sound(trace: Trace) -> Verdict:
    """The batches are fit to learn from: mixed classes, known tokens, labels that differ, inputs that differ.

    Each fault has its own limit: NaN among the inputs; labels that are NaN, all ignored (-100) or all the same; masks that hide every
    token; one id in nearly all positions (the last of the vocabulary: clamped ids; another: the unknown token); inputs that are all
    alike under different labels; the same few rows again and again; labels that change from epoch to epoch; rows sorted by class, or
    batches of one class each; batch normalisation over two values. A row that comes in several epochs counts once; only order, the
    composition of batches and changes of labels are judged over all visits.

    >>> from pytest_ftcheck import example_trace
    >>> check_batches_sound(example_trace()).status
    'inconclusive'
    """
    data = trace.measured(Data)
    if data is None:
        return not_measured(NAME, trace, Data)
    for judge in (
        _judge_inputs_finite,
        _judge_labels,
        _judge_masks,
        _judge_token_ids,
        _judge_truncation,
        _judge_variety,
        _judge_uniform_batches,
        _judge_rows_drawn,
        _judge_same_batch,
        _judge_classes_trained,
        _judge_labels_kept,
        _judge_contradictions,
        _judge_overlap,
        _judge_order,
        _judge_batch_norms,
    ):
        if verdict := judge(data, trace):
            return verdict
    remarks = (_untreated_imbalance(data, trace), _outputs_without_labels(data), _repeated_rows(data))
    if advice := combine([*remarks, *_unlike_held_out(data, trace)], notes=_notes(data)):
        return advice
    distinct = f", {data.distinct:,} distinct" if data.distinct is not None else ""
    if data.epochs > 1:
        distinct += f" ({plural(data.epochs, 'epoch')})"
    classes = f", {plural(sum(c > 0 for c in data.counts), 'class', 'classes')}" if data.counts else ""
    return Verdict(
        NAME,
        "pass",
        f"{plural(data.rows, 'row')} in {plural(data.batches, 'batch', 'batches')}{distinct}{classes}: "
        f"no fault in their labels, tokens or order.",
        measured=f"{data.source}; no model involved",
        notes=_notes(data),
    )


def _verdict(data: Data, fault: Fault, headline: str, limit: str, **rest: Any) -> Verdict:
    measured = f"{data.source}, {plural(data.rows, 'row')}"
    if data.distinct is not None and data.distinct < data.rows:
        measured += f", {data.distinct:,} of them distinct"
    return fault.verdict(NAME, headline, limit=limit, measured=measured, **rest)


def _distinct(data: Data) -> int:
    return data.rows if data.distinct is None else data.distinct


def _judge_inputs_finite(data: Data, trace: Trace) -> Verdict | None:
    """NaN among the inputs, and a loss that shows it (some models take NaN for a missing value)."""
    losses = [*trace.losses, *(p.loss for p in (trace.probe_loss.points if trace.probe_loss is not None else ()))]
    if not data.nonfinite_inputs or all(map(math.isfinite, losses)):
        return None
    return _verdict(
        data,
        faults.INPUTS_NAN,
        f"The inputs of {plural(data.nonfinite_inputs, 'distinct row')}, of {plural(data.rows, 'row')} read, contain NaN or infinity "
        f"(in {data.nonfinite_where!r}), and the loss is not finite.",
        "no NaN or infinity among the inputs of a run whose loss is not finite",
    )


def _judge_labels(data: Data, trace: Trace) -> Verdict | None:
    if data.nonfinite_labels:
        return _verdict(
            data,
            faults.LABELS_NAN,
            f"{data.nonfinite_labels:,} of {plural(data.labels, 'label')} are NaN or infinite; a single one makes the loss NaN.",
            "no label is NaN or infinite",
        )
    if data.labels and data.ignored_labels == data.labels:
        return _verdict(
            data,
            faults.LABELS_ALL_IGNORED,
            f"All {plural(data.labels, 'label')} are -100, which cross-entropy ignores: there is nothing to learn.",
            "at least one label is not ignored",
        )
    if not data.constant or data.labels < MIN_ROWS or data.distinct is None or data.distinct < MIN_ROWS:
        return None
    if trace.reading.task == "single_label":
        return _one_class_only(data)
    return _verdict(
        data,
        faults.LABELS_CONSTANT,
        f"All {plural(data.labels, 'label')} have the same value: there is nothing to predict from the inputs.",
        f"labels differ over {MIN_ROWS} rows or more",
    )


def _one_class_only(data: Data) -> Verdict | None:
    held_out_classes = sum(c > 0 for c in data.held_out_counts or ())
    if data.source == "the probe batch" or not (held_out_classes > 1 or data.source == "all batches"):
        return None
    label = next((i for i, c in enumerate(data.counts) if c), 0)
    beside = f"; the held-out rows have {held_out_classes} classes" if held_out_classes > 1 else ""
    return _verdict(
        data,
        faults.ONE_CLASS_ONLY,
        f"All {plural(_distinct(data), 'distinct training row')} have label {label}, so a constant prediction is correct{beside}.",
        f"more than one class in {MIN_ROWS} rows or more",
    )


def _judge_masks(data: Data, _trace: Trace) -> Verdict | None:
    t = data.tokens
    if t is None or not t.masked_out or t.masked_out < data.data_rows:
        return None
    return _verdict(
        data,
        faults.MASK_EMPTY,
        f"The attention mask is zero at every position of all {plural(data.data_rows, 'row')}: the model attends to no token.",
        "a mask that leaves some token visible",
    )


def _judge_token_ids(data: Data, trace: Trace) -> Verdict | None:
    t = data.tokens
    if (
        t is None
        or t.vocabulary is None
        or t.vocabulary < MIN_VOCABULARY
        or t.total < MIN_TOKENS
        or data.data_rows < MIN_ROWS
        or t.most_common_is_padding
    ):
        return None
    share = percent(t.share)
    evidence = (
        {"id": t.most_common, "share of the tokens": share},
        {"id": "the next", "share of the tokens": percent(t.second_share)},
    )
    english = "the most common word of English text has 5 to 7 %"
    if t.most_common == t.vocabulary - 1:
        if t.share < MOST_LAST_ID:
            return None
        return _verdict(
            data,
            faults.IDS_CLAMPED,
            f"{share} of the tokens are id {t.most_common}, the last one of the vocabulary of {t.vocabulary:,}: "
            "larger ids appear to be clamped to it.",
            f"below {percent(MOST_LAST_ID)} for the last id ({english})",
            evidence=evidence,
        )
    if t.share < MOST_ONE_ID or better_than_chance(trace):
        return None
    return _verdict(
        data,
        faults.WORDS_UNKNOWN,
        f"{share} of the tokens are one and the same id, {t.most_common}: if it is the unknown token, the texts are lost.",
        f"below {percent(MOST_ONE_ID)} ({english}), in a run that learns nothing",
        evidence=evidence,
    )


def _judge_truncation(data: Data, _trace: Trace) -> Verdict | None:
    t = data.tokens
    if t is None or data.best_accuracy is None or t.vocabulary is None or t.vocabulary < MIN_VOCABULARY:
        return None
    text = t.longest - t.special
    # single words that are classified as such have one label each; and they are not all of one length in tokens
    if not t.special or t.shortest != t.longest or not 0 < text <= TRUNCATED_TO or data.data_rows < 2 * MIN_ROWS:
        return None
    if data.best_accuracy >= POSSIBLE_ACCURACY:
        return None
    special = {1: "the first token", 2: "the first and the last token"}.get(t.special, "the special tokens")
    return _verdict(
        data,
        faults.TEXTS_CUT_OFF,
        f"Each of {plural(data.data_rows, 'row')} holds {plural(text, 'token')} of text beside {special}: identical rows have different "
        f"labels, and no model can exceed an accuracy of {percent(data.best_accuracy)}.",
        f"rows of different lengths or with more than {TRUNCATED_TO} tokens of text, "
        f"or a possible accuracy of at least {percent(POSSIBLE_ACCURACY)}",
    )


def _judge_variety(data: Data, _trace: Trace) -> Verdict | None:
    if data.best_accuracy is None or data.distinct is None or not data.counts or data.data_rows < 2 * MIN_ROWS:
        return None
    majority = max(data.counts) / max(1, sum(data.counts))
    if (
        data.distinct > MOST_DISTINCT * data.data_rows
        or data.best_accuracy - majority > MOST_GAIN
        or majority > 1 - 2 * MOST_GAIN
    ):
        return None
    fault = faults.INPUTS_ALIKE
    probably_truncated = data.tokens is not None and data.tokens.median_length <= TRUNCATED_LENGTH
    rest = (
        {"causes": (faults.TEXTS_CUT_OFF.cause, fault.cause), "remedy": "raise max_length"}
        if probably_truncated
        else {}
    )
    return _verdict(
        data,
        fault,
        f"{plural(data.data_rows, 'row')} have only {plural(data.distinct, 'distinct input')} among them: no model can exceed an accuracy "
        f"of {percent(data.best_accuracy)}, and the majority class alone gives {percent(majority)}.",
        f"distinct inputs in more than {percent(MOST_DISTINCT)} of the rows, or more than {percent(MOST_GAIN)} to gain from them",
        **rest,
    )


def _judge_uniform_batches(data: Data, _trace: Trace) -> Verdict | None:
    if (
        data.large_batches >= MIN_BATCHES
        and data.uniform_batches >= MOST_UNIFORM * data.large_batches
        and (data.distinct or 0) > 1
    ):
        return _verdict(
            data,
            faults.ONE_ROW_REPEATED,
            f"In {data.uniform_batches} of {plural(data.large_batches, 'batch', 'batches')} all rows are the same row: "
            f"{plural(data.rows, 'row')} hold {plural(data.distinct or 0, 'distinct input')}.",
            f"below {percent(MOST_UNIFORM)} of the batches of four rows or more",
        )
    return None


def _judge_rows_drawn(data: Data, _trace: Trace) -> Verdict | None:
    """A few rows where the data set has more, or where rows should differ."""
    drawn = data.drawn
    if drawn is None:
        return None
    rows, distinct = plural(drawn.rows, "row"), plural(drawn.distinct, "distinct row")
    if drawn.few and drawn.probed and drawn.never_drawn >= NEVER_DRAWN * drawn.probed:
        return _verdict(
            data,
            faults.FEW_ROWS_DRAWN,
            f"{rows} were drawn from a data set of {drawn.data_set:,}, but only {distinct}, where draws at random give "
            f"{drawn.expected:,.0f}: {drawn.never_drawn} of {plural(drawn.probed, 'row')} read from the data set itself were never drawn.",
            f"distinct rows above {percent(FEW_DRAWN)} of those that as many draws at random with replacement give "
            "(weighted draws for a rare class: about half of them)",
        )
    if (
        drawn.rows < MIN_DRAWN
        or drawn.batches < MIN_BATCHES
        or drawn.repetitive < MOST_UNIFORM * drawn.batches
        or not 1 < drawn.distinct <= MOST_REPEATED * drawn.rows
        or drawn.possible < MIN_POSSIBLE * drawn.distinct
        or (data.median_values or 0) < MIN_LENGTH
    ):
        return None
    return _verdict(
        data,
        faults.FEW_ROWS_DRAWN.because(
            "the data set or the sampler returns the same few rows (an index that is ignored, or taken modulo a small number)",
            "print data_set[0] to data_set[9]: does __getitem__ use its index?",
        ),
        f"{rows} hold only {distinct}: in {drawn.repetitive} of {plural(drawn.batches, 'batch', 'batches')} at most half of the rows "
        "are distinct.",
        f"distinct rows above {percent(MOST_REPEATED)} of the rows of one epoch, or above half of the rows in more than "
        f"{percent(1 - MOST_UNIFORM)} of the batches of eight rows or more; a small space of inputs is exempt",
    )


def _judge_same_batch(data: Data, trace: Trace) -> Verdict | None:
    modes = trace.measured(Modes)
    used, given = (modes.inputs_used, set(modes.inputs_given)) if modes is not None else ((), set())
    if len(used) >= MIN_STEPS and len(set(used)) == 1 and len(given) > 1:
        return _verdict(
            data,
            faults.SAME_BATCH,
            f"In training mode the model received the same rows at all {len(used)} observed steps; the steps were given {len(given)} "
            "different batches.",
            "the model receives the batch that the step is given",
        )
    batches = data.source_length or 0
    if (
        data.source == "the batches trained on"
        and data.batches >= MIN_BATCHES
        and data.distinct_batches == 1
        and batches > 1
    ):
        return _verdict(
            data,
            faults.SAME_BATCH.because(
                "the loader is restarted at every step (next(iter(loader))), or caches its first batch",
                "call iter(loader) once, before the loop",
            ),
            f"All {plural(data.batches, 'step')} received the same batch, though the loader has {plural(batches, 'batch', 'batches')}.",
            "a loader of several batches yields different ones",
        )
    return None


def _judge_classes_trained(data: Data, _trace: Trace) -> Verdict | None:
    held_out = data.held_out_counts
    total, rows = sum(held_out or ()), sum(data.counts)
    trained = (
        rows if data.distinct is None else min(rows, data.distinct)
    )  # copies are no further chances to see a class
    if data.order is None or not held_out or not total or trained < MIN_ROWS or data.source == "the probe batch":
        return None
    counts = (*data.counts, *[0] * len(held_out))
    for label, count in enumerate(held_out):
        if counts[label] or (1 - count / total) ** trained >= MISSING_BY_CHANCE:
            continue
        fault, ignored, rest = faults.CLASS_MISSING, "", {}
        if data.ignored_labels:
            ignored = f" ({data.ignored_labels:,} more are ignored: -100)"
            replaced = f"class {label} was replaced by -100, which the loss ignores, or the labels were shifted twice"
            rest = {"causes": (replaced, fault.cause)}
        return _verdict(
            data,
            fault,
            f"Class {label} has {count:,} of {plural(total, 'held-out row')} and none of the {trained:,} distinct training rows{ignored}.",
            f"a class of the held-out rows is among the training rows, unless the probability of missing it is above {MISSING_BY_CHANCE:g}",
            evidence=tuple(
                {"class": i, "held-out rows": c, "training rows": counts[i]} for i, c in enumerate(held_out)
            ),
            **rest,
        )
    return None


def _judge_labels_kept(data: Data, _trace: Trace) -> Verdict | None:
    """The labels of two visits of the same rows, compared like those of two annotators: by Cohen's kappa."""
    again = data.relabelled
    if again is None:
        return None
    recoded = [row for row in again.recoded if row[2] >= MIN_RECODED]
    if recoded:
        pairs = ", ".join(f"{old} as {new} ({plural(rows, 'row')})" for old, new, rows in recoded)
        return _verdict(
            data,
            faults.LABELS_CHANGE.because(
                "labels are recoded in place each time a row is read, so that the second reading recodes what the first one made",
                "recode the labels once, before training, or a copy of them (label = int(stored), stored.clone())",
            ),
            f"All rows of a label come again with the same other label: {pairs}.",
            f"no label of which {MIN_RECODED} rows or more all change for the same other one",
        )
    if again.rows < 2 * MIN_ROWS or again.expected < MIN_CHANGES:
        return None
    kappa = 1 - again.changed / again.expected
    if kappa > SLIGHT_AGREEMENT:
        return None
    return _verdict(
        data,
        faults.LABELS_CHANGE,
        f"{again.changed:,} of {plural(again.rows, 'distinct row')} have another label when they come again; labels drawn independently "
        f"of the rows would change in {again.expected:,.0f}.",
        f"an agreement (Cohen's kappa) of two visits above {SLIGHT_AGREEMENT:g}, the end of slight agreement (Landis and Koch 1977); "
        f"it is {number(kappa, 2)}",
    )


def _judge_contradictions(data: Data, _trace: Trace) -> Verdict | None:
    rows = sum(data.counts)
    if (
        data.best_accuracy is None
        or rows < 2 * MIN_ROWS
        or data.contradictory < MOST_CONTRADICTORY * rows
        or data.best_accuracy > HOPELESS_ACCURACY
        or (data.distinct or 0) < MIN_ROWS
        or (data.tokens is not None and data.tokens.median_length < MIN_LENGTH)
    ):
        return None
    return _verdict(
        data,
        faults.LABELS_CONTRADICT,
        f"{data.contradictory:,} of {plural(rows, 'row')} also occur with another label: "
        f"no model can exceed an accuracy of {percent(data.best_accuracy)}.",
        f"below {percent(MOST_CONTRADICTORY)} of the rows, or a possible accuracy above {percent(HOPELESS_ACCURACY)}",
    )


def _judge_overlap(data: Data, _trace: Trace) -> Verdict | None:
    """A class all of whose inputs are rows of another class, too."""
    found = [s for s in data.shared_inputs if s.inputs >= MIN_RECODED and s.shared >= OVERLAPPING * s.inputs]
    if not found or (data.tokens is not None and data.tokens.median_length < MIN_LENGTH):
        return None
    one = max(found, key=lambda s: s.shared)
    possible = f": no model can exceed an accuracy of {percent(data.best_accuracy)}" if data.best_accuracy else ""
    return _verdict(
        data,
        faults.LABELS_CONTRADICT.because(
            "rows of one class were copied into another (lists that overlap, a join that matches twice, a class and its parent)",
            "group the rows by text, and keep one label for each text",
        ),
        f"{one.shared:,} of {plural(one.inputs, 'distinct input')} of class {one.label} are rows of class {one.other} as often{possible}.",
        f"below {percent(OVERLAPPING)} of the inputs of a class of {MIN_RECODED} or more",
    )


def _judge_order(data: Data, _trace: Trace) -> Verdict | None:
    order = data.order
    if order is None or data.constant:
        return None
    rest: dict[str, Any] = {
        "limit": f"label changes from row to row above {percent(SORTED_CHANGES)} of those in random order; batches of a single class: "
        f"below {percent(MOST_UNIFORM)} where random order gives below {percent(MOST_BY_CHANCE)}",
        "evidence": (
            {"": "label changes from row to row", "here": order.changes, "in random order": order.expected_changes},
            {
                "": "batches of a single class",
                "here": order.single_class,
                "in random order": order.expected_single_class,
            },
        ),
    }
    if order.expected_changes >= MIN_CHANGES and order.changes <= SORTED_CHANGES * order.expected_changes:
        return _verdict(
            data,
            faults.SORTED_BY_CLASS,
            f"The rows are sorted by class: the label changes {plural(order.changes, 'time')} from row to row "
            f"(in random order: {number(order.expected_changes)} times){_mostly_single_class(order)}.",
            **rest,
        )
    if (
        order.batches >= MIN_BATCHES
        and order.single_class >= MOST_UNIFORM * order.batches
        and order.expected_single_class <= MOST_BY_CHANCE * order.batches
    ):
        return _verdict(
            data,
            faults.BATCHES_OF_ONE_CLASS,
            f"{order.single_class} of {plural(order.batches, 'batch', 'batches')} hold a single class; "
            f"random order gives {number(order.expected_single_class)}.",
            **rest,
        )
    return None


def _mostly_single_class(order: Order) -> str:
    if order.single_class <= order.batches / 2:
        return ""
    return f"; {order.single_class} of {plural(order.batches, 'batch', 'batches')} hold a single class"


def _judge_batch_norms(data: Data, _trace: Trace) -> Verdict | None:
    few = [norm for norm in data.batch_norms if norm.values < MIN_VALUES]
    if not few:
        return None
    least = min(few, key=lambda norm: norm.values)
    return _verdict(
        data,
        faults.BATCHNORM_ON_FEW,
        f"{least.name or 'The batch normalisation'} normalises each channel over {plural(least.values, 'value')} in training: "
        "two values, normalised, are always -1 and 1.",
        f"at least {MIN_VALUES} values per channel and batch, and far more to be useful (Wu and He 2018: error rises below 16 or 8)",
        evidence=tuple({"layer": norm.name, "values per channel": norm.values} for norm in few),
    )


def _untreated_imbalance(data: Data, trace: Trace) -> Verdict | None:
    """More than half of the batches hold the majority class alone, and nothing makes up for it: advice, never a fault."""
    order, total = data.order, sum(data.counts)
    if (
        order is None
        or data.constant
        or order.batches < MIN_BATCHES
        or not total
        or max(data.counts) < IMBALANCE * total
    ):
        return None
    shape = trace.measured(LossShape)
    weights = shape.class_weights if shape is not None else ()
    weighted = bool(weights) and max(weights) >= WEIGHTED * min(weights)
    recall = next((m for m in trace.metrics if m.name == "recall" and m.p_value is not None), None)
    learnt = recall is not None and (recall.p_value or 0.0) <= BETTER and recall.last > (recall.baseline or 0.0)
    if 2 * order.single_class <= order.batches or weighted or learnt:
        return None
    share = percent(max(data.counts) / total)
    return _verdict(
        data,
        faults.CLASSES_IMBALANCED,
        f"{share} of the rows are of one class, and {order.single_class} of {plural(order.batches, 'batch', 'batches')} hold no other.",
        "some row of another class in half of the batches, class weights, or a macro recall better than chance",
        status="advice",
    )


def _outputs_without_labels(data: Data) -> Verdict | None:
    """Classes of the head that are the label of no row, in so many rows that even a rare one would be there."""
    rows = sum(data.counts)
    trained = rows if data.distinct is None else min(rows, data.distinct)
    if data.order is None or data.constant or not data.classes or data.source == "the probe batch":
        return None
    if trained * RARE / data.classes < -math.log(MISSING_BY_CHANCE):
        return None
    used = {c for counts in (data.counts, data.held_out_counts or ()) for c, n in enumerate(counts) if n}
    never = [c for c in range(data.classes) if c not in used]
    if not never:
        return None
    names = dict(enumerate(data.class_names))
    shown = ", ".join(f"{c} ({names[c]!r})" if c in names else str(c) for c in never[:6])
    more = f" and {len(never) - 6} more" if len(never) > 6 else ""
    return _verdict(
        data,
        faults.OUTPUT_NEVER_A_LABEL,
        f"{'Output' if len(never) == 1 else 'Outputs'} {shown}{more} of {data.classes} {'is' if len(never) == 1 else 'are'} the label of "
        f"none of {plural(trained, 'distinct training row')}{', and of no held-out row' if data.held_out_counts else ''}.",
        f"a label for each output, or so few rows that a class with {percent(RARE)} of an equal share could be missing with a probability "
        f"above {MISSING_BY_CHANCE:g}",
        status="advice",
    )


def _repeated_rows(data: Data) -> Verdict | None:
    """Rows that are copies of others, where nobody repeats them to make up for an imbalance."""
    found = data.copies
    if found is None or found.rows < 2 * MIN_ROWS or found.copies < MOST_COPIES * found.rows:
        return None
    if (data.median_values or 0) < MIN_LENGTH:
        return None
    of_class = "" if found.label is None else f" of class {found.label}"
    return _verdict(
        data,
        faults.ROWS_REPEATED,
        f"{found.copies:,} of {plural(found.rows, 'training row')}{of_class} ({percent(found.copies / found.rows)}) have the inputs of an "
        "earlier one.",
        f"below {percent(MOST_COPIES)} of the rows, in the class that has the most distinct ones",
        status="advice",
    )


def _unlike_held_out(data: Data, trace: Trace) -> list[Verdict]:
    return [
        _verdict(data, apart.fault, apart.headline, apart.limit, evidence=apart.evidence, status="advice")
        for apart in held_out_apart(trace)
    ]


def _notes(data: Data) -> tuple[str, ...]:
    notes = []
    total = sum(data.counts)
    if data.order is not None and total and max(data.counts) >= IMBALANCE * total and not data.constant:
        notes.append(
            f"{percent(max(data.counts) / total)} of the rows are of one class: accuracy says little; use macro recall"
        )
    if one_part_is_balanced(data):
        notes.append(
            "the classes are balanced in only one of training and held-out rows: predicted probabilities follow the training shares"
        )
    if data.constant and data.rows:
        notes.append("all labels are the same, but there are too few distinct rows to call it a fault")
    if data.batches == 1 and data.source == "all batches":
        notes.append("a single batch: every step sees the same rows, as when overfitting on purpose")
    if data.contradictory:
        notes.append(
            f"{plural(data.contradictory, 'row')} also occur with another label: accuracy cannot exceed {percent(data.best_accuracy)}"
        )
    if data.ignored_labels and data.order is not None:
        notes.append(f"{data.ignored_labels:,} of {plural(data.labels, 'label')} are ignored (-100)")
    if data.tokens is not None and 0 < data.tokens.masked_out < data.data_rows:
        notes.append(f"{plural(data.tokens.masked_out, 'row')} have an attention mask that is zero everywhere")
    return tuple(notes)
