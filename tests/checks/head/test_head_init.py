"""head_init: what was declared is held against what was drawn; undeclared, only what no author means is a failure."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import InitScheme, Intent, assert_head_init, check_head_init, diagnose, example_trace
from pytest_ftcheck.checks.head.head_init import FACTOR, GAIN, LOSS, SIGMAS, SPREAD, _standard_errors
from pytest_ftcheck.checks.head.record import Head, HeadWeights, Layer
from pytest_ftcheck.core.verdict import CheckFailed

HIDDEN = Layer("classifier.0", 64, 64, 1e-4, 0.02, 0.08, 3.0, 0, False, 0.0, 0.0, False, True)
LAST = replace(HIDDEN, name="classifier.3", units=2, last=True)


def verdict(*layers, declared=None, initializer_range=None, **head):
    intent = Intent(head_init=declared) if declared is not None else None
    passed = Head(rows=32, layers=layers or (HIDDEN, LAST), **head)
    stored = HeadWeights(initializer_range=initializer_range)
    return check_head_init(
        replace(example_trace(), intent=intent, measurements={"head_state": passed, "head_weights": stored})
    )


def stored(*layers, declared=None, outside=()):
    """The verdict without the probe that passes rows through the head."""
    intent = Intent(head_init=declared) if declared is not None else None
    weights = HeadWeights(layers or (HIDDEN, LAST), None, outside)
    over_budget = {"head_state": "left out: over the budget"}
    return check_head_init(
        replace(example_trace(), intent=intent, measurements={"head_weights": weights}, skipped=over_budget)
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
    v = check_head_init(replace(example_trace(), measurements={"head_weights": HeadWeights()}))
    assert (v.status, v.headline) == ("skipped", "Not measured: the head has no linear layers.")


def test_a_declared_start_that_could_not_be_measured_is_no_pass():
    trace = replace(example_trace(), intent=Intent(head_init=0.02), skipped={"head_weights": "it raised KeyError: x"})
    (v,) = [v for v in diagnose(trace).verdicts if v.check == "head_init"]
    assert (v.status, v.headline) == ("inconclusive", "Not measured: it raised KeyError: x.")


def test_stored_weights_are_judged_without_a_forward_pass():
    assert stored(declared=0.02).status == "pass"
    assert stored(replace(HIDDEN, std=0.2, largest=0.8), LAST, declared=0.02).fault == "head_init_not_declared"
    assert stored(replace(HIDDEN, std=0.2, largest=0.8), LAST).status == "pass"
    assert stored(replace(HIDDEN, bias=4.6), LAST, declared=0.02).fault == "head_bias_not_zero"
    assert stored(replace(HIDDEN, nonfinite=1), LAST).fault == "head_uninitialised"
    assert stored(replace(HIDDEN, twins=1.0, constant=True, mean=0.05, std=0.0), LAST).fault == "head_symmetric"


def test_the_layers_that_are_called_come_before_those_that_are_stored():
    uncalled = replace(HIDDEN, name="classifier.spare", std=0.2, largest=0.8)
    measurements = {"head_state": Head(layers=(HIDDEN, LAST)), "head_weights": HeadWeights((uncalled, HIDDEN, LAST))}
    trace = replace(example_trace(), intent=Intent(head_init=0.02), measurements=measurements)
    assert check_head_init(trace).status == "pass"


def test_a_scheme_for_the_last_layer_needs_their_order():
    scheme = InitScheme.normal(std=0.02).with_last(InitScheme.zeros())
    zero = replace(LAST, mean=0.0, std=0.0, largest=0.0, constant=True, kurtosis=None)
    assert stored(HIDDEN, zero, declared=scheme).status == "pass"
    v = stored(replace(zero, name="out"), replace(HIDDEN, name="hidden", last=True), declared=scheme)
    assert (v.status, v.unmeasured) == ("inconclusive", "head_state")
    assert stored(replace(LAST, name="a"), replace(LAST, name="b"), declared=0.02).status == "pass"


def test_modules_that_the_head_leaves_out_are_an_advice():
    v = stored(outside=("pre_classifier",))
    assert (v.status, v.fault) == ("advice", "head_incomplete")
    assert "pre_classifier is not part of the head as declared" in v.headline
    assert "['pre_classifier', 'classifier']" in v.remedy
    v = stored(replace(HIDDEN, nonfinite=1), LAST, outside=("pre_classifier",))
    assert v.fault == "head_uninitialised"


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
    assert (verdict(HIDDEN, constant).status, verdict(HIDDEN, constant).fault) == ("advice", "head_init_constant")
    assert verdict(HIDDEN, zero).status == "pass"
    assert verdict(HIDDEN, replace(constant, units=1)).status == "pass"  # one output: a sum of the features
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
