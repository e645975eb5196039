"""The loss on fixed rows where a pass is costly: no more steps and points than decide."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_ftcheck import check_loss_decreases, finetune
from pytest_ftcheck.core.observations import Descent, ProbeLossPoint
from pytest_ftcheck.instruments.fixed_rows import DESCENTS, FIRST, SETTLED, LossTracker
from pytest_ftcheck.instruments.reader import Reader
from pytest_ftcheck.training import run

BATCH = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])


def tracker(*points, lowered=(), steps=20, sparing=True):
    """With the loss, and the standard loss, after some of the steps; whether each descent lowered the loss, or by how much."""
    model = nn.Sequential(nn.Linear(3, 2))
    made = LossTracker(model, Reader(model, BATCH), [BATCH], "rows", steps, sparing=sparing)
    made.points = [ProbeLossPoint(step, loss, reference) for step, loss, reference in points]
    made.descents = [Descent(i, 1.0, 1.0 - 0.1 * share) for i, share in enumerate(lowered)]
    return made


START, FAR_DOWN, HARDLY = (0, 1.0, 1.0), (5, 0.8, 0.8), (5, 0.95, 0.95)


def test_a_small_model_is_evaluated_at_every_point_and_at_the_first_twenty_steps():
    made = tracker(START, FAR_DOWN, lowered=[1] * 7, sparing=False)
    assert [step for step in range(1, 20) if made.wants_point(step)] == [5, 10, 15]
    assert made.wants_descent(7)
    assert not tracker(START, lowered=[1] * DESCENTS, sparing=False).wants_descent(DESCENTS)


def test_a_costly_run_that_is_clearly_down_is_evaluated_at_its_end_alone():
    made = tracker(START, FAR_DOWN, lowered=[1] * FIRST)
    assert not any(made.wants_point(step) or made.wants_descent(step) for step in range(5, 20))


def test_the_first_point_is_waited_for_once_the_first_steps_are_clear():
    assert tracker(START, lowered=[0] * FIRST).wants_descent(1)  # a rate of zero
    assert not any(tracker(START, lowered=[1] * FIRST).wants_descent(step) for step in (1, 2, 3, 4))
    assert tracker(START, lowered=[1] * FIRST).wants_point(5)
    assert tracker(START, lowered=[1] * FIRST, steps=200).wants_descent(2)  # the first point is 50 steps away


@pytest.mark.parametrize(
    "point",
    [
        HARDLY,
        (5, 0.8, 1.0),  # the loss falls and the standard loss does not: another loss is minimised
        (5, 1.5, 1.5),
        (5, float("nan"), float("nan")),
    ],
)
def test_a_costly_run_that_is_not_clearly_down_is_evaluated_until_the_sign_test_is_settled(point):
    made = tracker(START, point, lowered=[1] * FIRST)
    assert made.wants_descent(5)
    assert made.wants_point(10)
    assert not tracker(START, point, lowered=[1] * SETTLED).wants_descent(9)


@pytest.mark.parametrize("rise", [-1, -0.01])
def test_a_step_that_raised_the_loss_is_followed_by_more(rise):
    made = tracker(START, lowered=[rise, *[1] * 10])
    assert made.wants_descent(3)
    assert made.wants_descent(11)


def test_a_first_step_at_a_rate_of_zero_is_no_exception():
    assert not tracker(START, HARDLY, lowered=[0, *[1] * SETTLED]).wants_descent(8)


@pytest.mark.parametrize(("lr", "points"), [(3e-2, [0, 5, 20]), (1e-5, [0, 5, 10, 15, 20])])
def test_a_whole_run_of_a_costly_model(monkeypatch, lr, points):
    monkeypatch.setattr(run, "LARGE", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(64, 3)
    batches = list(zip(x.split(8), (x[:, 0] > 0).long().split(8), strict=True))
    trace = finetune(model, batches, steps=20, lr=lr, head="2")
    assert [p.step for p in trace.probe_loss.points] == points
    steps = [d.step for d in trace.probe_loss.descents]
    assert steps == ([0] if len(points) == 3 else [0, 5, 6, 7, 8, 9, 10])
    assert check_loss_decreases(trace).status == "pass"
