"""eval_deterministic, on hand-written measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_eval_deterministic, example_trace
from pytest_ftcheck.checks.mode.record import BatchNormStatistics, Modes
from pytest_ftcheck.core.effect import Effect

SAME = Effect(0.0, 0.01, 0.02)
OTHER = Effect(0.01, 0.01, 0.02)
GOOD = Modes(4, (0, 1, 2, 10, 11, 12, 17, 18, 19), (), training=OTHER, evaluation=SAME)


def judge(modes):
    return check_eval_deterministic(replace(example_trace(), measurements={"modes": modes}))


def test_not_measured():
    assert check_eval_deterministic(replace(example_trace(), skipped={"modes": "left out"})).status == "inconclusive"
    verdict = judge(replace(GOOD, evaluation=None, unmeasured={"evaluation": "RuntimeError: no"}))
    assert (verdict.status, verdict.headline) == ("skipped", "Not measured: RuntimeError: no.")


def test_evaluation_is_deterministic():
    verdict = judge(GOOD)
    assert verdict.status == "pass"
    assert "4 rows" in verdict.headline
    assert "differ by 0 %" in verdict.headline
    assert judge(replace(GOOD, evaluation=Effect(1e-9, 0.01, 0.02))).status == "pass"


def test_random_in_evaluation():
    verdict = judge(replace(GOOD, evaluation=OTHER))
    assert (verdict.status, verdict.fault) == ("fail", "random_in_evaluation")
    assert "in the model" in verdict.causes[0]
    assert "training=self.training" in verdict.remedy
    outside = judge(replace(GOOD, evaluation=OTHER, base="base_model", base_evaluation=SAME, base_library=True))
    assert outside.status == "fail"
    assert "outside base_model" in outside.causes[0]
    inside = judge(replace(GOOD, evaluation=OTHER, base="base_model", base_evaluation=OTHER))
    assert "inside base_model" in inside.causes[0]


def test_state_carried_from_one_call_to_the_next_is_told_apart_from_randomness():
    carried = judge(replace(GOOD, evaluation=OTHER, evaluation_same_seed=OTHER))
    assert (carried.status, carried.fault) == ("fail", "state_carried")
    assert "the same random state" in carried.headline
    for again in (SAME, Effect(1e-9, 0.01, 0.02)):
        assert judge(replace(GOOD, evaluation=OTHER, evaluation_same_seed=again)).fault == "random_in_evaluation"


def test_a_library_model_that_is_random_by_design():
    verdict = judge(replace(GOOD, evaluation=OTHER, base="reformer", base_evaluation=OTHER, base_library=True))
    assert verdict.status == "pass"
    assert "exempt: reformer" in verdict.notes[0]


@pytest.mark.parametrize(
    ("passes", "training", "random", "fault"),
    [
        (4, 4, 4, "evaluates_in_training_mode"),
        (4, 0, 4, "evaluates_in_training_mode"),
        (4, 4, 0, ""),
        (4, 2, 2, ""),
        (0, 0, 0, ""),
    ],
)
def test_the_users_evaluation(passes, training, random, fault):
    verdict = judge(replace(GOOD, passes=passes, passes_training=training, passes_random=random))
    assert verdict.fault == fault
    if fault:
        assert "4 forward passes" in verdict.headline
        assert ("a part of the model" in verdict.headline) == (training == 0)


def test_an_evaluation_in_training_mode_harms_no_model_without_randomness():
    assert judge(replace(GOOD, training=SAME, passes=4, passes_training=4, passes_random=4)).status == "pass"


def test_an_evaluation_that_leaves_its_mode_behind_is_a_remark():
    verdict = judge(replace(GOOD, passes=4, leaves_evaluation_mode=True))
    assert verdict.status == "pass"
    assert "model.train()" in verdict.notes[0]


@pytest.mark.parametrize(
    ("changes", "fault", "words"),
    [
        ({"leaves_gradients_off": True}, "gradients_switched_off", "leaves gradients switched off"),
        (
            {"changes_values": ("a.weight", "b")},
            "evaluation_changes_model",
            "the values of 2 parameters (a.weight first)",
        ),
        ({"changes_requires_grad": ("a",)}, "evaluation_changes_model", "requires_grad of 1 parameter (a first)"),
        (
            {"batch_norms": (BatchNormStatistics("n", 0.0, False, 9),)},
            "statistics_never_updated",
            "statistics of n did not change",
        ),
        ({"batch_norms": (BatchNormStatistics("n", 0.1, True, 9),)}, "", "Two passes"),
        ({"batch_norms": (BatchNormStatistics("n", 0.0, False, 2),)}, "", "Two passes"),
    ],
)
def test_what_an_evaluation_leaves_behind(changes, fault, words):
    verdict = judge(replace(GOOD, passes=3, **changes))
    assert verdict.fault == fault
    assert words in verdict.headline


def test_wording():
    modes = replace(GOOD, evaluation=OTHER, base="base_model", base_evaluation=SAME)
    assert str(judge(modes)).splitlines() == [
        "eval_deterministic: FAIL. Two passes over the same 4 rows in evaluation mode differ by 100 % of the spread between rows.",
        "  cause: something outside base_model is random in evaluation mode, such as F.dropout(x, p) without training=self.training",
        "  do: F.dropout(x, p, training=self.training), or an nn.Dropout module",
        "  limit: the same output, up to rounding",
        "  measured: random states advanced between the passes",
    ]
