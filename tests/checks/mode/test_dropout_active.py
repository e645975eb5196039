"""dropout_active and eval_deterministic: what is on when, and at which rate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import Intent, check_dropout_active, check_eval_deterministic, example_trace
from pytest_ftcheck.checks.mode.record import DropoutSite, Modes, Statistics
from pytest_ftcheck.core.effect import Effect

SAME = Effect(0.0, 0.01, 0.02)
OTHER = Effect(0.01, 0.01, 0.02)
LOOKED = (0, 1, 2, 10, 11, 12, 17, 18, 19)


def site(name="base_model.layer.0.drop", rate=0.1, off=(), looks=9, part="base"):
    return DropoutSite(name, "Dropout", rate, part, looks, tuple(off))


HEAD = site("classifier.2", 0.2, part="head")
GOOD = Modes(4, LOOKED, (), (site(), HEAD), training=OTHER, evaluation=SAME)


def judged(modes=GOOD, dropout=None, trace=None):
    return check_dropout_active(
        replace(trace or example_trace(), measurements={"modes": modes}, intent=Intent(dropout=dropout))
    )


def settled(modes):
    return check_eval_deterministic(replace(example_trace(), measurements={"modes": modes}))


def test_not_measured():
    trace = replace(example_trace(), skipped={"modes": "left out"})
    assert check_dropout_active(trace).headline == "Not measured: left out."
    assert check_eval_deterministic(trace).status == "skipped"
    verdict = settled(replace(GOOD, evaluation=None, unmeasured={"evaluation": "RuntimeError: no"}))
    assert (verdict.status, verdict.headline) == ("skipped", "Not measured: RuntimeError: no.")


@pytest.mark.parametrize("dropout", [None, True, 0.1, 0.2])
def test_dropout_that_is_on(dropout):
    verdict = judged(dropout=dropout)
    assert verdict.status == "pass"
    assert verdict.headline == "Dropout was on in 2 of 2 places, at rates 0.100, 0.200."


def test_no_dropout_is_healthy_unless_declared():
    none = replace(GOOD, sites=(), training=SAME)
    assert judged(none).status == "pass"
    assert judged(none, False).status == "pass"
    verdict = judged(none, True)
    assert (verdict.status, verdict.fault) == ("fail", "dropout_missing")
    assert judged(none, 0.1).fault == "dropout_missing"
    # dropout that is no module shows in the output
    assert judged(replace(none, training=OTHER), True).status == "pass"
    assert judged(replace(none, training=None), True).status == "pass"


def test_the_base_asleep():
    modes = replace(GOOD, sites=(site(off=LOOKED), site("base_model.embeddings.dropout", off=LOOKED), HEAD))
    verdict = judged(modes)
    assert (verdict.status, verdict.fault) == ("fail", "part_in_evaluation_mode")
    assert verdict.headline.startswith("base_model was in evaluation mode at all 9 steps looked at: 2 of 3 dropouts")
    assert verdict.evidence[0]["off at"] == "9 of 9 looks"


def test_everything_asleep():
    modes = replace(GOOD, root_off=LOOKED, sites=(site(off=LOOKED), replace(HEAD, off=LOOKED)))
    trace = example_trace()
    asleep = replace(trace, steps=tuple(replace(s, training=False) for s in trace.steps))
    verdict = judged(modes, trace=asleep)
    assert (verdict.status, verdict.fault) == ("fail", "model_in_evaluation_mode")
    assert verdict.headline.startswith("The model was in evaluation mode")
    assert judged(modes, False, asleep).status == "pass"


def test_a_watched_loop_tells_the_mode_of_the_whole_model_only():
    modes = replace(GOOD, looked=(), sites=(site(looks=0), replace(HEAD, looks=0)))
    assert judged(modes).status == "pass"
    trace = example_trace()
    asleep = replace(trace, steps=tuple(replace(s, training=False) for s in trace.steps))
    verdict = judged(modes, trace=asleep)
    assert (verdict.status, verdict.fault) == ("fail", "model_in_evaluation_mode")
    assert "at all 20 steps" in verdict.headline
    frozen = replace(modes, sites=tuple(replace(s, trained=False) for s in modes.sites))
    assert judged(frozen, trace=asleep).status == "pass"


def test_a_step_that_wakes_the_model_itself_is_healthy():
    """In evaluation mode before and after each step, in training mode during it."""
    modes = replace(GOOD, root_off=LOOKED, sites=(site(off=LOOKED), replace(HEAD, off=LOOKED)))
    assert judged(modes).status == "pass"


def test_parts_that_are_not_trained_may_sleep():
    verdict = judged(replace(GOOD, sites=(site(looks=0), HEAD)))
    assert verdict.status == "pass"
    assert "1 dropout in parts that are not trained" in verdict.notes[0]


def test_dropout_without_effect_is_no_fault_when_it_sleeps():
    assert judged(replace(GOOD, training=SAME, sites=(site(off=LOOKED),))).status == "pass"


@pytest.mark.parametrize(
    ("off", "status"),
    [
        ((12, 17, 18, 19), "fail"),
        ((17, 18, 19), "fail"),
        ((18, 19), "pass"),
        ((10, 11, 12), "pass"),
        ((2, 17, 18, 19), "pass"),
    ],
)
def test_left_in_evaluation_mode_on_the_way(off, status):
    verdict = judged(replace(GOOD, sites=(site(off=off), HEAD)))
    assert verdict.status == status
    if status == "fail":
        assert verdict.fault == "left_in_evaluation_mode"
        assert verdict.headline.startswith(f"From iteration {off[0]} on, 1 of 2 dropouts were off")
    else:
        assert f"{len(off)} of 9" in verdict.notes[0]


@pytest.mark.parametrize(("rate", "fault"), [(0.89, ""), (0.9, "dropout_rate_extreme"), (1.0, "dropout_rate_extreme")])
def test_a_rate_that_drops_nearly_all(rate, fault):
    verdict = judged(replace(GOOD, sites=(site(), replace(HEAD, rate=rate))))
    assert verdict.fault == fault
    if fault:
        assert verdict.headline.startswith("classifier.2 drops ")
        assert "nn.Dropout(0.1)" in verdict.remedy
        assert judged(replace(GOOD, sites=(replace(HEAD, rate=0.95),)), 0.95).status == "pass"
    else:
        assert "more than half" in verdict.notes[0]


def test_declared_off_but_on():
    for nothing in (False, 0.0):
        verdict = judged(GOOD, nothing)
        assert (verdict.status, verdict.fault) == ("fail", "dropout_not_meant")
        assert verdict.headline.startswith("You meant no dropout; 2 places dropped 0.100, 0.200")


def test_another_rate_than_declared():
    verdict = judged(GOOD, 0.3)
    assert (verdict.status, verdict.fault) == ("fail", "dropout_rate_differs")
    assert verdict.headline == "You meant dropout at 0.3; the rates in the model are 0.100, 0.200."


def test_evaluation_is_deterministic():
    verdict = settled(GOOD)
    assert verdict.status == "pass"
    assert verdict.headline.startswith("Two passes over the same 4 rows in evaluation mode differ by 0 %")
    assert settled(replace(GOOD, evaluation=Effect(1e-9, 0.01, 0.02))).status == "pass"


def test_random_in_evaluation():
    verdict = settled(replace(GOOD, evaluation=OTHER))
    assert (verdict.status, verdict.fault) == ("fail", "random_in_evaluation")
    assert "in the model" in verdict.causes[0]
    assert "training=self.training" in verdict.remedy
    behind = settled(replace(GOOD, evaluation=OTHER, base="base_model", base_evaluation=SAME, base_library=True))
    assert behind.status == "fail"
    assert "behind base_model" in behind.causes[0]
    inside = settled(replace(GOOD, evaluation=OTHER, base="base_model", base_evaluation=OTHER))
    assert "inside base_model" in inside.causes[0]


def test_a_library_model_that_is_random_by_design():
    verdict = settled(replace(GOOD, evaluation=OTHER, base="reformer", base_evaluation=OTHER, base_library=True))
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
    verdict = settled(replace(GOOD, passes=passes, passes_training=training, passes_random=random))
    assert verdict.fault == fault
    if fault:
        assert "4 forward passes" in verdict.headline
        assert ("a part of the model" in verdict.headline) == (training == 0)


def test_an_evaluation_in_training_mode_harms_no_model_without_randomness():
    assert settled(replace(GOOD, training=SAME, passes=4, passes_training=4, passes_random=4)).status == "pass"


def test_an_evaluation_that_leaves_its_mode_behind_is_a_remark():
    verdict = settled(replace(GOOD, passes=4, leaves_evaluation_mode=True))
    assert verdict.status == "pass"
    assert "model.train()" in verdict.notes[0]


@pytest.mark.parametrize(
    ("states", "ends", "fault"),
    [
        ((7, 7, 7), (8, 8, 9), "seeded_every_step"),
        ((7, 8, 9), (1, 1, 1), "seeded_every_step"),  # in the model itself
        ((7, 7), (8, 8), ""),
        ((7, 7, 8), (8, 8, 9), ""),
    ],
)
def test_a_seed_set_anew_at_every_step(states, ends, fault):
    assert judged(replace(GOOD, random_states=states, random_ends=ends)).fault == fault


@pytest.mark.parametrize(
    ("changes", "fault", "words"),
    [
        ({"leaves_gradients_off": True}, "gradients_switched_off", "leaves gradients switched off"),
        ({"changes": ("a.weight", "b")}, "evaluation_changes_model", "the values of 2 parameters (a.weight first)"),
        ({"freezes": ("a",)}, "evaluation_changes_model", "requires_grad of 1 parameter (a first)"),
        (
            {"statistics": (Statistics("n", 0.0, False, 9),)},
            "statistics_never_updated",
            "statistics of n did not change",
        ),
        ({"statistics": (Statistics("n", 0.1, True, 9),)}, "", "Two passes"),
        ({"statistics": (Statistics("n", 0.0, False, 2),)}, "", "Two passes"),
    ],
)
def test_what_an_evaluation_leaves_behind(changes, fault, words):
    verdict = settled(replace(GOOD, passes=3, **changes))
    assert verdict.fault == fault
    assert words in verdict.headline


def test_the_same_values_dropped_twice():
    verdict = judged(replace(GOOD, same_dropped=True))
    assert (verdict.status, verdict.fault) == ("fail", "seeded_every_step")
