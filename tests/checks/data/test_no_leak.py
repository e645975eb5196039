"""no_leak, on hand-written measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_no_leak, example_trace
from pytest_ftcheck.checks.data.record import Data, Leak, Overlap

OVERLAP = Overlap(rows=64, shared=0, training_duplicates=0.0, same_objects=False, median_length=10.0)


def judge(**changes):
    return check_no_leak(replace(example_trace(), measurements={"data": Data(rows=320, batches=20, **changes)}))


def test_not_measured():
    assert check_no_leak(example_trace()).status == "inconclusive"


@pytest.mark.parametrize(
    ("leak", "words"),
    [
        (Leak("input", "token_type_ids", 320, 3), "The input 'token_type_ids' leaks the label"),
        (Leak("token", "position 2 from the start", 320, 3), "The token at position 2 from the start of the row"),
        (Leak("column", "column 4", 320, 2), "Column 4 of the numbers leaks the label"),
    ],
)
def test_an_input_that_is_the_label(leak, words):
    verdict = judge(leaks=(leak,))
    assert (verdict.status, verdict.fault) == ("fail", "label_in_inputs")
    assert verdict.headline.startswith(words)
    assert f"{leak.classes} classes" in verdict.headline


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "pass"),
        ({"shared": 32}, "fail"),
        ({"shared": 31}, "pass"),
        ({"shared": 64, "training_duplicates": 0.6}, "fail"),
        ({"shared": 64, "training_duplicates": 0.61}, "pass"),  # texts from templates repeat by chance
        ({"shared": 15, "rows": 15}, "pass"),
        ({"shared": 64, "median_length": 4.0}, "pass"),
    ],
)
def test_held_out_rows_that_are_trained_on(changes, status):
    verdict = judge(overlap=replace(OVERLAP, **changes))
    assert verdict.status == status
    assert verdict.fault == ("held_out_is_training" if status == "fail" else "")


def test_the_very_same_batches_are_named():
    verdict = judge(overlap=replace(OVERLAP, shared=64, same_objects=True))
    assert verdict.causes[0] == "the held-out batches are the training batches"
    assert "64 of 64 distinct held-out rows (100 %) are training rows" in verdict.headline


def test_a_few_shared_rows_give_a_note():
    assert "slightly optimistic" in judge(overlap=replace(OVERLAP, shared=8)).notes[0]
    assert judge(overlap=replace(OVERLAP, shared=8, training_duplicates=0.1)).notes == ()
    assert "no held-out rows" in judge().notes[0]


def test_what_was_not_searched_does_not_pass():
    few = "there are 48 distinct labelled rows, and a leak is searched for in 64 or more"
    verdict = judge(leaks_unsearched=few, leak_rows=48)
    assert (verdict.status, "48 distinct" in verdict.headline) == ("skipped", True)
    verdict = judge(leaks_unsearched=few, leak_rows=48, overlap=OVERLAP)
    assert verdict.status == "pass"
    assert verdict.headline == "0 of 64 distinct held-out rows are training rows."
    assert few in verdict.notes[0]


def test_wording():
    assert str(judge(overlap=replace(OVERLAP, shared=48, training_duplicates=0.05))).splitlines() == [
        "no_leak: FAIL. 48 of 64 distinct held-out rows (75 %) are training rows; 5.0 % are expected by chance.",
        "                                           share",
        "  held-out rows that are training rows      75 %",
        "  training rows that occur more than once  5.0 %",
        "  cause: training and held-out rows were not split, or were split after rows had been copied",
        "  do: split first, then copy or augment; evaluate on rows that were not trained on",
        "  limit: below 50 %, or within 40 points of the share of duplicates among the training rows",
        "  measured: 320 distinct rows, all batches; no model involved",
    ]
