"""loss_decreases: one bad step at the end of a run that learns is no divergence; a run that diverges is."""

from __future__ import annotations

import dataclasses

from pytest_ftcheck import check_loss_decreases, example_trace
from pytest_ftcheck.core.observations import Iteration, ProbePoint


def run(probe, losses):
    trace = example_trace()
    points = tuple(ProbePoint(10 * i, v, v) for i, v in enumerate(probe))
    return check_loss_decreases(
        dataclasses.replace(
            trace,
            probe=dataclasses.replace(trace.probe, points=points, descents=()),
            iterations=tuple(Iteration(v, i, 1, True) for i, v in enumerate(losses)),
        )
    )


FALLING = [1.1 - 0.01 * i for i in range(60)]


def test_one_bad_step_at_the_end():
    verdict = run([1.1, 0.9, 0.57, 1.5], FALLING)
    assert verdict.status == "pass"
    assert "down to 0.5700 after 20 steps, but 1.500 at the very end" in verdict.headline
    assert verdict.notes


def test_rows_that_never_fell_are_no_bad_step():
    assert run([1.1, 1.09, 1.2, 1.5], FALLING).status == "fail"


def test_training_losses_that_do_not_fall_are_no_bad_step():
    assert run([1.1, 0.9, 0.57, 1.5], [1.1] * 60).status == "fail"
