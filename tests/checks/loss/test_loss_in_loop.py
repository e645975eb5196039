"""What the loop's own losses show: a loss that is maximised, and labels that are the model's predictions."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_ftcheck import example_trace
from pytest_ftcheck.checks.loop.record import LoopCalls, LossCall
from pytest_ftcheck.checks.loss.loss_in_loop import LEAST_CALLS, LUCK, judge_loss_in_loop
from pytest_ftcheck.core.observations import Metric

CALLS = tuple(LossCall(i, "cross_entropy", "output", rows=16, predicted=0.5) for i in (0, 1, 2, 4))


def fault(calls, accuracy=0.5, groups=({},)):
    metrics = () if accuracy is None else (Metric("accuracy", accuracy, 0.9, 64, "probe rows"),)
    loop = LoopCalls(recipe_loop=False, iterations=(0, 1, 2, 4), losses=tuple(calls))
    trace = example_trace(metrics=metrics, measurements={"loop": loop})
    of_settings = tuple(dataclasses.replace(trace.optimizer.groups[0], settings=s) for s in groups)
    trace = dataclasses.replace(trace, optimizer=dataclasses.replace(trace.optimizer, groups=of_settings))
    verdict = judge_loss_in_loop(trace, "loss_matches_task")
    return None if verdict is None else verdict.fault


def with_all(**changes):
    return [dataclasses.replace(call, **changes) for call in CALLS]


def test_healthy_calls_show_nothing():
    assert fault(CALLS) is None


def test_a_loss_that_is_always_maximised():
    assert fault(with_all(negated=True)) == "loss_negated"


def test_what_is_maximised_by_a_maximizing_optimizer_is_descended():
    assert fault(with_all(negated=True), groups=({"maximize": 1.0},)) is None
    assert fault(with_all(negated=True), groups=({"maximize": 1.0}, {})) == "loss_negated"


def test_an_adversarial_term_beside_a_loss_that_is_minimised():
    assert fault([*CALLS, *with_all(negated=True)]) is None


def test_too_few_calls_show_nothing():
    few = LEAST_CALLS - 1
    assert fault(with_all(negated=True)[:few]) is None
    assert fault(with_all(predicted=1.0)[:few]) is None
    assert fault(with_all(negated=True)[: few + 1]) == "loss_negated"


def test_labels_that_are_the_predictions():
    assert fault(with_all(predicted=1.0)) == "own_predictions_as_targets"


def test_similarities_of_the_rows_are_no_predictions():
    assert fault(with_all(predicted=1.0, input="other")) is None
    assert fault(with_all(predicted=1.0, of_rows=True)) is None


def test_one_label_that_is_not_predicted_shows_that_labels_are_read():
    calls = with_all(predicted=1.0)
    assert fault([*calls[:-1], dataclasses.replace(calls[-1], predicted=15 / 16)]) is None


def test_pseudo_labels_beside_real_ones():
    assert fault([*CALLS, *with_all(predicted=1.0)]) is None


@pytest.mark.parametrize("accuracy", [0.99, 1.0, None])
def test_a_model_that_is_right_from_the_start(accuracy):
    assert fault(with_all(predicted=1.0), accuracy) is None


def test_luck_has_a_limit():
    limit = LUCK ** (1 / 16)
    assert fault(with_all(predicted=1.0), limit - 0.01) == "own_predictions_as_targets"
    assert fault(with_all(predicted=1.0), limit + 0.01) is None
