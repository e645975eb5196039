"""resume_continues_training: what is not restored is named, all of it; what only repeats other random numbers is advice."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import CheckFailed, assert_resume_continues_training, check_resume_continues_training, example_trace
from pytest_ftcheck.checks.equivalence.record import Resume
from pytest_ftcheck.checks.equivalence.resume_continues_training import NOT_REPEATABLE, REPEATS, SAME
from pytest_ftcheck.core.trace import Trace

FOUND = Resume(
    steps_before=3, steps_after=3, losses=(0.7, 0.69, 0.68), resumed_losses=(0.7, 0.69, 0.68), difference=0.0,
    repeat_difference=0.0,
)  # fmt: skip


def verdict(**changes):
    return check_resume_continues_training(example_trace(measurements={"resume": replace(FOUND, **changes)}))


def lost(*needed, **changes):
    return verdict(difference=0.5, changed=needed, needed=needed, **changes)


def test_the_same_trajectory():
    v = verdict()
    assert v.status == "pass"
    assert v.headline == (
        "Training continues as without interruption: the weights end 0 % of the distance moved apart, 3 steps after the checkpoint."
    )
    assert [row["step"] for row in v.evidence] == [4, 5, 6]


def test_both_sides_of_the_limit():
    assert verdict(difference=SAME * 0.99, needed=("optimizer",)).status == "pass"
    assert verdict(difference=SAME * 1.01, needed=("optimizer",)).status == "fail"
    assert verdict(difference=REPEATS * 1e-3 * 0.99, repeat_difference=1e-3, needed=("optimizer",)).status == "pass"
    assert verdict(difference=REPEATS * 1e-3 * 1.01, repeat_difference=1e-3, needed=("optimizer",)).status == "fail"


@pytest.mark.parametrize(
    ("component", "fault", "called"),
    [
        ("weights", "weights_not_restored", "the weights are not restored"),
        ("optimizer", "optimizer_not_restored", "the optimizer is not restored"),
        ("scheduler", "scheduler_not_restored", "the scheduler is not restored"),
        ("memory.keys", "state_not_in_state_dict", "memory.keys is not restored"),
    ],
)
def test_what_is_lost_is_named(component, fault, called):
    v = lost(component)
    assert (v.status, v.fault) == ("fail", fault)
    assert f"50 % of the distance moved away from those without interruption, because {called}" in v.headline
    assert "put back by hand, there is no difference" in v.headline


def test_all_that_is_lost_is_named_the_most_fundamental_first():
    v = lost("optimizer", "random", "norm.scale", "norm.count")
    assert v.fault == "state_not_in_state_dict"
    assert "because norm.scale, norm.count, the optimizer and the random states are not restored" in v.headline
    assert len(v.causes) == 3


def test_other_random_numbers_are_advice():
    v = lost("random")
    assert (v.status, v.fault) == ("advice", "random_states_not_restored")
    assert lost("random", "scheduler").status == "fail"


def test_a_lost_position_in_the_data_is_advice():
    v = verdict(same_batches=False)
    assert (v.status, v.fault) == ("advice", "data_position_lost")
    assert verdict(same_batches=True).status == "pass"


def test_a_checkpoint_that_fails():
    v = verdict(raised="KeyError: 'model'", raised_while="loading the optimizer", difference=math.nan)
    assert (v.status, v.fault) == ("fail", "checkpoint_fails")
    assert v.headline == "Loading the optimizer raised KeyError: 'model'."


def test_what_cannot_be_repeated_or_explained_is_inconclusive():
    assert verdict(repeat_difference=NOT_REPEATABLE * 1.01).status == "inconclusive"
    assert verdict(repeat_difference=math.nan).status == "inconclusive"
    v = verdict(difference=0.5, explained=False, changed=("random",))
    assert v.status == "inconclusive"
    assert "random" in v.causes[0]


def test_what_weights_only_refuses_is_a_note():
    assert "refuses the state_dict of the scheduler" in verdict(refused=("scheduler",)).notes[0]


def test_not_asked_for_and_json():
    assert "probes=['resume']" in check_resume_continues_training(example_trace()).headline
    trace = example_trace(measurements={"resume": replace(FOUND, needed=("weights",), difference=1.0)})
    assert Trace.from_json(trace.to_json()) == trace
    with pytest.raises(CheckFailed, match="resume_continues_training: FAIL"):
        assert_resume_continues_training(trace)
