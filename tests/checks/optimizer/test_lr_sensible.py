"""lr_sensible: what the largest step did to the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_lr_sensible, example_trace

GOOD = example_trace()


def paced(update, *, moved=1.0, rms=0.1, part="base", dtype="float32", lr=0.1, family="adam"):
    """The example whose matrices of a part (rms 0.02 before) have this largest step."""
    tensors = tuple(
        replace(t, motion=replace(t.motion, max_update=update, rms=rms, share_changed=moved), dtype=dtype, lr_peak=lr)
        if t.part == part
        else t
        for t in GOOD.tensors
    )
    return replace(GOOD, tensors=tensors, optimizer=replace(GOOD.optimizer, family=family))


def test_a_usual_pace():
    verdict = check_lr_sensible(GOOD)
    assert verdict.status == "pass"
    assert "by 0.20 % of its size" in verdict.headline


@pytest.mark.parametrize(("update", "status"), [(0.0199, "pass"), (0.0201, "fail"), (0.1, "fail")])
def test_a_step_of_the_size_of_the_weights(update, status):
    assert check_lr_sensible(paced(update)).status == status


def test_the_message():
    verdict = check_lr_sensible(paced(0.1))
    assert verdict.fault == "lr_too_large"
    assert verdict.headline.startswith("At LR 0.100 a single step changes a base matrix by 5.00 times its own size")
    assert "weights of rms 0.0200 with AdamW" in verdict.causes[0]


def test_one_odd_step_that_was_taken_back_is_no_fault():
    assert check_lr_sensible(paced(0.1, rms=0.01)).status == "pass"


def test_a_head_is_new_and_may_be_replaced():
    assert check_lr_sensible(paced(0.1, part="head")).status == "pass"


def test_a_large_number_alone_is_no_fault():
    assert check_lr_sensible(paced(1e-4, lr=0.5, family="sgd")).status == "pass"


def test_a_step_of_lbfgs_is_many():
    trace = paced(0.1)
    assert check_lr_sensible(replace(trace, optimizer=replace(trace.optimizer, name="LBFGS"))).status == "skipped"


def test_no_base_matrix_was_moved():
    assert check_lr_sensible(paced(0.0)).status == "skipped"


@pytest.mark.parametrize(
    ("dtype", "lr", "moved", "status"),
    [
        ("bfloat16", 1e-6, 0.02, "fail"),
        ("bfloat16", 1e-6, 0.9, "pass"),  # stochastic rounding, or a master copy
        ("bfloat16", 1e-3, 0.02, "pass"),  # whatever it is, not the spacing of 1.2e-4
        ("float16", 1e-6, 0.02, "fail"),
        ("float32", 1e-6, 0.02, "pass"),
    ],
)
def test_rates_below_the_spacing_of_the_dtype(dtype, lr, moved, status):
    verdict = check_lr_sensible(paced(lr, moved=moved, dtype=dtype, lr=lr))
    assert verdict.status == status
    assert verdict.fault == ("lr_below_spacing" if status == "fail" else "")
