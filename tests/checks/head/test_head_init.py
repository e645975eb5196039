"""head_init: what was declared is held against what was drawn; undeclared, only what no author means is a failure."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import Intent, assert_head_init, check_head_init, example_trace
from pytest_ftcheck.checks.head.head_init import FACTOR, GAIN, LOSS, SIGMAS, SPREAD, _standard_errors
from pytest_ftcheck.checks.head.record import Head, Layer
from pytest_ftcheck.core.verdict import CheckFailed

HIDDEN = Layer("classifier.0", 64, 64, 1e-4, 0.02, 0.08, 3.0, 0, False, 0.0, 0.0, False, True)
LAST = replace(HIDDEN, name="classifier.3", units=2, last=True)


def verdict(*layers, declared=None, **head):
    intent = Intent(head_init=declared) if declared is not None else None
    return check_head_init(
        replace(
            example_trace(),
            intent=intent,
            measurements={"head_state": Head(rows=32, layers=layers or (HIDDEN, LAST), **head)},
        )
    )


def test_as_declared():
    v = verdict(declared=0.02)
    assert v.status == "pass"
    assert "0.0200 (classifier.0)" in v.headline
    assert "as declared (N(0, 0.02))" in v.headline


def test_nothing_declared_is_nothing_judged():
    v = verdict(replace(HIDDEN, std=0.5, largest=2.0), LAST)
    assert v.status == "pass"
    assert "no initialisation was declared" in v.headline


def test_not_measured():
    assert check_head_init(example_trace()).status == "inconclusive"
    left_out = replace(example_trace(), skipped={"head_state": "left out: over the budget"})
    assert check_head_init(left_out).headline == "Not measured: left out: over the budget."
    v = check_head_init(
        replace(example_trace(), measurements={"head_state": Head(skipped={"layers": "the head has no linear layers"})})
    )
    assert (v.status, v.headline) == ("skipped", "Not measured: the head has no linear layers.")


def test_torchs_default_is_recognised():
    bound = 1 / 8
    default = replace(HIDDEN, std=bound / math.sqrt(3), largest=0.1249, kurtosis=1.8, bias=0.12)
    v = verdict(default, replace(default, name="classifier.3", last=True), declared=0.02)
    assert (v.status, v.fault) == ("fail", "head_init_torch_default")
    assert "2 of 2 linear layers" in v.headline
    assert "did not reach classifier.0, classifier.3" in v.causes[0]
    assert "std=0.02" in v.remedy
    with pytest.raises(CheckFailed, match="torch's default"):
        assert_head_init(
            replace(
                example_trace(), intent=Intent(head_init=0.02), measurements={"head_state": Head(layers=(default,))}
            )
        )


def test_transformers_own_initialisation_is_recognised():
    v = verdict(declared=0.1, initializer_range=0.02)
    assert v.fault == "head_init_initializer_range"
    assert "initializer_range" in v.remedy


def test_another_std_and_a_shifted_mean():
    v = verdict(replace(HIDDEN, std=0.2, largest=0.8), LAST, declared=0.02)
    assert (v.status, v.fault) == ("fail", "head_init_not_declared")
    assert "10.0 times as large" in v.causes[0]
    v = verdict(replace(HIDDEN, mean=0.02, std=0.018), LAST, declared=0.02)
    assert (v.status, v.fault) == ("fail", "head_init_not_declared")
    assert "not centred" in v.causes[0]


def test_chance_and_small_differences_pass():
    small = replace(LAST, units=2, fan_in=8)  # 16 weights tell little: 30 % is luck
    assert verdict(replace(small, std=0.027), declared=0.02).status == "pass"
    assert verdict(replace(small, std=0.06), declared=0.02).status == "fail"
    # of many weights 1.2 times is beyond chance, but changes no training
    assert verdict(replace(HIDDEN, std=0.02 * FACTOR * 0.99), declared=0.02).status == "pass"
    assert verdict(replace(HIDDEN, std=0.02 * FACTOR * 1.01), declared=0.02).status == "fail"


def test_the_standard_errors_are_those_of_a_normal_sample():
    random = pytest.importorskip("numpy").random.default_rng(0)
    n = 200
    z = [_standard_errors(float((random.normal(0, 1, n) ** 2).mean()), n) for _ in range(2000)]
    assert sum(abs(v) > 1.96 for v in z) / len(z) == pytest.approx(0.05, abs=0.015)
    assert max(map(abs, z)) < SIGMAS


def test_zeros_and_constants():
    zero = replace(LAST, mean=0.0, std=0.0, largest=0.0, constant=True, kurtosis=None)
    for declared in (None, 0.02):  # a last layer of zeros costs one step, whatever was declared
        v = verdict(HIDDEN, zero, declared=declared)
        assert v.status == "pass"
        assert "starts at zero (common for a last layer)" in v.notes[0]
    assert verdict(replace(zero, last=False), LAST, declared=0.02).fault == "head_init_constant"
    constant = replace(zero, mean=0.02, largest=0.02)
    assert verdict(HIDDEN, constant, declared=0.02).fault == "head_init_constant"
    assert verdict(HIDDEN, constant).status == "pass"
    assert verdict(zero, replace(zero, name="a"), declared=0.0).status == "pass"


def test_a_bias_on_the_wrong_layer():
    v = verdict(replace(HIDDEN, bias=4.6, bias_mean=-4.6), LAST, declared=0.02)
    assert (v.status, v.fault) == ("fail", "head_bias_not_zero")
    assert "4.60" in v.headline
    assert "last layer" in v.causes[0]
    # a class prior on the last layer, or torch's own bias below declared weights, is let through
    v = verdict(HIDDEN, replace(LAST, bias=4.6, bias_mean=-4.6), declared=0.02)
    assert v.status == "pass"
    assert "class prior" in v.notes[0]
    v = verdict(replace(HIDDEN, bias=0.12), LAST, declared=0.02)
    assert v.status == "pass"
    assert "harmless" in v.notes[0]


@pytest.mark.parametrize("change", [{"nonfinite": 3}, {"largest": 1e30}, {"bias": 1e30}])
def test_memory_that_was_never_written(change):
    v = verdict(replace(HIDDEN, **change), LAST)
    assert (v.status, v.fault) == ("fail", "head_uninitialised")


def test_units_that_are_one_unit():
    v = verdict(replace(HIDDEN, twins=1.0, constant=True, mean=0.05, std=0.0), LAST)
    assert (v.status, v.fault) == ("fail", "head_symmetric")
    assert "100 % of the 64 units" in v.headline
    assert verdict(replace(HIDDEN, twins=0.4), LAST).status == "pass"
    v = verdict(replace(HIDDEN, twins=1.0, constant=True, mean=0.0, std=0.0), LAST)
    assert v.fault == "head_all_zero"


def test_a_head_that_drowns_needs_large_weights_large_logits_and_a_large_loss():
    wide = replace(HIDDEN, std=2.0, largest=7.0)
    loud = {"logit_spread": SPREAD * 2, "loss_over_chance": LOSS * 2}
    v = verdict(wide, LAST, **loud)
    assert (v.status, v.fault) == ("fail", "head_init_huge")
    assert "30.0" in v.headline
    assert "2.00" in v.headline
    assert verdict(HIDDEN, LAST, **loud).status == "pass"
    assert verdict(wide, LAST, **{**loud, "logit_spread": SPREAD}).status == "pass"
    assert verdict(wide, LAST, **{**loud, "loss_over_chance": LOSS}).status == "pass"  # trained before: sure, and right
    assert verdict(wide, LAST).status == "pass"
    assert verdict(replace(HIDDEN, std=GAIN / 8), LAST, **loud).status == "pass"


def test_uniform_weights_of_the_declared_std_are_noted():
    v = verdict(replace(HIDDEN, kurtosis=1.8), LAST, declared=0.02)
    assert v.status == "pass"
    assert "uniform" in v.notes[0]


def test_wording():
    assert str(verdict(replace(HIDDEN, std=0.2, largest=0.8), LAST, declared=0.02)) == (
        "head_init: FAIL. 1 of 2 linear layers of the head do not start from N(0, 0.02): classifier.0 has std 0.200, mean "
        "1.00e-04.\n"
        "  layer         shape      std  declared  torch's default      mean  largest  bias up to\n"
        "  classifier.0  64 x 64  0.200    0.0200           0.0722  1.00e-04    0.800           0\n"
        "  cause: the weights of classifier.0 are 10.0 times as large as declared\n"
        "  do: initialise the head last, after the model is made and loaded: InitScheme.normal(std=0.02).apply(model)\n"
        "  limit: std within 5 standard errors or a factor of 1.25 of 0.02 (chance fails one layer in 2 million)\n"
        "  measured: weights of the head's linear layers before the first step"
    )
