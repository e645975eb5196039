"""accumulation_matches_large_batch: each reason is named, what is by design is advice, and rounding is no difference."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import (
    CheckFailed,
    Intent,
    assert_accumulation_matches_large_batch,
    check_accumulation_matches_large_batch,
    example_trace,
)
from pytest_ftcheck.checks.equivalence.accumulation_matches_large_batch import UNCERTAIN
from pytest_ftcheck.checks.equivalence.record import NEGLIGIBLE, ROUNDINGS, Accumulated, Accumulation
from pytest_ftcheck.core.trace import Trace

EQUAL = Accumulated({"rows": 8e-7, "labels": 8e-7, "sum": 3.0}, (0.25, 0.25, 0.25, 0.25), 7e-7)
WRONG = Accumulated({"rows": 0.4, "labels": 0.4, "sum": 2.6}, (0.3, 0.3, 0.3, 0.3), 0.3)
FOUND = Accumulation(
    rows=(4, 4, 4, 4), labels=(4, 4, 4, 4), gradient=1.2, rounding=5e-7, accumulated=EQUAL, in_turn=EQUAL
)  # fmt: skip


def verdict(intent=None, **changes):
    found = replace(FOUND, **changes)
    return check_accumulation_matches_large_batch(example_trace(measurements={"accumulation": found}, intent=intent))


def both(accumulated, **changes):
    return verdict(accumulated=accumulated, in_turn=accumulated, **changes)


def with_error(error, **more):
    return replace(EQUAL, errors={"rows": error, "labels": error, "sum": 3.0, **more}, fit_error=error)


def test_the_same_up_to_rounding():
    v = verdict()
    assert v.status == "pass"
    assert v.headline == (
        "The gradient of 4 micro-batches of 4 rows, weighted by rows, is that of the 16 rows at once up to 8.00e-07."
    )
    assert len(v.evidence) == 3


def test_both_sides_of_the_limit():
    assert both(with_error(NEGLIGIBLE * 0.99)).status == "pass"
    assert both(with_error(NEGLIGIBLE * 1.01)).fault == "loss_not_a_mean"
    # where the order of the rows changes more, more is rounding
    assert both(with_error(ROUNDINGS * 1e-4 * 0.99), rounding=1e-4).status == "pass"
    assert both(with_error(ROUNDINGS * 1e-4 * 1.01), rounding=1e-4).status == "fail"


def test_a_loss_that_is_a_sum():
    v = both(Accumulated({"rows": 0.75, "labels": 0.75, "sum": 8e-7}, (1.0,) * 4, 7e-7))
    assert (v.status, v.fault) == ("fail", "sum_reduction")
    assert "75 %" in v.headline
    assert "do not divide the loss by the number of micro-batches" in v.remedy


def test_a_loss_with_a_term_of_the_whole_batch():
    v = both(WRONG)
    assert (v.status, v.fault) == ("fail", "loss_not_a_mean")
    assert v.headline == (
        "The mean gradient of 4 micro-batches of 4 rows differs from that of the 16 rows at once by 40 % of its length."
    )
    assert "negatives from the batch" in v.causes[0]


def test_a_module_that_mixes_rows():
    v = both(WRONG, mixes_rows="encoder.norm", mixes_rows_class="Centred")
    assert (v.status, v.fault) == ("fail", "rows_mixed")
    assert "encoder.norm returns something else for the same rows" in v.headline
    assert "in encoder.norm (Centred)" in v.causes[0]


def test_batch_normalisation_is_by_design():
    v = both(WRONG, statistics=("classifier.norm",), fixed_statistics=EQUAL)
    assert (v.status, v.fault) == ("advice", "statistics_of_micro_batches")
    assert "because of classifier.norm" in v.headline
    # beside something else it excuses nothing
    assert both(WRONG, statistics=("classifier.norm",), fixed_statistics=WRONG).fault == "loss_not_a_mean"
    sum_too = Accumulated({"rows": 0.75, "labels": 0.75, "sum": 8e-7}, (1.0,) * 4, 7e-7)
    assert both(WRONG, statistics=("classifier.norm",), fixed_statistics=sum_too).fault == "sum_reduction"


def test_a_mean_over_tokens_is_weighted_by_them():
    tokens = Accumulated({"rows": 0.12, "labels": 9e-7, "sum": 3.0}, (0.1, 0.2, 0.3, 0.4), 7e-7)
    v = both(tokens, labels=(5, 10, 15, 20))
    assert v.status == "pass"
    assert "weighted by labels" in v.headline
    assert v.notes == (
        "weigh each micro-batch by its labels (5, 10, 15, 20): the mean of their losses has an error of 12 %",
    )
    declared = both(tokens, labels=(5, 10, 15, 20), intent=Intent(accumulation=4))
    assert (declared.status, declared.fault) == ("advice", "weights_of_micro_batches_differ")
    assert "10 %, 20 %, 30 %, 40 %" in declared.headline


def test_class_weights_are_advice():
    v = both(Accumulated({"rows": 0.15, "labels": 0.15, "sum": 2.4}, (0.2, 0.3, 0.2, 0.3), 8e-8))
    assert (v.status, v.fault) == ("advice", "weights_of_micro_batches_differ")
    # weights that do not add up to one, or one that is negative, are those of no mean
    for fit in ((0.5,) * 4, (1.5, -0.5, 0.0, 0.0)):
        assert both(Accumulated({"rows": 0.15, "labels": 0.15, "sum": 2.4}, fit, 8e-8)).fault == "loss_not_a_mean"


def test_state_that_is_carried_over():
    v = verdict(in_turn=WRONG, carried=("lstm.hidden",))
    assert (v.status, v.fault) == ("fail", "state_carried_over")
    assert "the error is 40 % of its length, not 8.00e-07" in v.headline
    assert "lstm.hidden is kept" in v.causes[0]
    assert "outside the buffers" in verdict(in_turn=WRONG).causes[0]
    raised = verdict(
        in_turn=Accumulated({"rows": math.inf}, (), math.inf), in_turn_raised="Trying to backward a second time."
    )
    assert raised.fault == "state_carried_over"
    assert raised.headline.endswith("after the first: Trying to backward a second time.")


@pytest.mark.parametrize(
    "changes", [{"gradient": 0.0, "rounding": math.nan}, {"gradient": math.nan}, {"rounding": UNCERTAIN / ROUNDINGS * 1.01}]
)  # fmt: skip
def test_what_rounding_hides_is_inconclusive(changes):
    v = both(WRONG, **changes)
    assert v.status == "inconclusive"
    assert v.causes
    assert v.remedy


def test_not_asked_for_and_json():
    assert "probes=['accumulation']" in check_accumulation_matches_large_batch(example_trace()).headline
    trace = example_trace(measurements={"accumulation": replace(FOUND, accumulated=WRONG, fixed_statistics=EQUAL)})
    assert Trace.from_json(trace.to_json()) == trace
    with pytest.raises(CheckFailed, match="accumulation_matches_large_batch: FAIL"):
        assert_accumulation_matches_large_batch(
            example_trace(measurements={"accumulation": replace(FOUND, accumulated=WRONG)})
        )
