"""dropout_active, on hand-written measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import Intent, check_dropout_active, example_trace
from pytest_ftcheck.checks.mode.record import DropoutSite, Modes
from pytest_ftcheck.core.effect import Effect

SAME = Effect(0.0, 0.01, 0.02)
OTHER = Effect(0.01, 0.01, 0.02)
OBSERVED = (0, 1, 2, 10, 11, 12, 17, 18, 19)


def site(name="base_model.layer.0.drop", rate=0.1, off_at=(), observed=9, part="base"):
    return DropoutSite(name, "Dropout", rate, part, observed, tuple(off_at))


HEAD = site("classifier.2", 0.2, part="head")
GOOD = Modes(4, OBSERVED, (), (site(), HEAD), training=OTHER, evaluation=SAME)


def judge(modes=GOOD, dropout=None, trace=None):
    return check_dropout_active(
        replace(trace or example_trace(), measurements={"modes": modes}, intent=Intent(dropout=dropout))
    )


def test_not_measured():
    trace = replace(example_trace(), skipped={"modes": "left out"})
    assert check_dropout_active(trace).headline == "Not measured: left out."


@pytest.mark.parametrize("dropout", [None, True, 0.1, 0.2])
def test_dropout_that_is_on(dropout):
    verdict = judge(dropout=dropout)
    assert verdict.status == "pass"
    assert "2 of 2 sites" in verdict.headline
    assert "0.100, 0.200" in verdict.headline


def test_no_dropout_is_healthy_unless_declared():
    none = replace(GOOD, sites=(), training=SAME)
    assert judge(none).status == "pass"
    assert judge(none, False).status == "pass"
    verdict = judge(none, True)
    assert (verdict.status, verdict.fault) == ("fail", "dropout_missing")
    assert judge(none, 0.1).fault == "dropout_missing"
    # dropout that is no module shows in the output
    assert judge(replace(none, training=OTHER), True).status == "pass"
    assert judge(replace(none, training=None), True).status == "pass"


def test_the_base_in_evaluation_mode():
    modes = replace(GOOD, sites=(site(off_at=OBSERVED), site("base_model.embeddings.dropout", off_at=OBSERVED), HEAD))
    verdict = judge(modes)
    assert (verdict.status, verdict.fault) == ("fail", "part_in_evaluation_mode")
    assert verdict.headline.startswith("base_model was in evaluation mode at all 9 observed steps: 2 of 3 dropouts")
    assert verdict.evidence[0]["off at"] == "9 of 9 steps"


def test_the_whole_model_in_evaluation_mode():
    modes = replace(GOOD, model_off_at=OBSERVED, sites=(site(off_at=OBSERVED), replace(HEAD, off_at=OBSERVED)))
    trace = example_trace()
    off = replace(trace, steps=tuple(replace(s, training=False) for s in trace.steps))
    verdict = judge(modes, trace=off)
    assert (verdict.status, verdict.fault) == ("fail", "model_in_evaluation_mode")
    assert verdict.headline.startswith("The model was in evaluation mode")
    assert judge(modes, False, off).status == "pass"


def test_a_watched_loop_tells_the_mode_of_the_whole_model_only():
    modes = replace(GOOD, observed=(), sites=(site(observed=0), replace(HEAD, observed=0)))
    assert judge(modes).status == "pass"
    trace = example_trace()
    off = replace(trace, steps=tuple(replace(s, training=False) for s in trace.steps))
    verdict = judge(modes, trace=off)
    assert (verdict.status, verdict.fault) == ("fail", "model_in_evaluation_mode")
    assert "at all 20 observed steps" in verdict.headline
    frozen = replace(modes, sites=tuple(replace(s, trained=False) for s in modes.sites))
    assert judge(frozen, trace=off).status == "pass"


def test_a_step_that_switches_modes_itself_is_healthy():
    """In evaluation mode before and after each step, in training mode during it."""
    modes = replace(GOOD, model_off_at=OBSERVED, sites=(site(off_at=OBSERVED), replace(HEAD, off_at=OBSERVED)))
    assert judge(modes).status == "pass"


def test_parts_that_are_not_trained_may_be_in_evaluation_mode():
    verdict = judge(replace(GOOD, sites=(site(observed=0), HEAD)))
    assert verdict.status == "pass"
    assert "1 dropout in parts that are not trained" in verdict.notes[0]


def test_dropout_without_effect_may_be_off():
    assert judge(replace(GOOD, training=SAME, sites=(site(off_at=OBSERVED),))).status == "pass"


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
def test_left_in_evaluation_mode(off, status):
    verdict = judge(replace(GOOD, sites=(site(off_at=off), HEAD)))
    assert verdict.status == status
    if status == "fail":
        assert verdict.fault == "left_in_evaluation_mode"
        assert verdict.headline.startswith(f"From iteration {off[0]} on, 1 of 2 dropouts were off")
    else:
        assert f"{len(off)} of 9" in verdict.notes[0]


@pytest.mark.parametrize(("rate", "fault"), [(0.89, ""), (0.9, "dropout_rate_extreme"), (1.0, "dropout_rate_extreme")])
def test_a_rate_that_drops_nearly_all(rate, fault):
    verdict = judge(replace(GOOD, sites=(site(), replace(HEAD, rate=rate))))
    assert verdict.fault == fault
    if fault:
        assert verdict.headline.startswith("classifier.2 drops ")
        assert "nn.Dropout(0.1)" in verdict.remedy
        assert judge(replace(GOOD, sites=(replace(HEAD, rate=0.95),)), 0.95).status == "pass"
    else:
        assert "more than half" in verdict.notes[0]


def test_declared_off_but_on():
    for nothing in (False, 0.0):
        verdict = judge(GOOD, nothing)
        assert (verdict.status, verdict.fault) == ("fail", "dropout_not_meant")
        assert verdict.headline.startswith("Declared: no dropout. 2 sites dropped 0.100, 0.200")


def test_another_rate_than_declared():
    verdict = judge(GOOD, 0.3)
    assert (verdict.status, verdict.fault) == ("fail", "dropout_rate_differs")
    assert verdict.headline == "Declared: dropout at 0.3. The model's rates are 0.100, 0.200."


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ((7, 7, 7), (8, 8, 9), "seeded_every_step"),
        ((7, 8, 9), (1, 1, 1), "seeded_every_step"),  # in the model itself
        ((7, 7), (8, 8), ""),
        ((7, 7, 8), (8, 8, 9), ""),
    ],
)
def test_a_seed_reset_at_every_step(before, after, fault):
    assert judge(replace(GOOD, random_states_before=before, random_states_after=after)).fault == fault


def test_the_same_values_dropped_twice():
    verdict = judge(replace(GOOD, same_values_dropped=True))
    assert (verdict.status, verdict.fault) == ("fail", "seeded_every_step")


def test_wording():
    modes = replace(GOOD, sites=(site(off_at=OBSERVED), site("base_model.embeddings.dropout", off_at=OBSERVED), HEAD))
    assert str(judge(modes)).splitlines() == [
        "dropout_active: FAIL. base_model was in evaluation mode at all 9 observed steps: 2 of 3 dropouts were off while the "
        "parameters around them trained.",
        "  module                          rate  kind     off at",
        "  base_model.layer.0.drop        0.100  Dropout  9 of 9 steps",
        "  base_model.embeddings.dropout  0.100  Dropout  9 of 9 steps",
        "  cause: train() was not called on a part of the model: from_pretrained returns it in evaluation mode",
        "  do: call model.train() right before the loop and after every evaluation, or declare Intent(dropout=False)",
        "  limit: dropout with a rate above 0 is on while a parameter around it is trained",
        "  measured: modes right before and after 9 steps",
    ]


def test_dropout_on_the_logits_is_advice():
    verdict = judge(replace(GOOD, dropped_logits="classifier.2"))
    assert (verdict.status, verdict.fault) == ("advice", "dropout_on_logits")
    assert verdict.headline == "The logits are the output of classifier.2, which sets 20 % of them to zero in training."
    always_off = replace(HEAD, off_at=OBSERVED)
    assert judge(replace(GOOD, sites=(site(), always_off), dropped_logits="classifier.2")).fault != "dropout_on_logits"


@pytest.mark.parametrize("field", ["dropped_logits_rate", "zeroed_logits"])
def test_functional_dropout_on_the_logits_is_advice_unless_the_model_was_in_evaluation_mode(field):
    dropped = replace(GOOD, sites=(), **{field: 0.2})
    assert (judge(dropped).status, judge(dropped).fault) == ("advice", "dropout_on_logits")
    off = replace(example_trace(), steps=tuple(replace(s, training=False) for s in example_trace().steps))
    assert judge(replace(dropped, model_off_at=OBSERVED), trace=off).fault == ""
