"""batches_sound and labels_learnable, on hand-written records."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import check_batches_sound, check_labels_learnable, example_trace
from pytest_ftcheck.checks.data.record import Data, Dependence, Normalised, Order, Tokens
from pytest_ftcheck.checks.mode.record import Modes
from pytest_ftcheck.core.observations import Metric, ProbePoint
from pytest_ftcheck.core.trace import Trace

ORDER = Order(changes=150, expected_changes=160.0, batches=20, single_class=0, expected_single_class=0.0)
TOKENS = Tokens(
    vocabulary=200, places=2600, distinct=164, commonest=12, share=0.03, second_share=0.028, median_length=10.0
)
DEPENDENCE = Dependence(
    320, 499, {"words": 0.4, "pairs of words": 0.2}, planted=6, found=6, shifted={"one row on": 1.2}
)
GOOD = Data(
    rows=320,
    batches=20,
    counts=(160, 160),
    classes=2,
    labels=320,
    held_out_counts=(30, 34),
    distinct=320,
    ceiling=1.0,
    large_batches=20,
    different_batches=20,
    length=20,
    order=ORDER,
    tokens=TOKENS,
    dependence=Dependence(320, 99, {"words": 0.01}),
)
#: A run that learnt nothing.
LOST = replace(
    example_trace(),
    metrics=(Metric("accuracy", 0.5, 0.48, 64, "held-out rows", 0.53, 0.7),),
    probe=replace(example_trace().probe, points=(ProbePoint(0, 0.7, 0.7), ProbePoint(20, 0.69, 0.69))),
)


def sound(**changes):
    return check_batches_sound(replace(example_trace(), measurements={"data": replace(GOOD, **changes)}))


def test_a_healthy_set():
    verdict = sound()
    assert (verdict.status, verdict.fault) == ("pass", "")
    assert (
        verdict.headline
        == "320 rows in 20 batches, 320 different, 2 classes: nothing odd in their labels, words or order."
    )
    assert verdict.notes == ()


@pytest.mark.parametrize("check", [check_batches_sound, check_labels_learnable])
def test_not_measured(check):
    assert check(example_trace()).status == "skipped"
    verdict = check(replace(example_trace(), skipped={"data": "it raised ValueError: odd"}))
    assert "it raised ValueError: odd" in verdict.headline


@pytest.mark.parametrize(
    ("fault", "changes"),
    [
        ("labels_nan", {"nonfinite_labels": 1}),
        ("labels_all_ignored", {"ignored_labels": 320}),
        ("one_class_only", {"constant": True, "counts": (320,)}),
        ("mask_empty", {"tokens": replace(TOKENS, masked_out=320)}),
        ("ids_clamped", {"tokens": replace(TOKENS, commonest=199, share=0.41)}),
        ("inputs_alike", {"distinct": 20, "ceiling": 0.54}),
        ("one_row_repeated", {"uniform_batches": 16, "distinct": 20}),
        ("same_batch", {"different_batches": 1, "source": "the batches trained on"}),
        ("class_missing", {"held_out_counts": (30, 30, 4)}),
        ("labels_contradict", {"contradictory": 256, "ceiling": 0.5}),
        ("sorted_by_class", {"order": replace(ORDER, changes=16)}),
        ("batches_of_one_class", {"order": replace(ORDER, changes=17, single_class=16)}),
        ("batchnorm_on_few", {"normalised": (Normalised("head.1", 2),)}),
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
        {"tokens": replace(TOKENS, commonest=199, share=0.39)},
        {"tokens": replace(TOKENS, commonest=199, share=0.9, vocabulary=99)},  # an alphabet
        {"tokens": replace(TOKENS, commonest=199, share=0.9, places=199)},
        {"tokens": replace(TOKENS, commonest=199, share=0.9, is_padding=True)},
        {"tokens": replace(TOKENS, share=0.9)},  # the run learns on held-out rows all the same
        {"distinct": 81, "ceiling": 0.54},
        {"distinct": 20, "ceiling": 0.56},
        {"uniform_batches": 15, "distinct": 20, "ceiling": 0.9},
        {"uniform_batches": 20, "distinct": 1, "ceiling": 0.6},
        {"different_batches": 1},  # a list of one batch again and again: somebody overfits on purpose
        {"different_batches": 1, "source": "the batches trained on", "length": 1},
        {"held_out_counts": (30, 30, 2), "counts": (160, 160)},
        {"contradictory": 255, "ceiling": 0.5},
        {"contradictory": 320, "ceiling": 0.61},
        {"contradictory": 320, "ceiling": 0.5, "tokens": replace(TOKENS, median_length=4.0)},
        {"order": replace(ORDER, changes=17)},
        {"order": Order(1, 9.9, 20, 20, 15.0)},  # a rare class
        {"order": Order(140, 160.0, 160, 80, 80.0)},  # batches of two rows
        {"order": replace(ORDER, single_class=15)},
        {"order": replace(ORDER, batches=3, single_class=3)},
        {"normalised": (Normalised("head.1", 3),)},
    ],
)
def test_just_within_the_limits(changes):
    if changes.get("held_out_counts") == (30, 30, 2):  # 2 of 62 rows: missing by chance once in 40,000
        changes = {**changes, "rows": 320}
    assert sound(**changes).status == "pass"


def test_inputs_that_are_no_numbers_are_a_fault_where_the_loss_shows_it():
    data = replace(GOOD, nonfinite_inputs=2, nonfinite_where="features", distinct=1, ceiling=0.5)  # and all alike
    trace = example_trace(measurements={"data": data})
    bad = replace(trace.iterations[3], loss=math.nan)
    verdict = check_batches_sound(replace(trace, iterations=(*trace.iterations[:3], bad)))
    assert (verdict.status, verdict.fault) == ("fail", "inputs_nan")
    assert "2 of 320 rows hold NaN or infinity (in 'features')" in verdict.headline
    points = (ProbePoint(0, math.inf, None),)
    assert check_batches_sound(replace(trace, probe=replace(trace.probe, points=points))).fault == "inputs_nan"
    # a model that takes NaN for a missing value
    assert (
        check_batches_sound(replace(trace, measurements={"data": replace(GOOD, nonfinite_inputs=2)})).status == "pass"
    )


def test_one_word_for_all_fails_where_nothing_is_learnt():
    data = replace(GOOD, tokens=replace(TOKENS, commonest=1, share=0.61))
    verdict = check_batches_sound(replace(LOST, measurements={"data": data}))
    assert (verdict.status, verdict.fault) == ("fail", "words_unknown")
    assert verdict.headline.startswith("61 % of the words are one and the same id, 1")
    assert check_batches_sound(replace(LOST, data=replace(GOOD, tokens=replace(TOKENS, share=0.59)))).status == "pass"


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
    data = replace(GOOD, constant=True, counts=(), order=None, ceiling=None)
    assert check_batches_sound(replace(trace, measurements={"data": data})).fault == "labels_constant"


def test_remarks_do_not_gate():
    verdict = sound(counts=(300, 20), batches=1, contradictory=4, ceiling=0.99, ignored_labels=3)
    assert verdict.status == "pass"
    text = "\n".join(verdict.notes)
    for words in (
        "94 % of the rows have one class",
        "a single batch",
        "4 rows stand with another label",
        "3 of 320 labels are -100",
    ):
        assert words in text


# ------------------------------------------------------------------ labels_learnable
def learnable(dependence, trace: Trace = LOST, **changes):
    return check_labels_learnable(
        replace(trace, measurements={"data": replace(GOOD, dependence=dependence, **changes)})
    )


@pytest.mark.parametrize(("p", "status"), [(0.005, "pass"), (0.0051, "fail")])
def test_dependence_at_its_limit(p, status):
    verdict = learnable(replace(DEPENDENCE, p_values={"words": p, "places": 0.5}))
    assert verdict.status == status
    assert "words" in verdict.headline or status == "fail"


def test_a_first_look_that_found_it_is_enough():
    assert learnable(Dependence(320, 99, {"words": 0.01})).status == "pass"


def test_unrelated_labels():
    verdict = learnable(DEPENDENCE)
    assert (verdict.status, verdict.fault) == ("fail", "labels_unrelated")
    assert "least p = 0.200" in verdict.headline
    assert "6 of 6 made-up rules on these 320 rows" in verdict.headline
    assert verdict.evidence[0] == {"rows compared by": "pairs of words", "p": 0.2}


def test_shifted_labels():
    verdict = learnable(replace(DEPENDENCE, shifted={"one row on": 40.0, "in reverse": 7.0}))
    assert (verdict.status, verdict.fault) == ("fail", "labels_shifted")
    assert "one row on" in verdict.headline
    assert learnable(replace(DEPENDENCE, shifted={"one row on": 6.0})).fault == "labels_shifted"
    assert learnable(replace(DEPENDENCE, shifted={"one row on": 5.9})).fault == "labels_unrelated"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rows": 255}, "too few"),
        ({"found": 4}, "finds 4 of 6 made-up rules"),
    ],
)
def test_a_weak_test_says_nothing(changes, why):
    verdict = learnable(replace(DEPENDENCE, **changes))
    assert verdict.status == "pass"
    assert why in verdict.headline


def test_a_run_that_learns_settles_it():
    assert "held-out rows" in learnable(DEPENDENCE, example_trace()).headline
    assert learnable(DEPENDENCE, example_trace()).status == "pass"
    without = replace(example_trace(), metrics=())
    assert "by heart" in learnable(DEPENDENCE, without).headline
    assert learnable(DEPENDENCE, replace(LOST, metrics=())).status == "fail"


def test_nothing_to_test():
    verdict = learnable(None, untested="there is not one label a row")
    assert (verdict.status, verdict.headline) == ("skipped", "not tested: there is not one label a row.")


CUT = replace(TOKENS, median_length=2.0, shortest=2, longest=2, special=1)


def test_texts_cut_to_nothing():
    verdict = sound(tokens=CUT, ceiling=0.8)
    assert (verdict.status, verdict.fault) == ("fail", "texts_cut_off")
    assert "holds 1 word beside the first token" in verdict.headline


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": CUT, "ceiling": 0.97},  # single words, each with its label
        {"tokens": replace(CUT, longest=3), "ceiling": 0.8},  # not all of one length
        {"tokens": replace(CUT, shortest=4, longest=4), "ceiling": 0.8},
        {"tokens": replace(CUT, special=0), "ceiling": 0.8},
        {"tokens": replace(CUT, vocabulary=99), "ceiling": 0.8},
        {"tokens": CUT, "ceiling": None},
        {"tokens": CUT, "ceiling": 0.8, "rows": 63},
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
def test_a_step_that_holds_on_to_one_batch(used, given, fault):
    modes = Modes(inputs_used=used, inputs_given=given)
    assert check_batches_sound(replace(example_trace(), measurements={"data": GOOD, "modes": modes})).fault == fault
