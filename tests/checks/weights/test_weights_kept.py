"""weights_kept: what the optimizer did is still there at the end."""

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


EMA = {"outside": 0.1, "outside_steps": 19, "outside_largest": 4e-5, "resets": 19, "kept": 0.01}


def test_nothing_else_writes():
    verdict = check_weights_kept(GOOD)
    assert verdict.status == "pass"
    assert verdict.notes == ()


def test_an_average_copied_in_after_every_step():
    verdict = check_weights_kept(written(**EMA))
    assert (verdict.status, verdict.fault) == ("fail", "weights_overwritten")
    assert (
        verdict.headline
        == "4 of 4 tensors are overwritten between optimizer steps, after nearly every step: 1.0 % of AdamW's work is kept (median)."
    )
    assert "running average (EMA)" in verdict.causes[0]


def test_a_head_that_starts_anew_at_each_epoch():
    verdict = check_weights_kept(
        written("head", outside=0.03, outside_steps=2, outside_largest=0.03, resets=2, kept=0.6)
    )
    assert (verdict.status, verdict.fault) == ("fail", "weights_reset")
    assert verdict.headline.startswith(
        "2 head tensors (classifier.weight first) are overwritten between optimizer steps, 2 times in 20 steps"
    )
    assert verdict.evidence[0]["taken back"] == 2


@pytest.mark.parametrize(
    "motion",
    [
        {"outside_steps": 4, "outside": 1e-3, "outside_largest": 1e-3, "kept": 0.5, "resets": 0},  # Lookahead
        {"outside_steps": 19, "outside": 1e-4, "outside_largest": 1e-5, "kept": 0.99, "resets": 0},  # noise
        {
            "outside_steps": 1,
            "outside": 0.03,
            "outside_largest": 0.03,
            "kept": 0.1,
            "resets": 1,
        },  # a checkpoint restored, once
        {**EMA, "moved": 0.3},  # only some of the elements are put back: a mask
    ],
)
def test_legitimate_writes(motion):
    verdict = check_weights_kept(written(**motion))
    assert verdict.status == "pass"
    assert "4 tensors also changed between steps" in verdict.headline


def test_the_edge_of_what_must_be_kept():
    motion = {"outside_steps": 3, "outside": 0.1, "outside_largest": 0.1, "resets": 0}
    assert check_weights_kept(written(**motion, kept=0.26)).status == "pass"
    assert check_weights_kept(written(**motion, kept=0.24)).status == "fail"
    assert check_weights_kept(written(**motion, kept=None)).status == "pass"


def test_a_write_after_the_last_step_is_only_mentioned():
    verdict = check_weights_kept(written(outside=0.1))
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
