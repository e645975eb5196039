"""batches_sound, on hand-written measurements."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import check_batches_sound, example_trace
from pytest_ftcheck.checks.data.record import (
    BatchNormInput,
    Copies,
    Data,
    Drawn,
    NumberShift,
    Order,
    Relabelled,
    SharedInputs,
    Tokens,
    TokenShift,
)
from pytest_ftcheck.checks.loss.record import LossShape
from pytest_ftcheck.checks.mode.record import Modes
from pytest_ftcheck.core.observations import Metric, ProbeLossPoint

ORDER = Order(changes=150, expected_changes=160.0, batches=20, single_class=0, expected_single_class=0.0)
TOKENS = Tokens(
    vocabulary=200, total=2600, distinct=164, most_common=12, share=0.03, second_share=0.028, median_length=10.0
)
DRAWN = Drawn(rows=320, distinct=320, batches=20, repetitive=0, possible=1e12, data_set=320)
GOOD = Data(
    rows=320,
    batches=20,
    counts=(160, 160),
    classes=2,
    labels=320,
    held_out_counts=(30, 34),
    distinct=320,
    best_accuracy=1.0,
    large_batches=20,
    distinct_batches=20,
    source_length=20,
    order=ORDER,
    tokens=TOKENS,
)
#: A run that learnt nothing.
UNLEARNT = replace(
    example_trace(),
    metrics=(Metric("accuracy", 0.5, 0.48, 64, "held-out rows", 0.53, 0.7),),
    probe_loss=replace(
        example_trace().probe_loss, points=(ProbeLossPoint(0, 0.7, 0.7), ProbeLossPoint(20, 0.69, 0.69))
    ),
)


def sound(**changes):
    return check_batches_sound(replace(example_trace(), measurements={"data": replace(GOOD, **changes)}))


def test_a_healthy_set():
    verdict = sound()
    assert (verdict.status, verdict.fault) == ("pass", "")
    assert verdict.headline.startswith("320 rows in 20 batches, 320 distinct, 2 classes")
    assert verdict.notes == ()


def test_not_measured():
    assert check_batches_sound(example_trace()).status == "inconclusive"
    verdict = check_batches_sound(replace(example_trace(), skipped={"data": "it raised ValueError: odd"}))
    assert "it raised ValueError: odd" in verdict.headline


@pytest.mark.parametrize(
    ("fault", "changes"),
    [
        ("labels_nan", {"nonfinite_labels": 1}),
        ("labels_all_ignored", {"ignored_labels": 320}),
        ("one_class_only", {"constant": True, "counts": (320,)}),
        ("mask_empty", {"tokens": replace(TOKENS, masked_out=320)}),
        ("ids_clamped", {"tokens": replace(TOKENS, most_common=199, share=0.41)}),
        ("inputs_alike", {"distinct": 20, "best_accuracy": 0.54}),
        ("one_row_repeated", {"uniform_batches": 16, "distinct": 20}),
        ("same_batch", {"distinct_batches": 1, "source": "the batches trained on"}),
        ("few_rows_drawn", {"drawn": replace(DRAWN, distinct=20, probed=32, never_drawn=16)}),
        ("few_rows_drawn", {"drawn": replace(DRAWN, distinct=16, repetitive=16), "median_values": 5.0}),
        ("labels_change", {"relabelled": Relabelled(64, 128, 160.0)}),
        ("labels_change", {"relabelled": Relabelled(320, 16, 160.0, ((2, 1, 16),))}),
        ("class_missing", {"held_out_counts": (30, 30, 4)}),
        ("labels_contradict", {"contradictory": 256, "best_accuracy": 0.5}),
        ("labels_contradict", {"contradictory": 30, "shared_inputs": (SharedInputs(0, 1, 16, 15),)}),
        ("sorted_by_class", {"order": replace(ORDER, changes=16)}),
        ("batches_of_one_class", {"order": replace(ORDER, changes=17, single_class=16)}),
        ("batchnorm_on_few", {"batch_norms": (BatchNormInput("head.1", 2),)}),
    ],
)
def test_each_fault_is_named(fault, changes):
    verdict = sound(**changes)
    assert (verdict.status, verdict.fault) == ("fail", fault)
    assert verdict.causes
    assert verdict.remedy
    assert verdict.limit
    assert any(c.isdigit() for c in verdict.headline) or fault == "mask_empty"


@pytest.mark.parametrize(
    "changes",
    [
        {"ignored_labels": 319},
        {"tokens": replace(TOKENS, masked_out=319)},
        {"tokens": replace(TOKENS, most_common=199, share=0.39)},
        {"tokens": replace(TOKENS, most_common=199, share=0.9, vocabulary=99)},  # an alphabet
        {"tokens": replace(TOKENS, most_common=199, share=0.9, total=199)},
        {"tokens": replace(TOKENS, most_common=199, share=0.9, most_common_is_padding=True)},
        {"tokens": replace(TOKENS, share=0.9)},  # the run learns on held-out rows all the same
        {"distinct": 81, "best_accuracy": 0.54},
        {"distinct": 20, "best_accuracy": 0.56},
        {"uniform_batches": 15, "distinct": 20, "best_accuracy": 0.9},
        {"uniform_batches": 20, "distinct": 1, "best_accuracy": 0.6},
        {"distinct_batches": 1},  # a list of one batch again and again: overfitting on purpose
        {"distinct_batches": 1, "source": "the batches trained on", "source_length": 1},
        {"drawn": replace(DRAWN, distinct=20, probed=32, never_drawn=15)},  # the data set itself holds copies
        {"drawn": replace(DRAWN, distinct=20)},  # it cannot be read
        {"drawn": replace(DRAWN, distinct=21, probed=32, never_drawn=32)},
        {"drawn": replace(DRAWN, distinct=17, repetitive=20), "median_values": 5.0},
        {"drawn": replace(DRAWN, distinct=16, repetitive=15), "median_values": 5.0},
        {"drawn": replace(DRAWN, distinct=16, repetitive=20), "median_values": 4.0},
        {"drawn": replace(DRAWN, distinct=16, repetitive=20, possible=159.0), "median_values": 5.0},
        {"relabelled": Relabelled(64, 127, 160.0)},
        {"relabelled": Relabelled(63, 160, 160.0)},
        {"relabelled": Relabelled(320, 15, 160.0, ((2, 1, 15),))},
        {"relabelled": Relabelled(320, 9, 9.9)},  # a rare class
        {"held_out_counts": (30, 30, 4), "distinct": 32, "rows": 1600},  # each row in many epochs
        {"held_out_counts": (30, 30, 2), "counts": (160, 160)},
        {"contradictory": 255, "best_accuracy": 0.5},
        {"contradictory": 320, "best_accuracy": 0.61},
        {"contradictory": 30, "shared_inputs": (SharedInputs(0, 1, 15, 15), SharedInputs(1, 0, 160, 15))},
        {"contradictory": 280, "best_accuracy": 0.61, "shared_inputs": (SharedInputs(0, 1, 160, 143),)},
        {"shared_inputs": (SharedInputs(0, 1, 160, 160),), "tokens": replace(TOKENS, median_length=4.0)},
        {"contradictory": 320, "best_accuracy": 0.5, "tokens": replace(TOKENS, median_length=4.0)},
        {"order": replace(ORDER, changes=17)},
        {"order": Order(1, 9.9, 20, 20, 15.0)},  # a rare class
        {"order": Order(140, 160.0, 160, 80, 80.0)},  # batches of two rows
        {"order": replace(ORDER, single_class=15)},
        {"order": replace(ORDER, batches=3, single_class=3)},
        {"batch_norms": (BatchNormInput("head.1", 3),)},
    ],
)
def test_just_within_the_limits(changes):
    if changes.get("held_out_counts") == (30, 30, 2):  # 2 of 62 rows: missing by chance once in 40,000
        changes = {**changes, "rows": 320}
    assert sound(**changes).status == "pass"


def test_inputs_that_are_nan_are_a_fault_where_the_loss_shows_it():
    data = replace(GOOD, nonfinite_inputs=2, nonfinite_where="features", distinct=1, best_accuracy=0.5)  # and all alike
    trace = example_trace(measurements={"data": data})
    bad = replace(trace.iterations[3], loss=math.nan)
    verdict = check_batches_sound(replace(trace, iterations=(*trace.iterations[:3], bad)))
    assert (verdict.status, verdict.fault) == ("fail", "inputs_nan")
    assert "2 distinct rows, of 320 rows read, contain NaN or infinity (in 'features')" in verdict.headline
    points = (ProbeLossPoint(0, math.inf, None),)
    assert (
        check_batches_sound(replace(trace, probe_loss=replace(trace.probe_loss, points=points))).fault == "inputs_nan"
    )
    # a model that takes NaN for a missing value
    assert (
        check_batches_sound(replace(trace, measurements={"data": replace(GOOD, nonfinite_inputs=2)})).status == "pass"
    )


def test_one_token_id_for_all_fails_where_nothing_is_learnt():
    data = replace(GOOD, tokens=replace(TOKENS, most_common=1, share=0.61))
    verdict = check_batches_sound(replace(UNLEARNT, measurements={"data": data}))
    assert (verdict.status, verdict.fault) == ("fail", "words_unknown")
    assert verdict.headline.startswith("61 % of the tokens are one and the same id, 1")
    data = replace(GOOD, tokens=replace(TOKENS, share=0.59))
    assert check_batches_sound(replace(UNLEARNT, measurements={"data": data})).status == "pass"


def test_one_class_is_a_fault_only_if_all_of_the_data_or_the_held_out_rows_say_so():
    only = {"constant": True, "counts": (320,), "order": None}
    assert sound(**only, source="the batches trained on").fault == "one_class_only"
    assert sound(**only, source="the batches trained on", held_out_counts=None).status == "pass"
    assert sound(**only, source="the probe batch").status == "pass"
    assert sound(**{**only, "labels": 31, "counts": (31,)}).status == "pass"
    assert "the held-out rows have 2 classes" in sound(**only).headline


def test_constant_targets_of_a_regression():
    trace = example_trace()
    trace = replace(trace, reading=replace(trace.reading, task="regression"))
    data = replace(GOOD, constant=True, counts=(), order=None, best_accuracy=None)
    assert check_batches_sound(replace(trace, measurements={"data": data})).fault == "labels_constant"


def test_notes_do_not_gate():
    verdict = sound(counts=(300, 20), batches=1, contradictory=4, best_accuracy=0.99, ignored_labels=3)
    assert verdict.status == "pass"
    text = "\n".join(verdict.notes)
    for words in (
        "94 % of the rows are of one class",
        "a single batch",
        "4 rows also occur with another label",
        "3 of 320 labels are ignored",
    ):
        assert words in text


TRUNCATED = replace(TOKENS, median_length=2.0, shortest=2, longest=2, special=1)


def test_truncated_texts():
    verdict = sound(tokens=TRUNCATED, best_accuracy=0.8)
    assert (verdict.status, verdict.fault) == ("fail", "texts_cut_off")
    assert "holds 1 token of text beside the first token" in verdict.headline


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": TRUNCATED, "best_accuracy": 0.97},  # single words, each with its label
        {"tokens": replace(TRUNCATED, longest=3), "best_accuracy": 0.8},  # not all of one length
        {"tokens": replace(TRUNCATED, shortest=4, longest=4), "best_accuracy": 0.8},
        {"tokens": replace(TRUNCATED, special=0), "best_accuracy": 0.8},
        {"tokens": replace(TRUNCATED, vocabulary=99), "best_accuracy": 0.8},
        {"tokens": TRUNCATED, "best_accuracy": None},
        {"tokens": TRUNCATED, "best_accuracy": 0.8, "rows": 63},
    ],
)
def test_short_texts_that_may_be(changes):
    assert sound(**changes).fault != "texts_cut_off"


@pytest.mark.parametrize(
    ("used", "given", "fault"),
    [
        ((5, 5, 5, 5), (1, 2, 3, 4), "same_batch"),
        ((5, 5, 5, 5), (5, 5, 5, 5), ""),  # there is only one
        ((5, 5, 5), (1, 2, 3), ""),
        ((5, 5, 5, 6), (1, 2, 3, 4), ""),
    ],
)
def test_a_step_that_keeps_one_batch(used, given, fault):
    modes = Modes(inputs_used=used, inputs_given=given)
    assert check_batches_sound(replace(example_trace(), measurements={"data": GOOD, "modes": modes})).fault == fault


def test_rows_of_one_epoch_count():
    once = {"rows": 1600, "rows_once": 320, "epochs": 5}
    assert sound(**once).headline.startswith("1,600 rows in 20 batches, 320 distinct (5 epochs), 2 classes")
    assert sound(**once, distinct=80, best_accuracy=0.54).fault == "inputs_alike"
    assert sound(**once, distinct=81, best_accuracy=0.54).status == "pass"


def test_labels_that_are_recoded_in_place_are_named():
    verdict = sound(relabelled=Relabelled(320, 160, 213.0, ((1, 0, 60), (2, 1, 100), (3, 4, 2))))
    assert (
        verdict.headline
        == "All rows of a label come again with the same other label: 1 as 0 (60 rows), 2 as 1 (100 rows)."
    )
    assert "recoded in place" in verdict.causes[0]


def test_the_wording_of_few_rows_and_changing_labels():
    assert str(sound(distinct=20, drawn=replace(DRAWN, distinct=20, probed=32, never_drawn=31))).splitlines() == [
        "batches_sound: FAIL. 320 rows were drawn from a data set of 320, but only 20 distinct rows, where draws at random give 202: "
        "31 of 32 rows read from the data set itself were never drawn.",
        "  cause: the sampler draws a few indices of the data set again and again",
        "  do: print the indices of one epoch: list(loader.sampler); draw them without replacement (DataLoader(shuffle=True))",
        "  limit: distinct rows above 10 % of those that as many draws at random with replacement give (weighted draws for a rare class: "
        "about half of them)",
        "  measured: all batches, 320 rows, 20 of them distinct",
    ]
    verdict = sound(relabelled=Relabelled(320, 222, 213.0))
    assert verdict.headline == (
        "222 of 320 distinct rows have another label when they come again; labels drawn independently of the rows would change in 213."
    )
    assert "it is -0.042" in verdict.limit


def test_wording():
    assert str(sound(order=replace(ORDER, changes=1, single_class=19))).splitlines() == [
        "batches_sound: FAIL. The rows are sorted by class: the label changes 1 time from row to row (in random order: 160 times); "
        "19 of 20 batches hold a single class.",
        "                                 here  in random order",
        "  label changes from row to row     1              160",
        "  batches of a single class        19                0",
        "  cause: the data are sorted by label and not shuffled: each step unlearns the previous class",
        "  do: shuffle the rows before batching: DataLoader(..., shuffle=True), or random.shuffle(rows)",
        "  limit: label changes from row to row above 10 % of those in random order; batches of a single class: below 80 % where "
        "random order gives below 20 %",
        "  measured: all batches, 320 rows",
    ]


RARE = {"counts": (311, 9), "order": Order(17, 17.5, 20, 11, 12.0)}


def test_imbalance_that_nothing_makes_up_for_is_advice():
    verdict = sound(**RARE)
    assert (verdict.status, verdict.fault) == ("advice", "classes_imbalanced")
    assert verdict.headline == "97 % of the rows are of one class, and 11 of 20 batches hold no other."
    assert sound(**{**RARE, "order": replace(RARE["order"], single_class=10)}).status == "pass"
    assert sound(**{**RARE, "counts": (280, 40)}).status == "pass"
    trace = replace(
        example_trace(),
        measurements={"data": replace(GOOD, **RARE), "loss_shape": LossShape(class_weights=(0.5, 17.0))},
    )
    assert check_batches_sound(trace).status == "pass"
    recall = Metric("recall", 0.5, 0.8, 64, "held-out rows", 0.5, 0.002)
    trace = replace(example_trace(metrics=(recall,)), measurements={"data": replace(GOOD, **RARE)})
    assert check_batches_sound(trace).status == "pass"


# ------------------------------------------------------------------ advice
SHIFT = TokenShift(320, 64, distance=0.2, by_chance=0.17, spread=0.01, risen=7, risen_from=0.03, risen_to=0.05)
#: The published split of TREC's question types (Li and Roth 2002): its test questions come from another source.
TREC = {"counts": (86, 1250, 1162, 1223, 835, 896), "held_out_counts": (9, 94, 138, 65, 81, 113), "classes": 6}


@pytest.mark.parametrize(
    ("fault", "changes"),
    [
        ("output_never_a_label", {"classes": 3}),
        ("output_never_a_label", {"classes": 3, "counts": (0, 160, 160), "held_out_counts": (0, 30, 34)}),
        ("rows_repeated", {"copies": Copies(160, 40, 1), "median_values": 10.0}),
        ("labels_apart", {"counts": (240, 80), "held_out_counts": (20, 44)}),
        ("tokens_apart", {"token_shift": replace(SHIFT, distance=0.47)}),
        ("tokens_apart", {"token_shift": replace(SHIFT, distance=0.3, risen_to=0.23)}),
        ("numbers_apart", {"number_shift": NumberShift(320, 64, (0.3, 0.5, 0.7), (70.0, 128.0, 180.0))}),
        ("numbers_apart", {"number_shift": NumberShift(320, 64, (70.0, 128.0, 180.0), (0.3, 0.5, 0.7))}),
        ("numbers_apart", {"number_shift": NumberShift(320, 64, (0.5, 1.0, 1.5), (0.0, 0.0, 0.0))}),
    ],
)
def test_what_is_no_fault_and_worth_a_remark(fault, changes):
    verdict = sound(**changes)
    assert (verdict.status, verdict.fault) == ("advice", fault)


@pytest.mark.parametrize(
    "changes",
    [
        {"number_shift": NumberShift(320, 64, (0.3, 0.5, 0.7), (3.0, 4.9, 7.0))},  # louder, of another source
        {"number_shift": NumberShift(320, 64, (0.3, 0.5, 80.0), (70.0, 128.0, 180.0))},  # the rows overlap
        {"number_shift": NumberShift(320, 31, (0.3, 0.5, 0.7), (70.0, 128.0, 180.0))},
        {"number_shift": NumberShift(320, 64, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))},
        {"classes": 12},  # 320 rows may well miss a rare one of twelve
        {"classes": 3, "held_out_counts": (30, 30, 1)},
        {"copies": Copies(160, 39, 1), "median_values": 10.0},
        {"copies": Copies(160, 160, 1), "median_values": 4.0},  # a few bits
        {"copies": Copies(63, 60), "median_values": 10.0},
        {"counts": (280, 40), "held_out_counts": (32, 32)},  # balanced on purpose
        {"counts": (160, 160), "held_out_counts": (60, 4)},
        {"counts": (240, 80), "held_out_counts": (10, 21)},  # few rows
        {"counts": (220, 100), "held_out_counts": (30, 34)},
        {"counts": (240, 80), "held_out_counts": (20, 44), "source": "the probe batch"},
        {
            "counts": (240, 80),
            "held_out_counts": (20, 44),
            "source": "the batches trained on",
            "order": replace(ORDER, changes=100),  # the first part of a file that is not shuffled
        },
        {**TREC, "rows": 5452, "distinct": 5452},
        {"token_shift": SHIFT},
        {"token_shift": replace(SHIFT, distance=0.45)},
        {"token_shift": replace(SHIFT, distance=0.47, spread=0.05)},
        {"token_shift": replace(SHIFT, distance=0.47), "tokens": replace(TOKENS, vocabulary=99)},  # an alphabet
        {"token_shift": replace(SHIFT, distance=0.3, risen_to=0.22)},
    ],
)
def test_healthy_twins_of_the_remarks(changes):
    assert sound(**changes).status == "pass"


def test_remarks_name_what_they_found():
    verdict = sound(classes=3, class_names=("negative", "positive", "neutral\x1b[31m"), held_out_counts=None)
    assert verdict.headline.startswith(
        "Output 2 ('neutral\\x1b[31m') of 3 is the label of none of 320 distinct training rows"
    )
    assert "balanced in only one" in sound(counts=(280, 40), held_out_counts=(32, 32)).notes[-1]
    both = sound(classes=3, copies=Copies(160, 80, 1), median_values=10.0)
    assert any("80 of 160 training rows of class 1 (50 %)" in cause for cause in both.causes)
