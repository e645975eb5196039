"""loss_stable: explosions, also those that came back, collapse, divergence; the noise of small batches passes."""

from __future__ import annotations

import dataclasses
import math

import pytest

from pytest_ftcheck import check_loss_stable, example_trace
from pytest_ftcheck.checks.loss.loss_stable import COLLAPSE, EXPLOSION, RISE, SPIKE, SUSPICIOUS
from pytest_ftcheck.checks.loss.record import LossShape
from pytest_ftcheck.core.observations import Iteration, ProbeLossPoint


def run(losses=None, *, first=0.7, last=0.31, shape=None, **changes):
    trace = example_trace()
    if losses is not None:
        changes["iterations"] = tuple(Iteration(v, i, 1, True) for i, v in enumerate(losses))
    probe = dataclasses.replace(
        trace.probe_loss, points=(ProbeLossPoint(0, first, first), ProbeLossPoint(20, last, last))
    )
    return dataclasses.replace(trace, probe_loss=probe, measurements={"loss_shape": shape}, **changes)


def peak(times, at=10, start=0.7):
    losses = [start] * 20
    losses[at] = times * start
    return losses


def shape(first=0.1, last=1.0, **more):
    return LossShape(rows=16, spread_first=first, spread_last=last, size_first=0.1, size_last=0.1, **more)


# ------------------------------------------------------------------ explosions
@pytest.mark.parametrize(("times", "status"), [(EXPLOSION * 1.01, "fail"), (EXPLOSION * 0.99, "pass")])
def test_an_explosion_that_came_back(times, status):
    verdict = check_loss_stable(run(peak(times)))
    assert (verdict.status, verdict.fault) == (status, "diverged" if status == "fail" else "")


@pytest.mark.parametrize(("times", "status"), [(SPIKE * 1.01, "fail"), (SPIKE * 0.99, "pass")])
def test_a_spike_after_which_nothing_is_learnt(times, status):
    assert check_loss_stable(run(peak(times), last=0.69)).status == status


def test_wording():
    assert str(check_loss_stable(run(peak(1000)))) == (
        "loss_stable: FAIL. The training loss rose to 700 at iteration 10, 1,000 times where it began (0.700), and ended at "
        "0.700.\n"
        "  iteration  training loss\n"
        "          0  0.7000\n"
        "         10  700.0\n"
        "         19  0.7000\n"
        "  cause: the learning rate is too high (AdamW at 5.00e-05)\n"
        "  do: try a tenth of the learning rate, a warm-up, or gradient clipping (max_norm=1)\n"
        "  limit: a peak below 5 times the start, or below 50 times if the run learns in the end; healthy runs stay below 2\n"
        "  measured: training losses; losses and logits of the probe rows before and after, dropout off"
    )


def test_a_high_start_is_no_spike():
    assert (
        check_loss_stable(run([300.0, 100.0, 50.0, 30.0, 20.0, 10.0, *[0.1] * 14], first=280.0, last=0.1)).status
        == "pass"
    )


def test_a_warm_start_is_compared_with_a_uniform_prediction():
    assert check_loss_stable(run([0.01, 0.6, *[0.01] * 18], first=0.01, last=0.01)).status == "pass"


def test_a_summed_loss_is_compared_in_its_own_units():
    summed = dataclasses.replace(shape(), known="cross_entropy", scale=16.0)
    assert check_loss_stable(run([0.1, 16.0, *[0.1] * 18], first=0.1, last=0.09, shape=summed)).status == "pass"


def test_noise_passes():
    assert check_loss_stable(run([0.7, 1.4, 0.2, 1.2, 0.1] * 4)).status == "pass"


# ------------------------------------------------------------------ not finite, divergence
def test_not_finite_after_growing_is_divergence():
    verdict = check_loss_stable(run([0.7, 70.0, math.nan]))
    assert verdict.fault == "diverged"
    assert "from iteration 2 on" in verdict.headline


def test_a_loss_that_is_finite_again_is_not_said_to_stay_so():
    assert (
        "at 2 of 5 iterations, the first is 0" in check_loss_stable(run([math.nan, 0.7, math.nan, 0.6, 0.5])).headline
    )
    assert "from the start" in check_loss_stable(run([math.nan] * 3)).headline


def test_not_finite_out_of_nothing_is_another_fault():
    assert check_loss_stable(run([0.7, 0.7, math.inf])).fault == "loss_not_finite"


@pytest.mark.parametrize(("last", "status"), [(RISE * 0.7 * 1.01, "fail"), (RISE * 0.7 * 0.99, "pass")])
def test_the_end_beside_the_start(last, status):
    assert check_loss_stable(run([0.7] * 20, last=last)).status == status


def test_one_bad_step_at_the_end_of_a_run_that_learns():
    assert check_loss_stable(run([0.7 - 0.03 * i for i in range(20)], last=2.0)).status == "pass"


# ------------------------------------------------------------------ collapse
@pytest.mark.parametrize(("after", "status"), [(COLLAPSE * 0.1 * 0.99, "fail"), (COLLAPSE * 0.1 * 1.01, "pass")])
def test_all_rows_alike(after, status):
    verdict = check_loss_stable(run([0.7] * 20, last=0.7, shape=shape(0.1, after)))
    assert verdict.status == status
    assert verdict.fault == ("collapsed" if status == "fail" else "")


def test_alike_rows_are_no_collapse_where_the_loss_fell_or_where_they_never_differed():
    assert check_loss_stable(run([0.7] * 20, last=0.1, shape=shape(0.1, 0.0))).status == "pass"
    assert check_loss_stable(run([0.7] * 20, last=0.7, shape=shape(1e-9, 0.0))).status == "pass"


def test_collapse_is_named_before_the_spike_on_the_way():
    assert check_loss_stable(run(peak(60), last=0.7, shape=shape(0.1, 0.0))).fault == "collapsed"


# ------------------------------------------------------------------ BatchNorm, suspicion, nothing to judge
@pytest.mark.parametrize(("values", "status"), [(2, "fail"), (3, "pass"), (None, "pass")])
def test_batchnorm_over_pairs(values, status):
    verdict = check_loss_stable(run(shape=shape(norm_values=values, norm_name="head.1")))
    assert verdict.status == status
    if status == "fail":
        assert verdict.fault == "batchnorm_tiny_batch"
        assert "head.1" in verdict.headline


def test_suspiciously_fast_is_advice():
    low = SUSPICIOUS * 0.7 * 0.9
    assert check_loss_stable(run([0.7, 0.5, low, *[low] * 17])).status == "advice"
    assert check_loss_stable(run([0.7, *[0.5] * 10, low, low])).status == "pass"


def test_nothing_to_judge():
    assert check_loss_stable(dataclasses.replace(example_trace(), iterations=(), probe_loss=None)).status == "skipped"
