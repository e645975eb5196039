"""lr_sensible: what the largest step did to the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import check_lr_sensible, example_trace

GOOD = example_trace()


def with_step(update, *, moved=1.0, rms=0.1, part="base", dtype="float32", lr=0.1, family="adam"):
    """The example whose matrices of a part (rms 0.02 before) have this largest step."""
    tensors = tuple(
        replace(t, motion=replace(t.motion, max_update=update, rms=rms, share_changed=moved), dtype=dtype, lr_peak=lr)
        if t.part == part
        else t
        for t in GOOD.tensors
    )
    return replace(GOOD, tensors=tensors, optimizer=replace(GOOD.optimizer, family=family))


def test_a_usual_step():
    verdict = check_lr_sensible(GOOD)
    assert verdict.status == "pass"
    assert "by 0.20 % of its size" in verdict.headline


@pytest.mark.parametrize(("update", "status"), [(0.0199, "pass"), (0.0201, "fail"), (0.1, "fail")])
def test_a_step_of_the_size_of_the_weights(update, status):
    assert check_lr_sensible(with_step(update)).status == status


def test_wording():
    assert check_lr_sensible(with_step(0.1)).fault == "lr_too_large"
    assert str(check_lr_sensible(with_step(0.1))).splitlines() == [
        "lr_sensible: FAIL. At LR 0.100 a single step changes a base matrix by 5.00 times its own size "
        "(median of 1 matrix; base_model.layer.0.lin.weight: 5.00).",
        "  tensor                         step/weights  largest step (rms)  weights before (rms)   after",
        "  base_model.layer.0.lin.weight          5.00               0.100                0.0200  0.0201",
        "  cause: the learning rate (0.100) is too large for weights of rms 0.0200 with AdamW: the first "
        "steps erase the pretrained weights",
        "  do: lower the learning rate by a factor of 100 or more (1e-5 to 1e-3 is usual for Adam), with a warm-up",
        "  limit: at most 1: above that one step replaces a pretrained matrix",
        "  measured: rms of the largest update of a single step (by gradients), over the rms of the weights before the run",
    ]


def test_a_single_large_step_that_was_reversed_is_no_fault():
    assert check_lr_sensible(with_step(0.1, rms=0.01)).status == "pass"


def test_a_head_is_new_and_may_be_replaced():
    assert check_lr_sensible(with_step(0.1, part="head")).status == "pass"


def test_a_large_rate_alone_is_no_fault():
    assert check_lr_sensible(with_step(1e-4, lr=0.5, family="sgd")).status == "pass"


def test_a_step_of_lbfgs_is_many():
    trace = with_step(0.1)
    assert check_lr_sensible(replace(trace, optimizer=replace(trace.optimizer, name="LBFGS"))).status == "skipped"


def test_no_base_matrix_was_moved():
    assert check_lr_sensible(with_step(0.0)).status == "skipped"


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
    verdict = check_lr_sensible(with_step(lr, moved=moved, dtype=dtype, lr=lr))
    assert verdict.status == status
    assert verdict.fault == ("lr_below_spacing" if status == "fail" else "")


def test_of_two_matrices_the_one_that_moved_less_decides():
    step = with_step(0.1)
    matrix = next(t for t in step.tensors if t.part == "base" and t.role == "matrix")
    calm = replace(matrix, name="base_model.other.weight", motion=replace(matrix.motion, max_update=1e-4))
    assert check_lr_sensible(replace(step, tensors=(*step.tensors, calm))).status == "pass"
    assert check_lr_sensible(replace(step, tensors=(*step.tensors, replace(matrix, name="x")))).fault == "lr_too_large"
