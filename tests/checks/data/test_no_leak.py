"""no_leak, on hand-written records."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_no_leak, example_trace
from pytest_ftcheck.checks.data.record import Data, Leak, Overlap

OVERLAP = Overlap(rows=64, shared=0, by_chance=0.0, same_objects=False, median_length=10.0)


def judge(**changes):
    return check_no_leak(replace(example_trace(), measurements={"data": Data(rows=320, batches=20, **changes)}))


def test_not_measured():
    assert check_no_leak(example_trace()).status == "skipped"


@pytest.mark.parametrize(
    ("leak", "words"),
    [
        (Leak("input", "token_type_ids", 320, 3), "the input 'token_type_ids' gives the label away"),
        (Leak("token", "place 2 from the start", 320, 3), "the token at place 2 from the start of the row"),
        (Leak("column", "column 4", 320, 2), "column 4 of the numbers gives the label away"),
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
        ({"shared": 64, "by_chance": 0.6}, "fail"),
        ({"shared": 64, "by_chance": 0.61}, "pass"),  # texts from templates repeat by chance
        ({"shared": 15, "rows": 15}, "pass"),
        ({"shared": 64, "median_length": 4.0}, "pass"),
    ],
)
def test_held_out_rows_that_are_trained_on(changes, status):
    verdict = judge(overlap=replace(OVERLAP, **changes))
    assert verdict.status == status
    assert verdict.fault == ("held_out_is_training" if status == "fail" else "")


def test_the_very_same_batches_are_said():
    verdict = judge(overlap=replace(OVERLAP, shared=64, same_objects=True))
    assert verdict.causes[0] == "the held-out batches are the training batches"
    assert "64 of 64 held-out rows (100 %) are training rows" in verdict.headline


def test_a_few_shared_rows_are_a_remark():
    assert "somewhat too good" in judge(overlap=replace(OVERLAP, shared=8)).notes[0]
    assert judge(overlap=replace(OVERLAP, shared=8, by_chance=0.1)).notes == ()
    assert "no held-out rows" in judge().notes[0]
