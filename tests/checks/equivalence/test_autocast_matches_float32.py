"""autocast_matches_float32: an error of factor 3 never passes, rounding never fails, and the place is named."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import CheckFailed, assert_autocast_matches_float32, check_autocast_matches_float32, example_trace
from pytest_ftcheck.checks.equivalence.autocast_matches_float32 import CAP, ROUNDINGS, UNITS, limit_of
from pytest_ftcheck.checks.equivalence.record import Autocast, Errors, LocalError
from pytest_ftcheck.core.trace import Trace

UNIT = 2.0**-8
FOUND = Autocast(
    dtype="bfloat16", unit=UNIT, rows=16, loss32=0.6, loss=0.601, gradient32=1.0,
    errors=Errors(0.005, 0.001, 0.02, 0.01), rounding=Errors(0.004, 0.001, 0.01, 0.01),
)  # fmt: skip


def verdict(errors=None, rounding=None, **changes):
    if errors:
        changes["errors"] = replace(FOUND.errors, **errors)
    if rounding:
        changes["rounding"] = replace(FOUND.rounding, **rounding)
    return check_autocast_matches_float32(example_trace(measurements={"autocast": replace(FOUND, **changes)}))


def test_rounding_passes():
    v = verdict()
    assert v.status == "pass"
    assert v.headline == (
        "Autocast to bfloat16 differs from float32 by rounding: outputs 0.50 %, loss 0.10 %, gradient of the loss 2.0 %, gradient of the "
        "outputs 1.0 %."
    )
    assert len(v.evidence) == 4


@pytest.mark.parametrize("what", ["outputs", "loss", "gradient", "outputs_gradient"])
def test_both_sides_of_the_limit(what):
    limit = UNITS * UNIT
    assert limit_of(0.001, UNIT) == limit
    assert verdict({what: limit * 0.99}, {what: 0.001}).status == "pass"
    assert verdict({what: limit * 1.01}, {what: 0.001}).status == "fail"
    assert verdict({what: ROUNDINGS * 0.03 * 0.99}, {what: 0.03}).status == "pass"
    assert verdict({what: ROUNDINGS * 0.03 * 1.01}, {what: 0.03}).status == "fail"


@pytest.mark.parametrize("what", ["outputs", "loss", "gradient", "outputs_gradient"])
@pytest.mark.parametrize("error", [2.0, 2 / 3])
@pytest.mark.parametrize("rounding", [0.0, 0.01, CAP / ROUNDINGS * 0.99])
def test_an_error_of_factor_3_never_passes(what, error, rounding):
    assert verdict({what: error}, {what: rounding}).status == "fail"


def test_what_cannot_be_told_from_rounding_is_not_judged():
    beyond = CAP / ROUNDINGS * 1.01
    v = verdict({"gradient": 2.0}, {"gradient": beyond})
    assert v.status == "pass"
    assert "gradient of the loss" not in v.headline
    assert v.notes == (
        f"the gradient of the loss was not compared: at these weights it is rounding ({100 * beyond:.2g} %)",
    )
    assert verdict({"outputs": 2.0}, {"outputs": beyond}).status == "inconclusive"
    v = verdict({"gradient": 2.0, "outputs_gradient": 2.0}, {"gradient": beyond, "outputs_gradient": beyond})
    assert v.status == "inconclusive"
    assert verdict({"gradient": 0.1, "outputs_gradient": None}, {"gradient": beyond}).status == "inconclusive"


def test_the_module_is_named():
    v = verdict({"outputs": 1.7}, located=LocalError("encoder.rope", "Rotary", 2.0))
    assert (v.status, v.fault) == ("fail", "autocast_inaccurate")
    assert v.headline == (
        "Under autocast to bfloat16 the outputs differ by 170 % from float32; encoder.rope (Rotary) alone by 200 %."
    )
    assert v.causes[0].startswith("encoder.rope (Rotary) loses its digits in bfloat16")
    assert "the model itself (Net)" in verdict({"outputs": 1.7}, located=LocalError("", "Net", 2.0)).headline
    assert "outside the modules" in verdict({"outputs": 1.7}).causes[0]


def test_a_loss_in_low_precision():
    v = verdict({"loss": 0.4})
    assert v.fault == "autocast_inaccurate"
    assert "the loss differs by 40 %" in v.headline
    assert v.causes[0].startswith("the loss loses its digits")


def test_a_wrong_backward_pass():
    v = verdict({"outputs_gradient": 2.0}, tensor="encoder.lin.weight", tensor_error=2.0)
    assert (v.status, v.fault) == ("fail", "autocast_gradient_inaccurate")
    assert "gradient of the outputs differs by 200 % of its length" in v.headline
    assert "encoder.lin.weight" in v.causes[0]


def test_what_is_not_finite_and_what_raises():
    v = verdict(
        {"outputs": math.nan, "loss": math.nan}, loss=math.nan, not_finite="head.power", not_finite_class="Square"
    )
    assert (v.status, v.fault) == ("fail", "autocast_not_finite")
    assert "(NaN; in float32 0.600); first in head.power (Square)" in v.headline
    assert verdict({"gradient": math.nan}).fault == "autocast_not_finite"
    v = verdict(raised="RuntimeError: expected float", raised_in="head.scatter", loss=None)
    v = check_autocast_matches_float32(
        example_trace(
            measurements={"autocast": replace(FOUND, errors=None, raised="RuntimeError: no.", raised_in="head")}
        )
    )
    assert (v.status, v.fault) == ("fail", "autocast_raises")
    assert v.headline == "Under autocast to bfloat16, head raises: RuntimeError: no."


def test_nothing_to_compare_with():
    assert verdict(loss32=math.nan).status == "inconclusive"
    assert verdict(gradient32=math.inf).status == "inconclusive"


def test_not_asked_for_and_json():
    assert "probes=['autocast']" in check_autocast_matches_float32(example_trace()).headline
    trace = example_trace(measurements={"autocast": replace(FOUND, located=LocalError("a", "B", math.inf))})
    assert Trace.from_json(trace.to_json()) == trace
    wrong = replace(FOUND, errors=replace(FOUND.errors, outputs=2.0))
    with pytest.raises(CheckFailed, match="autocast_matches_float32: FAIL"):
        assert_autocast_matches_float32(example_trace(measurements={"autocast": wrong}))
