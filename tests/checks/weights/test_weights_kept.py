"""weights_kept: the optimizer's updates are still in the weights at the end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_weights_kept, example_trace

GOOD = example_trace()


def written(part="all", trace=GOOD, **motion):
    """The example where something wrote to the weights of a part between steps."""
    tensors = tuple(
        replace(t, motion=replace(t.motion, **motion)) if part in ("all", t.part) else t for t in trace.tensors
    )
    return replace(trace, tensors=tensors)


EMA = {"between_steps": 0.1, "between_steps_writes": 19, "between_steps_largest": 4e-5, "resets": 19, "retained": 0.01}


def test_nothing_else_writes():
    verdict = check_weights_kept(GOOD)
    assert verdict.status == "pass"
    assert verdict.notes == ()


def test_an_average_copied_in_after_every_step():
    verdict = check_weights_kept(written(**EMA))
    assert (verdict.status, verdict.fault) == ("fail", "weights_overwritten")
    assert "1.0 %" in verdict.headline
    assert "EMA" in verdict.causes[0]


def test_wording():
    assert str(check_weights_kept(written(**EMA))).splitlines() == [
        "weights_kept: FAIL. 4 of 4 tensors are overwritten between optimizer steps, after nearly every "
        "step: 1.0 % of AdamW's updates are kept (median).",
        "  tensor                          kept  writes  resets  largest write (rms)  largest step (rms)",
        "  classifier.weight              1.0 %      19      19             4.00e-05            4.00e-05",
        "  classifier.bias                1.0 %      19      19             4.00e-05            4.00e-05",
        "  base_model.layer.0.lin.weight  1.0 %      19      19             4.00e-05            4.00e-05",
        "  base_model.layer.0.lin.bias    1.0 %      19      19             4.00e-05            4.00e-05",
        "  cause: averaged weights (EMA) are copied into the model, a state_dict is loaded again, or values "
        "saved before AdamW.step() are written back",
        "  do: look for copy_, load_state_dict and .data = inside the loop; keep an average in a copy of the model",
        "  limit: at least 25 % of the optimizer's updates are kept, and they are undone at most once",
        "  measured: elementwise, at each step: the values when it begins against those when the last one ended",
    ]


def test_a_head_that_is_reset_at_each_epoch():
    verdict = check_weights_kept(
        written("head", between_steps=0.03, between_steps_writes=2, between_steps_largest=0.03, resets=2, retained=0.6)
    )
    assert (verdict.status, verdict.fault) == ("fail", "weights_reset")
    assert verdict.headline.startswith("2 head tensors (classifier.weight first)")
    assert "2 times in 20 steps" in verdict.headline
    assert verdict.evidence[0]["resets"] == 2


@pytest.mark.parametrize(
    "motion",
    [
        {
            "between_steps_writes": 4,
            "between_steps": 1e-3,
            "between_steps_largest": 1e-3,
            "retained": 0.5,
            "resets": 0,
        },  # Lookahead
        {
            "between_steps_writes": 19,
            "between_steps": 1e-4,
            "between_steps_largest": 1e-5,
            "retained": 0.99,
            "resets": 0,
        },  # noise
        {
            "between_steps_writes": 1,
            "between_steps": 0.03,
            "between_steps_largest": 0.03,
            "retained": 0.1,
            "resets": 1,
        },  # a checkpoint restored, once
        {**EMA, "share_changed": 0.3},  # only some of the elements are put back: a mask
    ],
)
def test_legitimate_writes(motion):
    verdict = check_weights_kept(written(**motion))
    assert verdict.status == "pass"
    assert "4 tensors also changed between steps" in verdict.headline


def test_the_edge_of_what_must_be_kept():
    motion = {"between_steps_writes": 3, "between_steps": 0.1, "between_steps_largest": 0.1, "resets": 0}
    assert check_weights_kept(written(**motion, retained=0.26)).status == "pass"
    assert check_weights_kept(written(**motion, retained=0.24)).status == "fail"
    assert check_weights_kept(written(**motion, retained=None)).status == "pass"


def test_a_write_after_the_last_step_is_only_noted():
    verdict = check_weights_kept(written(between_steps=0.1))
    assert verdict.status == "pass"
    assert "changed after the last step" in verdict.notes[0]


def test_vectors_and_tables_have_constraints_of_their_own():
    clamped = replace(GOOD.tensors[3], motion=replace(GOOD.tensors[3].motion, **EMA))  # a temperature that is clamped
    assert check_weights_kept(replace(GOOD, tensors=(*GOOD.tensors[:3], clamped))).status == "pass"
    table = replace(
        GOOD.tensors[0], role="embedding", motion=replace(GOOD.tensors[0].motion, **EMA)
    )  # old rows put back
    assert check_weights_kept(replace(GOOD, tensors=(table, *GOOD.tensors[1:]))).status == "pass"


def test_frozen_tensors_are_another_checks_business():
    trace = written(**EMA)
    frozen = replace(trace, tensors=tuple(replace(t, trainable=False, trainable_last=False) for t in trace.tensors))
    assert check_weights_kept(frozen).status == "pass"


def test_no_step():
    assert check_weights_kept(replace(GOOD, steps=())).status == "skipped"


# ------------------------------------------------------------------ constraints
CLAMPED = {"between_steps": 0.1, "between_steps_writes": 19, "between_steps_largest": 4e-5, "projections": 19}


def not_learning(trace, steps):
    """The same run with so many steps, and a loss that stays where it was."""
    points = tuple(replace(p, loss=0.7, reference=0.7) for p in trace.probe_loss.points)
    still = replace(trace.probe_loss, points=points)
    return replace(trace, steps=trace.steps[:1] * steps, probe_loss=still, metrics=())


def test_a_constraint_that_leaves_room():
    verdict = check_weights_kept(written(**CLAMPED, retained=0.4))
    assert verdict.status == "pass"
    assert "40 % of the updates are kept" in verdict.headline


def test_a_constraint_that_takes_back_most_is_advice_where_the_run_learns():
    verdict = check_weights_kept(written(**CLAMPED, retained=0.1))
    assert (verdict.status, verdict.fault) == ("advice", "constraint_too_tight")
    assert "4 of 4 tensors are clamped or scaled to a constraint between optimizer steps: 10 %" in verdict.headline
    assert check_weights_kept(written(**CLAMPED, retained=None)).status == "pass"
    assert check_weights_kept(written(**{**CLAMPED, "projections": 1}, retained=0.1)).fault == "weights_overwritten"


@pytest.mark.parametrize(("steps", "status"), [(59, "inconclusive"), (60, "fail")])
def test_a_constraint_under_which_the_run_does_not_learn(steps, status):
    verdict = check_weights_kept(not_learning(written(**CLAMPED, retained=0.1), steps))
    assert (verdict.status, verdict.fault) == (status, "constraint_too_tight")


ROUNDED = {**CLAMPED, "roundings": 19}


def test_rounding_that_loses_updates_is_advice_where_the_run_learns():
    verdict = check_weights_kept(written(**ROUNDED, retained=0.05))
    assert (verdict.status, verdict.fault) == ("advice", "weights_rounded")
    assert "4 of 4 tensors are rounded between optimizer steps: 5.0 % of AdamW's updates are kept" in verdict.headline
    assert check_weights_kept(written(**ROUNDED, retained=0.9)).status == "pass"
    assert check_weights_kept(written(**{**ROUNDED, "roundings": 18}, retained=0.05)).fault == "constraint_too_tight"


@pytest.mark.parametrize(
    ("steps", "kept", "status"), [(20, 0.2, "inconclusive"), (20, 0.05, "fail"), (60, 0.2, "fail")]
)
def test_rounding_under_which_the_run_does_not_learn(steps, kept, status):
    verdict = check_weights_kept(not_learning(written(**ROUNDED, retained=kept), steps))
    assert (verdict.status, verdict.fault) == (status, "weights_rounded")


def test_rounding_in_a_warm_up():
    trace = not_learning(written(**ROUNDED, retained=0.05), 20)
    rates = trace.steps[0].lrs
    steps = tuple(replace(s, lrs=tuple(lr * (i + 1) / 20 for lr in rates)) for i, s in enumerate(trace.steps))
    tensors = tuple(replace(t, lr_peak=steps[-1].lrs[t.group]) for t in trace.tensors)
    assert check_weights_kept(replace(trace, steps=steps, tensors=tensors)).status == "inconclusive"


def test_a_constraint_that_leaves_nothing_of_the_initial_values():
    trace = not_learning(written(**{**CLAMPED, "between_steps_largest": 1.0}, retained=0.9), 40)
    crushed = replace(
        trace,
        tensors=tuple(
            replace(t, first=replace(t.first, rms=1.0), last=replace(t.last, rms=0.005)) for t in trace.tensors
        ),
    )
    verdict = check_weights_kept(crushed)
    assert (verdict.status, verdict.fault) == ("fail", "constraint_too_tight")
    assert "less than 1.0 % of the initial values is left" in verdict.headline
    assert check_weights_kept(trace).status == "pass"
