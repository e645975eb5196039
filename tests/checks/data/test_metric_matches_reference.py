"""metric_matches_reference, on hand-written measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_metric_matches_reference, example_trace
from pytest_ftcheck.checks.data.metric_matches_reference import matching
from pytest_ftcheck.checks.data.record import Data, Evaluation
from pytest_ftcheck.core.observations import Metric

REFERENCES = {"loss": (1.1, 0.2), "accuracy": (0.34, 0.94), "macro F1": (0.2, 0.93)}
EVALUATION = Evaluation(96, 0.3, 0.31, REFERENCES, {}, changed=0.6, baseline=0.38, batches=6)


def judge(first, last, **changes):
    evaluation = replace(EVALUATION, first=first, last=last, **changes)
    mine = Metric("evaluate", first, last, 0, "the user's own")
    return check_metric_matches_reference(
        replace(
            example_trace(),
            metrics=(*example_trace().metrics, mine),
            measurements={"data": Data(evaluation=evaluation)},
        )
    )


def test_without_a_metric_of_the_users_own():
    verdict = check_metric_matches_reference(example_trace())
    assert (verdict.status, "evaluate=" in verdict.headline) == ("skipped", True)


@pytest.mark.parametrize(
    ("first", "last", "name"),
    [
        (0.34, 0.94, "accuracy"),
        (0.34, 0.955, "accuracy"),
        (34.0, 94.0, "accuracy in per cent"),
        (0.66, 0.06, "accuracy, as an error (1 - it)"),
        (66.0, 6.0, "accuracy, as an error in per cent"),
        (0.2, 0.915, "macro F1"),
        (1.1, 0.2, "loss"),
        (-1.1, -0.2, "loss with the sign flipped"),
        (1.11, 0.203, "loss"),
        (1.1, 0.21, None),
        (0.34, 0.965, None),
    ],
)
def test_agreement(first, last, name):
    assert matching(replace(EVALUATION, first=first, last=last)) == name
    verdict = judge(first, last)
    assert verdict.status == "pass"
    assert (name or "none of 3 reference metrics") in verdict.headline


def test_argmax_over_the_rows():
    mistake = "argmax over the rows of a batch instead of the classes"
    verdict = judge(0.0833, 0.0833, mistakes={mistake: (0.0833, 0.0833)}, changed=0.1)
    assert (verdict.status, verdict.fault) == ("fail", "metric_wrong")
    assert f"it is exactly what this mistake gives: {mistake}" in verdict.headline
    assert "0.340 -> 0.940" in verdict.headline
    assert "dim=-1" in verdict.remedy


def test_a_mistake_is_not_judged_where_the_model_learnt_nothing():
    flat = {"loss": (1.1, 1.1), "accuracy": (0.34, 0.36)}
    assert judge(0.1, 0.1, references=flat, mistakes={"argmin instead of argmax": (0.1, 0.1)}).status == "pass"


def test_a_metric_that_does_not_depend_on_the_model():
    assert judge(1.0, 1.0).fault == "metric_blind"
    assert judge(0.123456, 0.123456).fault == "metric_blind"
    assert judge(1.0, 1.0, rows=32).fault == "metric_blind"
    assert judge(1.0, 1.0, rows=31).status == "pass"
    assert judge(1.0, 1.0, changed=0.19).status == "pass"
    assert judge(1.0, 1.0, references={"accuracy": (0.34, 0.48)}).status == "pass"
    assert judge(1.0, 1.0, changed=None).status == "pass"


def test_an_accuracy_for_each_batch():
    verdict = judge(16 * 0.34, 16 * 0.94)
    assert verdict.fault == "metric_scaled"
    assert "16.0 times the accuracy" in verdict.headline
    assert judge(96 * 0.34, 96 * 0.94).status == "pass"  # a count of right answers
    assert judge(16 * 0.34, 16 * 0.94, batches=1).status == "pass"


@pytest.mark.parametrize(
    ("first", "last", "status"),
    [
        (32 / 96, 35 / 96, "fail"),  # labels in another order
        (32 / 96, 70 / 96, "pass"),  # it learns, on other rows
        (64 / 96, 20 / 96, "pass"),  # an error rate on other rows
        (0.0412345, 0.0651234, "pass"),  # no share of counted rows (a calibration error)
    ],
)
def test_a_share_that_stays_at_chance(first, last, status):
    assert judge(first, last).status == status


def test_without_references_the_metrics_of_the_trace_serve():
    accuracy = Metric("accuracy", 0.34, 0.94, 96, "held-out rows", 0.38, 0.001, (30, 66), (30, 66))
    mine = Metric("evaluate", 0.34, 0.95, 0, "the user's own")
    trace = replace(example_trace(), metrics=(accuracy, mine), measurements={"data": Data()})
    assert "that is accuracy" in check_metric_matches_reference(trace).headline
    stuck = replace(trace, metrics=(accuracy, replace(mine, first=32 / 96, last=33 / 96)))
    assert check_metric_matches_reference(stuck).fault == "metric_wrong"
    assert check_metric_matches_reference(replace(trace, metrics=(mine,))).status == "skipped"


def test_wording():
    assert str(judge(1.0, 1.0)).splitlines() == [
        "metric_matches_reference: FAIL. evaluate() went 1.00 -> 1.00, the accuracy on the held-out rows 0.340 -> 0.940: it is the "
        "same to the last digit, though 60 % of the predictions changed.",
        "  metric    before  after",
        "  yours       1.00   1.00",
        "  loss        1.10  0.200",
        "  accuracy   0.340  0.940",
        "  macro F1   0.200  0.930",
        "  cause: evaluate() does not score the trained model: it uses a copy made before training, or a constant prediction",
        "  do: evaluate(model) must use the model that it receives; argmax and thresholds must fit its outputs",
        "  limit: equal to a reference, or rising by itself where the accuracy rose by 25 points or more, to 25 points above the "
        "majority class",
        "  measured: logits of 96 held-out rows before and after the run, dropout off",
    ]
