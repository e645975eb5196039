"""The batches are fit to learn from, and their labels depend on their inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from ..mode.record import Modes
from ..spec import Stage, Symptom, check, not_measured
from . import faults
from .record import Data, Dependence, Order

#: Tokens of text up to which rows that are all as long as each other count as cut off, unless a model could score at least this share.
CUT, CERTAIN = 2, 0.97
#: Steps looked at from which on one and the same input means something.
LEAST_LOOKS = 4
#: Rows below which a share of rows says little.
LEAST_ROWS = 32
#: Sorted: at most this share of the label changes that random order would bring, which would be ten or more.
SORTED_CHANGES, LEAST_CHANGES = 0.1, 10.0
#: Batches of one class: so many of them at least, where random order would give so few.
LEAST_BATCHES, ONE_CLASS, BY_CHANCE = 4, 0.8, 0.2
#: Share of one id among the words (of the last id of the vocabulary): the commonest word of English text has 5 to 7 %.
SAME_WORD, LAST_WORD = 0.6, 0.4
#: Embedding tables below this are alphabets, boards, genes: there one symbol may well fill most places.
LEAST_VOCABULARY = 100
#: Places of words below which shares of ids are not judged.
LEAST_PLACES = 200
#: Inputs collapsed: different rows at most this share of the rows, and of all that they tell about the label no more than this.
COLLAPSED, TOLD = 0.25, 0.05
#: Probability below which a class of the held-out rows is not missing from the training rows by chance.
BY_LUCK = 1e-6
#: Torn: this share of the rows stands with another label, too, and no model could score more than that; rows of this many words at least.
TORN, HOPELESS, LEAST_LENGTH = 0.8, 0.6, 5
#: Values of a channel in one batch: normalised, two values are always -1 and 1.
LEAST_VALUES = 3
#: Share of the commonest class from which imbalance is worth a remark.
IMBALANCE = 0.9
#: Rows below which labels are not called independent of the inputs, and made-up labels that the same test must find, of those planted.
LEAST_TESTED, LEAST_FOUND = 256, 5 / 6
#: Standard deviations of permuted labels at which moved labels plainly belong to these inputs.
PLAIN = 6.0
#: p-value at which the dependence test has found something; p-value of a metric on held-out rows at which the run has.
ALPHA, LEARNT = 0.005, 0.01


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
        faults.CLASS_MISSING,
        faults.SORTED_BY_CLASS,
        faults.BATCHES_OF_ONE_CLASS,
        faults.LABELS_CONTRADICT,
        faults.LABELS_SHIFTED,
        faults.BATCHNORM_ON_FEW,
        faults.LABELS_UNRELATED,
    ),
    measurements=(Data,),
)
def check_batches_sound(trace: Trace) -> Verdict:
    """The batches are fit to learn from: mixed classes, real words, labels that differ, inputs that differ.

    Named, each with its own limit: NaN among the inputs; labels that are NaN, all left out (-100) or all the same; masks that hide
    every word; one id in place of nearly all words (the last of the vocabulary: ids were clamped; another: unknown words); inputs that
    are all alike under different labels; an order sorted by class, or batches of one class each; a batch normalisation over two values.

    >>> from pytest_ftcheck import example_trace
    >>> check_batches_sound(example_trace()).status
    'skipped'
    """
    data = trace.measured(Data)
    if data is None:
        return not_measured("batches_sound", trace, Data)
    for look in (
        _numbers,
        _labels,
        _masks,
        _words,
        _cut,
        _alike,
        _repeated,
        _missing_class,
        _torn,
        _sorted,
        _few_values,
    ):
        if found := look(data, trace):
            return found
    mixed = f", {plural(sum(c > 0 for c in data.counts), 'class', 'classes')}" if data.counts else ""
    different = f", {data.distinct:,} different" if data.distinct is not None else ""
    return Verdict(
        "batches_sound",
        "pass",
        f"{plural(data.rows, 'row')} in {plural(data.batches, 'batch', 'batches')}{different}{mixed}: "
        f"nothing odd in their labels, words or order.",
        measured=f"{data.source}; no model involved",
        notes=_remarks(data),
    )


def _verdict(
    data: Data, fault: str, headline: str, limit: str, causes: Sequence[str], remedy: str, rows: Any = ()
) -> Verdict:
    return Verdict(
        "batches_sound",
        "fail",
        headline,
        tuple(rows),
        limit,
        tuple(causes),
        remedy,
        f"{data.source}, {plural(data.rows, 'row')}",
        fault=fault,
    )


def _numbers(data: Data, trace: Trace) -> Verdict | None:
    """NaN among the inputs, and a loss that shows it (some models take NaN for a missing value)."""
    losses = [*trace.losses, *(p.loss for p in (trace.probe.points if trace.probe is not None else ()))]
    if not data.nonfinite_inputs or all(map(math.isfinite, losses)):
        return None
    return _verdict(
        data,
        "inputs_nan",
        f"{data.nonfinite_inputs:,} of {plural(data.rows, 'row')} hold NaN or infinity (in {data.nonfinite_where!r}), and the loss "
        "is not finite.",
        "no NaN or infinity among the inputs of a run whose loss is not finite",
        [
            "missing or overflowing values in the features: 0/0 in a normalisation, log of 0, float16, a gap in the table"
        ],
        "drop or fill such rows before batching: torch.isfinite(inputs).all()",
    )


def _labels(data: Data, trace: Trace) -> Verdict | None:
    if data.nonfinite_labels:
        return _verdict(
            data,
            "labels_nan",
            f"{data.nonfinite_labels:,} of {plural(data.labels, 'label')} are NaN or infinite: one is enough to make a loss NaN.",
            "no label is NaN or infinite",
            ["missing values in the label column were kept"],
            "drop or fill the rows without a label before batching",
        )
    if data.labels and data.ignored_labels == data.labels:
        return _verdict(
            data,
            "labels_all_ignored",
            f"all {plural(data.labels, 'label')} are -100, which cross-entropy leaves out: there is nothing to learn.",
            "some label counts",
            ["every label is masked as if it were padding or a prompt"],
            "look at the code that writes -100 into the labels",
        )
    if not data.constant or data.labels < LEAST_ROWS or data.distinct is None or data.distinct < LEAST_ROWS:
        return None
    if trace.reading.task == "single_label":
        label = next((i for i, c in enumerate(data.counts) if c), 0)
        elsewhere = data.held_out_counts is not None and sum(c > 0 for c in data.held_out_counts) > 1
        beside = (
            f", the held-out rows have {sum(c > 0 for c in data.held_out_counts or ())} classes" if elsewhere else ""
        )
        if data.source == "the probe batch" or not (elsewhere or data.source == "all batches"):
            return None
        return _verdict(
            data,
            "one_class_only",
            f"all {plural(data.rows, 'row')} that are trained on have label {label}{beside}: a constant answer is right.",
            f"more than one class in {LEAST_ROWS} rows or more",
            [
                "the data are sorted by class and only the first part is seen",
                "the label column is not the one that was meant",
            ],
            "shuffle the rows before batching (DataLoader(shuffle=True)); print ten labels",
        )
    return _verdict(
        data,
        "labels_constant",
        f"all {plural(data.labels, 'label')} are the same number: there is nothing to tell from the inputs.",
        f"labels differ over {LEAST_ROWS} rows or more",
        ["the label column is not the one that was meant, or was overwritten by a default"],
        "print ten labels beside their inputs",
    )


def _masks(data: Data, _trace: Trace) -> Verdict | None:
    t = data.tokens
    if t is None or not t.masked_out or t.masked_out < data.rows:
        return None
    return _verdict(
        data,
        "mask_empty",
        f"the attention mask is zero at every place of all {plural(data.rows, 'row')}: no word may be looked at.",
        "a mask that lets some word through",
        ["the mask is computed from something else than the ids (a wrong padding id, a wrong comparison)"],
        "attention_mask = (input_ids != pad_token_id)",
    )


def _words(data: Data, trace: Trace) -> Verdict | None:
    t = data.tokens
    if (
        t is None
        or t.vocabulary is None
        or t.vocabulary < LEAST_VOCABULARY
        or t.places < LEAST_PLACES
        or data.rows < LEAST_ROWS
        or t.is_padding
    ):
        return None
    last = t.commonest == t.vocabulary - 1
    if t.share < (LAST_WORD if last else SAME_WORD) or (not last and _learnt(trace)):
        return None
    share = percent(t.share)
    rows = [
        {"id": t.commonest, "share of the words": share},
        {"id": "the next", "share of the words": percent(t.second_share)},
    ]
    if last:
        return _verdict(
            data,
            "ids_clamped",
            f"{share} of the words are id {t.commonest}, the last one of the vocabulary of {t.vocabulary:,}: ids beyond it look clamped.",
            f"below {percent(LAST_WORD)} for the last id (the commonest word of English text stands for 5 to 7 %)",
            ["the tokenizer has more ids than the model's embedding table, and they are cut off at its end"],
            "use the tokenizer that belongs to the model, or model.resize_token_embeddings(len(tokenizer)); do not clamp ids",
            rows,
        )
    return _verdict(
        data,
        "words_unknown",
        f"{share} of the words are one and the same id, {t.commonest}: the texts are gone, if that is the unknown word.",
        f"below {percent(SAME_WORD)} (the commonest word of English text stands for 5 to 7 %), in a run that learns nothing",
        [
            "the tokenizer does not know these words (letter case, language, another vocabulary), so that they all become the unknown token"
        ],
        "decode one batch and read it: tokenizer.decode(batch['input_ids'][0])",
        rows,
    )


def _cut(data: Data, _trace: Trace) -> Verdict | None:
    t = data.tokens
    if t is None or data.ceiling is None or t.vocabulary is None or t.vocabulary < LEAST_VOCABULARY:
        return None
    words = t.longest - t.special
    # single words that are classified as such have one label each; and they are not all of one length in tokens
    if not t.special or t.shortest != t.longest or not 0 < words <= CUT or data.rows < 2 * LEAST_ROWS:
        return None
    if data.ceiling >= CERTAIN:
        return None
    special = {1: "the first token", 2: "the first and the last token"}.get(t.special, "the special tokens")
    return _verdict(
        data,
        "texts_cut_off",
        f"each of {plural(data.rows, 'row')} holds {plural(words, 'word')} beside {special}: the same ones stand with different labels, "
        f"and the best that any model could score is {percent(data.ceiling)}.",
        f"rows of one and the same length with more than {CUT} tokens of text, or a best score of at least {percent(CERTAIN)}",
        ["the texts are cut to nothing: the maximum length leaves room for little more than the special tokens"],
        "raise max_length (truncation=True cuts to it); decode one batch and read it",
    )


def _alike(data: Data, _trace: Trace) -> Verdict | None:
    if data.ceiling is None or data.distinct is None or not data.counts or data.rows < 2 * LEAST_ROWS:
        return None
    blind = max(data.counts) / max(1, sum(data.counts))
    if data.distinct > COLLAPSED * data.rows or data.ceiling - blind > TOLD or blind > 1 - 2 * TOLD:
        return None
    short = data.tokens is not None and data.tokens.median_length <= 3
    causes = [
        "what tells the rows apart is lost on the way into the batch (the same row again and again, a wrong column)"
    ]
    if short:
        causes.insert(
            0, "the texts are cut to nothing: the maximum length leaves room for little more than the special tokens"
        )
    return _verdict(
        data,
        "inputs_alike",
        f"{plural(data.rows, 'row')} have only {plural(data.distinct, 'different input')} among them, "
        f"and the best that any model could score is {percent(data.ceiling)}, where the commonest class alone gives {percent(blind)}.",
        f"different inputs in more than {percent(COLLAPSED)} of the rows, or at least {percent(TOLD)} to gain from them",
        causes,
        "raise max_length" if short else "print a batch: are its rows different texts?",
    )


def _repeated(data: Data, trace: Trace) -> Verdict | None:
    if (
        data.large_batches >= LEAST_BATCHES
        and data.uniform_batches >= ONE_CLASS * data.large_batches
        and (data.distinct or 0) > 1
    ):
        return _verdict(
            data,
            "one_row_repeated",
            f"in {data.uniform_batches} of {plural(data.large_batches, 'batch', 'batches')} all rows are the same row: "
            f"{plural(data.rows, 'row')} hold {plural(data.distinct or 0, 'different input')}.",
            f"below {percent(ONE_CLASS)} of the batches of four rows or more",
            ["one row is repeated to fill the batch (a list multiplied, an index that does not move)"],
            "look at the collate function and at __getitem__: does it use its index?",
        )
    modes = trace.measured(Modes)
    given = set(modes.inputs_given) if modes is not None else set()
    if (
        modes is not None
        and len(modes.inputs_used) >= LEAST_LOOKS
        and len(set(modes.inputs_used)) == 1
        and len(given) > 1
    ):
        return _verdict(
            data,
            "same_batch",
            f"the model was given one and the same batch at all {len(modes.inputs_used)} steps looked at, though the steps were "
            f"given {len(given)} different ones.",
            "the model is given the batch that the step is given",
            ["the step trains on a batch that it holds on to (a variable of another scope, next(iter(loader)))"],
            "hand the step's own batch to the model",
        )
    if (
        data.source == "the batches trained on"
        and data.batches >= LEAST_BATCHES
        and data.different_batches == 1
        and (data.length or 0) > 1
    ):
        return _verdict(
            data,
            "same_batch",
            f"every one of {plural(data.batches, 'step')} got the same batch, "
            f"though the loader has {plural(data.length or 0, 'batch', 'batches')}.",
            "a loader of several batches gives several",
            ["the loader is started anew at every step (next(iter(loader))), or caches its first batch"],
            "call iter(loader) once, before the loop",
        )
    return None


def _missing_class(data: Data, _trace: Trace) -> Verdict | None:
    theirs = data.held_out_counts
    total, n = sum(theirs or ()), sum(data.counts)
    if data.order is None or not theirs or not total or n < LEAST_ROWS or data.source == "the probe batch":
        return None
    for label, count in enumerate(theirs):
        ours = data.counts[label] if label < len(data.counts) else 0
        if not ours and (1 - count / total) ** n < BY_LUCK:
            left_out = f" ({data.ignored_labels:,} more are left out by -100)" if data.ignored_labels else ""
            causes = ["training and held-out labels are numbered differently, or a filter took the class away"]
            if data.ignored_labels:
                causes.insert(
                    0,
                    f"class {label} was turned into -100, which the loss leaves out, or the labels were shifted twice",
                )
            return _verdict(
                data,
                "class_missing",
                f"class {label} has {count:,} of {plural(total, 'held-out row')}, and none of the {n:,} that are trained on{left_out}.",
                f"a class of the held-out rows is among those trained on, unless missing it has a probability above {BY_LUCK:g}",
                causes,
                "print the label counts of both sets",
                [
                    {"class": i, "held-out rows": c, "trained on": data.counts[i] if i < len(data.counts) else 0}
                    for i, c in enumerate(theirs)
                ],
            )
    return None


def _torn(data: Data, _trace: Trace) -> Verdict | None:
    n = sum(data.counts)
    if (
        data.ceiling is None
        or n < 2 * LEAST_ROWS
        or data.contradictory < TORN * n
        or data.ceiling > HOPELESS
        or (data.distinct or 0) < LEAST_ROWS
        or (data.tokens is not None and data.tokens.median_length < LEAST_LENGTH)
    ):
        return None
    return _verdict(
        data,
        "labels_contradict",
        f"{data.contradictory:,} of {plural(n, 'row')} stand in the data with another label, too: "
        f"no model can score more than {percent(data.ceiling)}.",
        f"below {percent(TORN)} of the rows, or more than {percent(HOPELESS)} within reach",
        ["copies of a text have different labels (augmented copies, rows repeated for each annotator or tag)"],
        "group the rows by text and look at the labels of one group",
    )


def _sorted(data: Data, _trace: Trace) -> Verdict | None:
    o = data.order
    if o is None or data.constant:
        return None
    limit = (
        f"label changes from row to row above {percent(SORTED_CHANGES)} of those of random order; batches of a single class: below "
        f"{percent(ONE_CLASS)} where random order gives below {percent(BY_CHANCE)}"
    )
    rows = [
        {"": "label changes from row to row", "here": o.changes, "in random order": o.expected_changes},
        {"": "batches of a single class", "here": o.single_class, "in random order": o.expected_single_class},
    ]
    remedy = "shuffle the rows before batching: DataLoader(..., shuffle=True), or random.shuffle(rows)"
    if o.expected_changes >= LEAST_CHANGES and o.changes <= SORTED_CHANGES * o.expected_changes:
        return _verdict(
            data,
            "sorted_by_class",
            f"the rows come sorted by class: {_batches(o)}their label changes {plural(o.changes, 'time')} from row to row, where "
            f"random order changes {number(o.expected_changes)} times.",
            limit,
            ["the data set is sorted by label and is not shuffled: each step unlearns the class before"],
            remedy,
            rows,
        )
    if (
        o.batches >= LEAST_BATCHES
        and o.single_class >= ONE_CLASS * o.batches
        and o.expected_single_class <= BY_CHANCE * o.batches
    ):
        return _verdict(
            data,
            "batches_of_one_class",
            f"{o.single_class} of {plural(o.batches, 'batch', 'batches')} hold a single class; "
            f"random order gives {number(o.expected_single_class)}.",
            limit,
            ["rows are grouped by class into batches: each step pulls all answers towards one class"],
            remedy,
            rows,
        )
    return None


def _batches(o: Order) -> str:
    return (
        f"{o.single_class} of {plural(o.batches, 'batch', 'batches')} hold a single class, and "
        if o.single_class > o.batches / 2
        else ""
    )


def _few_values(data: Data, _trace: Trace) -> Verdict | None:
    few = [n for n in data.normalised if n.values < LEAST_VALUES]
    if not few:
        return None
    least = min(few, key=lambda n: n.values)
    return _verdict(
        data,
        "batchnorm_on_few",
        f"{least.name or 'the batch normalisation'} normalises each channel over {plural(least.values, 'value')} in training: "
        f"of two values nothing is left but which is larger.",
        f"at least {LEAST_VALUES} values a channel and batch, far more to be of use (Wu and He 2018: error rises below 16 or 8)",
        ["batch normalisation with tiny batches"],
        "larger batches (drop_last=True for the last one), or LayerNorm/GroupNorm, which do not depend on the batch",
        [{"layer": n.name, "values a channel": n.values} for n in few],
    )


def _remarks(data: Data) -> tuple[str, ...]:
    notes = []
    total = sum(data.counts)
    if data.order is not None and total and max(data.counts) >= IMBALANCE * total and not data.constant:
        notes.append(
            f"{percent(max(data.counts) / total)} of the rows have one class: accuracy says little, look at macro recall"
        )
    if data.constant and data.rows:
        notes.append("all labels are the same: too few different rows to call it a fault")
    if data.batches == 1 and data.source == "all batches":
        notes.append("a single batch: the same rows at every step, as when overfitting is what is tested")
    if data.contradictory:
        notes.append(
            f"{plural(data.contradictory, 'row')} stand with another label elsewhere, so at most {percent(data.ceiling)} can be right"
        )
    if data.ignored_labels and data.order is not None:
        notes.append(f"{data.ignored_labels:,} of {plural(data.labels, 'label')} are -100 and left out")
    if data.tokens is not None and 0 < data.tokens.masked_out < data.rows:
        notes.append(f"{plural(data.tokens.masked_out, 'row')} have a mask that is zero everywhere")
    return tuple(notes)


@check(
    stage=Stage.DATA,
    position=2,
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
        faults.CLASS_MISSING,
        faults.SORTED_BY_CLASS,
        faults.BATCHES_OF_ONE_CLASS,
        faults.LABELS_CONTRADICT,
        faults.LABELS_SHIFTED,
        faults.BATCHNORM_ON_FEW,
        faults.LABELS_UNRELATED,
    ),
    measurements=(Data,),
    shows=(Symptom.OUTCOME,),
)
def check_labels_learnable(trace: Trace) -> Verdict:
    """The labels depend on the inputs: by what the run learnt, or by a permutation test on the rows themselves.

    Rows are compared by their words, pairs and triples of words, order of words, places, length, single words and how often they
    occur (numbers: linear, near, pairs); the test asks whether alike rows have alike labels more often than under permuted labels
    (Gretton et al. 2005). It fails only if no comparison finds anything at p <= 0.005, the same tests find made-up labels planted on
    the same rows, and the run itself learnt nothing that holds on other rows.

    >>> from pytest_ftcheck import example_trace
    >>> check_labels_learnable(example_trace()).status
    'skipped'
    """
    data = trace.measured(Data)
    if data is None:
        return not_measured("labels_learnable", trace, Data)
    d = data.dependence
    if d is None:
        return Verdict(
            "labels_learnable", "skipped", f"not tested: {data.untested or 'no rows with labels were read'}."
        )
    measured = f"label permutations over {plural(d.rows, 'row')}, {data.source}; no model involved"
    way = min(d.p_values, key=lambda k: d.p_values[k])
    best = d.p_values[way]
    rows = tuple({"rows compared by": k, "p": v} for k, v in sorted(d.p_values.items(), key=lambda item: item[1]))
    if best <= _found_at(d):
        return Verdict(
            "labels_learnable",
            "pass",
            f"labels depend on inputs: rows alike by {way} have alike labels (p = {number(best)}, {plural(d.rows, 'row')}).",
            measured=measured,
        )
    nothing = (
        f"none of {len(d.p_values)} comparisons finds that alike rows have alike labels (least p = {number(best)})"
    )
    if shift := _shift(d):
        name, away = shift
        return Verdict(
            "labels_learnable",
            "fail",
            f"labels belong to other rows: {nothing}, but with each label moved {name} they do, "
            f"by {number(away)} standard deviations.",
            rows,
            "labels depend on the inputs of their own row",
            (f"inputs and labels are out of step: each label stands beside another row's input ({name})",),
            "join inputs and labels before sorting, filtering or batching; print ten rows beside their labels",
            measured,
            fault="labels_shifted",
        )
    if why := _cannot_tell(trace, d):
        return Verdict(
            "labels_learnable",
            "pass",
            f"no sign that the labels are unrelated to the inputs: {why}.",
            rows,
            measured=measured,
        )
    return Verdict(
        "labels_learnable",
        "fail",
        f"labels look unrelated to inputs: {nothing}, where the same tests find {d.found} of {d.planted} made-up rules on these "
        f"{plural(d.rows, 'row')}, and the run learnt nothing that holds beyond the rows it saw.",
        rows,
        f"p <= {ALPHA:g} in one comparison, or a metric on held-out rows better than luck (p <= {LEARNT:g})",
        (
            "inputs and labels were shuffled, sorted or filtered separately, so that labels are noise",
            "or the rule is one that only very much more data shows",
        ),
        "print ten rows beside their labels; join inputs and labels before shuffling",
        measured,
        fault="labels_unrelated",
    )


def _found_at(d: Dependence) -> float:
    """The first look ends at the least p it can have."""
    return max(ALPHA, 1 / (1 + d.permutations))


def _shift(d: Dependence) -> tuple[str, float] | None:
    """The move that puts each label beside its own input; chance does not reach six standard deviations."""
    plain = [(name, away) for name, away in d.shifted.items() if away >= PLAIN]
    return max(plain, key=lambda item: item[1]) if plain else None


def _cannot_tell(trace: Trace, d: Dependence) -> str:
    if d.rows < LEAST_TESTED:
        return f"{plural(d.rows, 'row')} are too few for the test, which wants {LEAST_TESTED}"
    if d.planted and d.found < LEAST_FOUND * d.planted:
        return f"the test is too weak for these inputs: it finds {d.found} of {d.planted} made-up rules planted on them"
    if _learnt(trace):
        return "the run learnt something that holds on held-out rows"
    if _fell(trace) and not any(m.source == "held-out rows" for m in trace.metrics):
        return "the loss fell, and without held-out rows (eval_batches=) learning cannot be told from learning by heart"
    return ""


def _learnt(trace: Trace) -> bool:
    """A metric on held-out rows is better than luck."""
    return any(m.source == "held-out rows" and m.p_value is not None and m.p_value <= LEARNT for m in trace.metrics)


def _fell(trace: Trace) -> bool:
    """The probe's loss ends clearly below the class prior, or (without a prior) below where it began."""
    probe = trace.probe
    if probe is None or not probe.points:
        return False
    first, last = probe.points[0], probe.points[-1]
    if probe.prior_entropy is not None and last.reference is not None:
        return last.reference < 0.97 * probe.prior_entropy
    return last.loss < 0.97 * first.loss
