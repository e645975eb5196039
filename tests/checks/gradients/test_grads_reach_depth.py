"""grads_reach_depth: gradients that vanish on their way down, or explode; small ones that reach the input are healthy."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import check_grads_nonzero, check_grads_reach_depth, example_trace
from pytest_ftcheck.checks.gradients.grads_reach_depth import BURST, FALL, FALL_SGD, WORSE
from pytest_ftcheck.core.example_trace import tensor

GOOD = example_trace()
#: AdamW's eps in the example is 1e-8: below this it makes less than a hundredth of a step.
LEAST = 1e-10


def stack(*sizes, top=1e-2, family="adam", **changes):
    """A base of layers with these rms gradients, lowest first, under a head."""
    layers = [
        replace(t, gradients=replace(t.gradients, max_rms=size, max_norm=64 * size, noise=1e-6))
        for i, size in enumerate(sizes)
        for t in (
            tensor(f"base_model.layer.{i}.lin.weight", "base"),
            tensor(f"base_model.layer.{i}.out.weight", "base"),
        )
    ]
    head = tensor("classifier.weight", "head", shape=(2, 64))
    head = replace(head, gradients=replace(head.gradients, max_rms=top, max_norm=11 * top, noise=1e-6))
    trace = replace(GOOD, tensors=(*layers, head), **changes)
    return replace(trace, optimizer=replace(trace.optimizer, family=family))


def test_a_mild_fall_passes_and_says_the_range():
    verdict = check_grads_reach_depth(stack(1e-5, 1e-4, 1e-3))
    assert verdict.status == "pass"
    assert "Over 4 layers" in verdict.headline
    assert "between 1.00e-05 and 0.0100" in verdict.headline
    assert [row["layer"] for row in verdict.evidence][-1] == "classifier"


def test_a_deep_fall_that_adam_normalizes_passes():
    assert check_grads_reach_depth(stack(2 * LEAST, 1e-6, 1e-3, top=1.0)).status == "pass"


def test_vanished_below_eps_is_named_with_where_it_falls():
    verdict = check_grads_reach_depth(stack(1e-13, 1e-11, 1e-6, 1e-4))
    assert (verdict.status, verdict.fault) == ("fail", "grads_vanish")
    assert "rms 0.0100 in classifier, 1.00e-11 in base_model.layer.1 3 layers below" in verdict.headline
    assert "2 layers of 5" in verdict.headline
    assert "1/1,000 of its gradient" in verdict.causes[0]
    assert verdict.evidence[0]["layer"] == "classifier"
    assert verdict.evidence[-1]["layer"] == "base_model.layer.0"


def test_the_edges_of_the_limit():
    assert check_grads_reach_depth(stack(0.99 * LEAST, top=1e-2)).status == "fail"
    assert check_grads_reach_depth(stack(1.01 * LEAST, top=1e-2)).status == "pass"
    # all gradients small alike: that is no matter of depth
    assert check_grads_reach_depth(stack(1e-12, top=0.9 * FALL * 1e-12)).status == "pass"
    assert check_grads_reach_depth(stack(1e-12, top=50 * LEAST)).status == "pass"


def test_a_feeble_layer_above_living_ones_is_no_vanishing():
    assert check_grads_reach_depth(stack(1e-4, 1e-12, 1e-4)).status == "pass"


def test_one_feeble_matrix_of_a_layer_is_no_vanishing():
    trace = stack(1e-4, 1e-4)
    first, *rest = trace.tensors
    feeble = replace(first, gradients=replace(first.gradients, max_rms=1e-13, max_norm=1e-11))
    third = replace(first, name="base_model.layer.0.q.weight")
    assert check_grads_reach_depth(replace(trace, tensors=(feeble, third, *rest))).status == "pass"


def test_rounding_noise_and_missing_gradients_are_no_layers():
    trace = stack(1e-13, 1e-4)
    noisy = tuple(
        replace(t, gradients=replace(t.gradients, noise=0.9)) if "layer.0" in t.name else t for t in trace.tensors
    )
    assert check_grads_reach_depth(replace(trace, tensors=noisy)).status == "pass"
    none = tuple(
        replace(t, gradients=replace(t.gradients, max_norm=0.0, max_rms=0.0, none=20)) if t.part == "base" else t
        for t in trace.tensors
    )
    assert check_grads_reach_depth(replace(trace, tensors=none)).status == "skipped"


def test_frozen_layers_are_not_judged():
    trace = stack(1e-13, 1e-4)
    frozen = tuple(replace(t, trainable=False) if "layer.0" in t.name else t for t in trace.tensors)
    assert check_grads_reach_depth(replace(trace, tensors=frozen)).status == "pass"


def test_sgd_is_judged_by_a_steady_fall():
    falling = [1e-2 * FALL_SGD ** -(i / 4) for i in (4.2, 3, 2, 1)]
    verdict = check_grads_reach_depth(stack(*falling, family="sgd"))
    assert (verdict.status, verdict.fault) == ("fail", "grads_vanish")
    assert "needs" not in verdict.headline
    gentle = [1e-2 * FALL_SGD ** -(i / 4) for i in (3.8, 3, 2, 1)]
    assert check_grads_reach_depth(stack(*gentle, family="sgd")).status == "pass"
    # one layer alone far below, the others level
    assert check_grads_reach_depth(stack(1e-10, 1e-2, 1e-2, family="sgd")).status == "pass"


def test_grads_nonzero_names_the_vanishing():
    trace = stack(1e-13, 1e-12, 1e-6, 1e-4)
    verdict = check_grads_nonzero(trace)
    assert (verdict.status, verdict.fault) == ("fail", "grads_vanish")


def burst(factor, rise, *, unclipped=None):
    steps = tuple(
        replace(
            s,
            grad_norm=0.9 if unclipped else (factor if i == 15 else 1.0),
            grad_norm_unclipped=unclipped and (factor if i == 15 else 1.0),
        )
        for i, s in enumerate(GOOD.steps)
    )
    iterations = tuple(replace(s, loss=0.7 * (rise if i >= 17 else 1)) for i, s in enumerate(GOOD.iterations))
    return check_grads_reach_depth(replace(GOOD, steps=steps, iterations=iterations))


def test_a_gradient_that_explodes():
    verdict = burst(1.01 * BURST, 1.01 * WORSE)
    assert (verdict.status, verdict.fault) == ("fail", "grads_explode")
    assert "at step 15" in verdict.headline
    assert burst(0.99 * BURST, 1.01 * WORSE).status == "pass"
    assert burst(1.01 * BURST, 0.99 * WORSE).status == "pass"
    assert burst(1.01 * BURST, 1.01 * WORSE, unclipped=True).status == "fail"
    assert burst(1.01 * BURST, math.inf).status == "fail"


@pytest.mark.parametrize("count", [0, 4])
def test_a_run_of_few_steps_does_not_explode(count):
    trace = replace(GOOD, steps=tuple(replace(s, grad_norm=10.0 ** (3 * i)) for i, s in enumerate(GOOD.steps[:count])))
    assert check_grads_reach_depth(trace).status == "pass"


def test_wording():
    verdict = check_grads_reach_depth(stack(1e-13, 1e-11, 1e-6, 1e-4))
    assert verdict.headline == (
        "The gradient vanishes on its way down: rms 0.0100 in classifier, 1.00e-11 in base_model.layer.1 3 layers below, where AdamW "
        "needs 1.00e-10 to move a weight; 2 layers of 5 learn next to nothing."
    )
    assert verdict.causes == (
        "each layer between classifier and base_model.layer.1 passes on 1/1,000 of its gradient: saturating activations (sigmoid, tanh) "
        "or small weights in a row, without a residual connection or a normalization layer",
    )
    assert verdict.remedy == (
        "between base_model.layer.1 and classifier, use ReLU or GELU, weights of std 1/sqrt(fan-in), fewer layers, or a residual connection"
    )
