"""overfits_one_batch: certain failures fail, what may be due to the base or the labels does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import CheckFailed, assert_overfits_one_batch, check_overfits_one_batch, example_trace
from pytest_ftcheck.checks.retraining.overfits_one_batch import (
    EQUAL_ROWS,
    FAR_OFF,
    LEAST_TRAINED,
    NO_PROGRESS,
    SIMILAR,
)
from pytest_ftcheck.checks.retraining.record import Attempt, Overfit
from pytest_ftcheck.core.trace import Trace

LN2 = math.log(2)
TRY = Attempt(lr=1e-3, steps=100, loss=0.68, reference=0.68, accuracy=0.6, row_difference=0.4, fitted=False)
FOUND = Overfit(
    rows=16, labels=16, loss=0.7, reference=0.7, constant_loss=LN2, floor=0.0, attainable_accuracy=1.0,
    attempts=(TRY, replace(TRY, lr=1e-4)), trainable=1.0,
)  # fmt: skip


def verdict(attempt=None, reading=None, **changes):
    if attempt is not None:
        changes["attempts"] = tuple(replace(a, **attempt) for a in FOUND.attempts)
    trace = replace(example_trace(), measurements={"overfit": replace(FOUND, **changes)})
    return check_overfits_one_batch(replace(trace, reading=replace(trace.reading, **(reading or {}))))


def test_one_learning_rate_is_enough():
    fitted = replace(TRY, lr=1e-2, steps=12, loss=0.3, reference=0.3, accuracy=1.0, fitted=True)
    v = verdict(attempts=(TRY, fitted))
    assert v.status == "pass"
    assert "overfits 16 rows in 12 steps at a learning rate of 0.0100" in v.headline
    assert "0.7000 to 0.3000, 100 % right" in v.headline
    assert len(v.evidence) == 2


def test_no_progress_at_any_learning_rate():
    v = verdict()
    assert (v.status, v.fault) == ("fail", "cannot_overfit")
    assert "2 learning rates (0.00100, 1.00e-04)" in v.headline
    assert "0.7000 to 0.6800" in v.headline
    assert "cross_entropy(logits, labels)" in v.remedy


def test_wording():
    v = verdict()
    assert v.headline == (
        "The model does not overfit 16 rows at 2 learning rates (0.00100, 1.00e-04): the standard loss went from 0.7000 to 0.6800; the "
        "best constant prediction has 0.693."
    )
    assert v.causes == (
        "the loss uses other labels than the batch's: shuffled, shifted, or with a flipped sign",
        "or the outputs hardly depend on what distinguishes the rows",
    )
    assert (
        v.remedy == "compare your loss with cross_entropy(logits, labels) on this batch; see assert_loss_matches_task"
    )
    assert v.limit == (
        "all predictions right that can be, and half of the standard loss gone (regression: 90 %); a failure only if the loss or the "
        "outputs do not change, or if no learning rate removes 10 % of the loss although at least 50 % of the model is trained"
    )
    assert v.measured == (
        "16 rows (16 labels) of a training batch, from the run's initial weights, in evaluation mode; Adam without decay, gradients "
        "clipped to 1, 2 learning rates"
    )


def test_some_progress_is_inconclusive():
    reference = LN2 * (1 - NO_PROGRESS)
    assert verdict({"reference": reference - 1e-3}).status == "inconclusive"
    assert verdict({"reference": reference + 1e-3}).status == "fail"


@pytest.mark.parametrize(
    "changes",
    [
        {"trainable": LEAST_TRAINED - 0.01},
        {"reading": {"task": "regression"}},
        {"loss": 0.7 * SIMILAR * 1.01},
        {"loss": 0.7 / SIMILAR / 1.01},
        {"reference": FAR_OFF * LN2 * 1.01, "loss": FAR_OFF * LN2 * 1.01},
        {"floor": None},
        {"constant_loss": None},
        {"reference": None},
    ],
)
def test_what_may_have_another_reason_is_inconclusive(changes):
    v = verdict(**changes)
    assert v.status == "inconclusive"
    assert v.causes
    assert v.remedy


def test_a_negated_loss_is_one_of_these_labels():
    assert verdict(loss=-0.7, attempt={"loss": -30.0, "reference": 0.7}).fault == "cannot_overfit"


def test_a_loss_that_stands_still():
    v = verdict({"loss": 0.7, "reference": 0.7})
    assert (v.status, v.fault) == ("fail", "batch_loss_still")
    assert "0.7000 before and after" in v.headline
    assert verdict({"loss": 0.7, "reference": 0.7}, trainable=0.01).fault == "batch_loss_still"
    assert verdict({"loss": 0.7 * (1 - 2e-6), "reference": 0.7}).fault != "batch_loss_still"


def test_rows_that_are_the_same_to_the_model():
    v = verdict({"row_difference": EQUAL_ROWS / 2, "reference": LN2})
    assert (v.status, v.fault) == ("fail", "batch_rows_alike")
    # the bias is all that learns, and of two equal classes it has nothing to learn: the loss stands still, but that is not the point
    assert verdict({"row_difference": 0.0, "reference": 0.7, "loss": 0.7}).fault == "batch_rows_alike"
    assert verdict({"row_difference": EQUAL_ROWS * 2, "reference": LN2}).fault == "cannot_overfit"
    assert verdict({"row_difference": None, "reference": LN2}).fault == "cannot_overfit"
    # the inputs themselves are all the same
    assert verdict({"row_difference": 0.0, "reference": LN2}, floor=LN2).fault != "batch_rows_alike"


def test_what_breaks_down_is_not_judged():
    assert verdict({"loss": math.nan, "reference": None}).status == "inconclusive"
    assert verdict(loss=math.inf).status == "inconclusive"


def test_equal_inputs_are_said():
    fitted = replace(TRY, fitted=True, reference=0.4)
    assert "below 0.350" in verdict(attempts=(fitted,), floor=0.35).notes[0]


def test_not_asked_for():
    v = check_overfits_one_batch(example_trace())
    assert v.status == "inconclusive"
    assert "probes=['overfit']" in v.headline
    v = check_overfits_one_batch(replace(example_trace(), skipped={"overfit": "it raised ValueError: no"}))
    assert v.headline == "Not measured: it raised ValueError: no."
    assert verdict(attempts=()).status == "skipped"


def test_the_assertion_raises_and_the_record_survives_json():
    trace = replace(example_trace(), measurements={"overfit": FOUND})
    with pytest.raises(CheckFailed, match="overfits_one_batch: FAIL"):
        assert_overfits_one_batch(trace)
    assert Trace.from_json(trace.to_json()) == trace
