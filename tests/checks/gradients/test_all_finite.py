"""all_finite names the first bad step and tensor, and where it began."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import check_all_finite, example_trace
from pytest_ftcheck.core.observations import Buffer, Iteration, ProbeLossPoint

GOOD = example_trace()


def with_tensor(name, trace=GOOD, *, gradient=None, last=0, first=0):
    """The example with NaNs in one tensor: in its gradient from a step on, or in its values."""

    def change(t):
        if t.name != name:
            return t
        g = t.gradients
        if gradient is not None:
            g = replace(g, nonfinite=1, first_nonfinite=gradient)
        return replace(t, gradients=g, last=replace(t.last, nonfinite=last), first=replace(t.first, nonfinite=first))

    return replace(trace, tensors=tuple(change(t) for t in trace.tensors))


def with_loss(value, at, trace=GOOD):
    rows = list(trace.iterations)
    rows[at] = replace(rows[at], loss=value)
    return replace(trace, iterations=tuple(rows))


def test_all_is_finite():
    verdict = check_all_finite(GOOD)
    assert verdict.status == "pass"
    assert "20 losses" in verdict.headline
    assert "4 tensors" in verdict.headline


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")])
def test_a_loss_that_is_not_finite(value, word):
    verdict = check_all_finite(with_loss(value, 7))
    assert verdict.status == "fail"
    assert f"The loss is {word} at iteration 7 alone" in verdict.headline


def test_iterations_with_a_loss_that_is_not_finite_are_counted():
    losses = [math.nan if i in (7, 9, 19) else 0.5 for i in range(20)]
    several = replace(GOOD, iterations=tuple(Iteration(v, i, 1, True) for i, v in enumerate(losses)))
    assert "The loss is NaN at 3 of 20 iterations, the first is 7" in check_all_finite(several).headline
    mixed = replace(
        several,
        iterations=tuple(replace(i, loss=math.inf if n > 8 else math.nan) for n, i in enumerate(several.iterations)),
    )
    assert "The loss is not finite from iteration 0 on" in check_all_finite(mixed).headline


def test_a_bad_gradient_names_the_step_and_the_tensor_nearest_to_the_loss():
    trace = with_tensor("base_model.layer.0.lin.weight", gradient=4)
    trace = with_tensor("classifier.weight", trace, gradient=4)
    trace = with_tensor("base_model.layer.0.lin.bias", trace, gradient=6)
    verdict = check_all_finite(trace)
    assert verdict.status == "fail"
    assert "The first gradient is bad at step 4, nearest to the loss in classifier.weight" in verdict.headline
    assert [r["tensor"] for r in verdict.evidence] == [
        "classifier.weight",
        "base_model.layer.0.lin.weight",
        "base_model.layer.0.lin.bias",
    ]
    assert verdict.fault == "nonfinite_backward"


def test_it_began_in_the_forward_pass_if_the_loss_was_bad_first():
    trace = with_tensor("classifier.weight", with_loss(math.nan, 4), gradient=4)
    assert check_all_finite(trace).fault == "nonfinite_forward"
    trace = with_tensor("classifier.weight", with_loss(math.nan, 5), gradient=4)
    assert check_all_finite(trace).fault == "nonfinite_backward"


def test_finite_gradients_and_bad_weights_point_at_the_optimizer():
    verdict = check_all_finite(with_tensor("classifier.bias", last=2))
    assert "1 tensor holds NaN or inf" in verdict.headline
    assert verdict.fault == "nonfinite_update"
    assert verdict.evidence[0]["bad weights at the end"] == 2


def test_what_was_bad_before_the_run_is_said_first():
    verdict = check_all_finite(with_tensor("base_model.layer.0.lin.weight", gradient=0, first=5, last=5))
    assert verdict.fault == "nonfinite_start"
    assert "base_model.layer.0.lin.weight" in verdict.causes[0]


def test_a_tensor_is_listed_once():
    verdict = check_all_finite(with_tensor("classifier.weight", gradient=2, last=3))
    assert len(verdict.evidence) == 1
    assert verdict.evidence[0]["gradient bad at step"] == 2


def test_a_part_is_judged_alone():
    trace = with_tensor("base_model.layer.0.lin.weight", gradient=1)
    assert check_all_finite(trace, "head").status == "pass"
    assert check_all_finite(trace, "base").status == "fail"
    assert check_all_finite(trace, ignore="base_model").status == "pass"
    assert check_all_finite(trace, include="*.weight").status == "fail"


def test_nothing_recorded_is_inconclusive():
    verdict = check_all_finite(replace(GOOD, steps=(), iterations=()))
    assert verdict.status == "inconclusive"
    assert verdict.remedy


def test_a_skipped_step_is_no_alarm():
    iterations = tuple(replace(i, step=None, steps=0) if i.step == 3 else i for i in GOOD.iterations)
    assert check_all_finite(replace(GOOD, iterations=iterations)).status == "pass"


def test_a_loss_that_is_not_known_is_no_alarm():
    assert check_all_finite(replace(GOOD, iterations=(Iteration(None, 0, 1, True),))).status == "pass"


def test_a_bad_loss_is_counted_by_its_iteration_even_if_some_have_none():
    rows = (Iteration(None, 0, 1, True), Iteration(None, 1, 1, True), Iteration(math.nan, 2, 1, True))
    assert "from iteration 2 on" in check_all_finite(replace(GOOD, iterations=rows)).headline


def test_a_buffer_that_is_not_finite():
    """A running statistic keeps what one bad batch did, and only eval mode reads it."""
    buffers = (
        Buffer("base_model.bn.running_mean", "base", False, False, nonfinite=3),
        Buffer("b", "base", False, False),
    )
    verdict = check_all_finite(replace(GOOD, buffers=buffers))
    assert verdict.status == "fail"
    assert "base_model.bn.running_mean" in verdict.headline
    assert verdict.fault == "nonfinite_buffer"
    assert check_all_finite(replace(GOOD, buffers=buffers), "base").status == "fail"
    assert check_all_finite(replace(GOOD, buffers=buffers), "head").status == "pass"
    assert check_all_finite(replace(GOOD, buffers=buffers[1:])).status == "pass"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_probe_loss_that_is_not_finite(value):
    points = (*GOOD.probe_loss.points[:2], ProbeLossPoint(10, value))
    verdict = check_all_finite(replace(GOOD, probe_loss=replace(GOOD.probe_loss, points=points)))
    assert verdict.status == "fail"
    assert "The probe loss is not finite after 10 steps" in verdict.headline
    assert check_all_finite(replace(GOOD, probe_loss=replace(GOOD.probe_loss, points=points[:2]))).status == "pass"


def test_an_eps_that_float16_cannot_hold_is_named():
    def half(**changes):
        trace = with_tensor("classifier.weight", with_loss(math.nan, 1), gradient=1, last=5)
        return replace(trace, tensors=tuple(replace(t, dtype="float16", **changes) for t in trace.tensors))

    verdict = check_all_finite(half())
    assert verdict.fault == "eps_underflow"
    assert "eps of AdamW (1e-08) is 0" in verdict.causes[0]
    group = replace(GOOD.optimizer.groups[0], settings={"eps": 1e-4})
    assert (
        check_all_finite(replace(half(), optimizer=replace(GOOD.optimizer, groups=(group,)))).fault != "eps_underflow"
    )


def test_a_loss_that_diverged_is_distinguished_from_one_that_broke():
    def lost(peak):
        trace = with_tensor("classifier.weight", with_loss(math.nan, 10), gradient=10)
        iterations = list(trace.iterations)
        iterations[9] = replace(iterations[9], loss=peak)
        return check_all_finite(replace(trace, iterations=tuple(iterations)))

    assert lost(100.0).fault == "diverged"
    assert "0.700 to 100" in lost(100.0).causes[0]
    assert lost(3.6).fault == "diverged"
    assert lost(3.4).fault == "nonfinite_forward"


def test_wording():
    trace = with_tensor("classifier.weight", gradient=4)
    assert str(check_all_finite(trace)).splitlines() == [
        "all_finite: FAIL. The first gradient is bad at step 4, nearest to the loss in classifier.weight.",
        "  tensor             gradient bad at step  bad weights at the end",
        "  classifier.weight                     4                       0",
        "  cause: it begins in the backward pass: sqrt or norm at 0, a row of a mask that is all -inf, or an overflow in low precision",
        "  do: run the bad batch under torch.autograd.set_detect_anomaly(True); lower the learning rate and keep parameters in float32",
        "  limit: no NaN, no infinity",
        "  measured: losses of every iteration, gradient norms of every step, every weight at the end",
    ]
