"""What `loss_scale` concludes from windows of optimizer steps."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_ftcheck import check_loss_scale, diagnose, example_trace
from pytest_ftcheck.checks.catalogue import FAULTS
from pytest_ftcheck.checks.loss.loss_scale_record import Backward, LossScale, Term, Window
from pytest_ftcheck.core.trace import Trace

ADAM = example_trace().optimizer
SGD = dataclasses.replace(ADAM, name="SGD", family="sgd")


def window(*weights, items=8.0, step=0, reduction="mean", rows=8, terms=1, **more):
    """One optimizer step of as many micro-batches as weights are given."""
    several = items if isinstance(items, tuple) else (items,) * len(weights)
    backwards = tuple(
        Backward(0.7, (Term("cross_entropy", reduction, n, w),) * terms, rows)
        for w, n in zip(weights, several, strict=True)
    )
    return Window(step, backwards, **{"change": 1.0, **more})


def judge(*windows, optimizer=ADAM, ranks=1):
    trace = example_trace(measurements={"loss_scale": LossScale(windows, ranks)}, optimizer=optimizer)
    return check_loss_scale(trace)


def test_it_travels_as_json():
    windows = (window(0.5, 0.5, clipped=0.5), window(0.5, 0.5, change=None))
    trace = example_trace(measurements={"loss_scale": LossScale(windows, 2)})
    assert Trace.from_json(trace.to_json()) == trace


# ---------------------------------------------------------------------- right
@pytest.mark.parametrize(
    "windows",
    [
        [window(1.0)] * 3,
        [window(*[0.25] * 4)] * 3,
        [window(*[0.25] * 4)],
        [window(0.1, 0.3, 0.2, 0.4, items=(1.0, 3.0, 2.0, 4.0), reduction="sum")] * 2,
        [window(*[0.25] * 4), window(*[0.25] * 4), window(0.25, 0.25)],  # the last step of an epoch
        [window(0.5, 0.5, terms=2, items=4.0)] * 3,  # two losses for each row, added up
        [window(0.25, 0.25, terms=2, items=4.0)] * 3,  # the same, averaged
        [window(*[0.25] * 4, change=0.1, clipped=0.1)] * 3,
        [window(*[0.25] * 4, change=None)] * 3,
        [window(*[0.25 * 65536] * 4, unscaled=1 / 65536, change=1 / 65536)] * 3,
        [window(*[0.25 * 65536] * 4, unscaled=1 / 65536, change=0.2 / 65536, clipped=0.2)] * 3,
        [window(0.917)] * 3,  # a count that is one off in each row
    ],
)
@pytest.mark.parametrize("optimizer", [ADAM, SGD])
def test_the_mean_passes(windows, optimizer):
    verdict = judge(*windows, optimizer=optimizer)
    assert verdict.status == "pass", verdict
    assert "the mean loss of what the step has seen is backpropagated" in verdict.headline


def test_a_division_after_backward_is_as_good_as_one_before():
    verdict = judge(*[window(*[1.0] * 4, change=0.25)] * 3, optimizer=SGD)
    assert verdict.status == "pass"
    assert "divided after backward()" in verdict.headline
    verdict = judge(*[window(*[8.0] * 4, reduction="sum", change=1 / 32)] * 3, optimizer=SGD)
    assert verdict.status == "pass"


def test_a_factor_that_nothing_explains_is_told_and_not_judged():
    verdict = judge(*[window(0.5)] * 3, optimizer=SGD)
    assert verdict.status == "pass"
    assert "0.500 times the mean loss" in verdict.headline
    assert "whether it is meant is not judged" in verdict.notes[0]


def test_losses_of_a_row_that_are_added_up_are_no_accumulation():
    """Four tags a row, added up; as many as there are micro-batches."""
    verdict = judge(*[window(*[1.0] * 4, items=32.0, reduction="none", rows=8)] * 3, optimizer=SGD)
    assert verdict.status == "pass"
    assert "the losses of a row are added up" in verdict.notes[0]


def test_two_losses_a_row_are_no_two_micro_batches():
    """Of two losses and two micro-batches, a factor of 2 may be either."""
    assert judge(*[window(0.5, 0.5, terms=2)] * 3, optimizer=SGD).status == "pass"
    assert judge(*[window(*[1.0] * 4, terms=2)] * 3, optimizer=SGD).fault == "accumulation_not_averaged"
    assert judge(*[window(*[0.5] * 4, terms=2)] * 3, optimizer=SGD).fault == "accumulation_not_averaged"


# ---------------------------------------------------------------------- wrong
SUMMED = [window(*[1.0] * 4)] * 3


def test_summed_over_micro_batches_with_sgd():
    verdict = judge(*SUMMED, optimizer=SGD)
    assert (verdict.status, verdict.fault) == ("fail", "accumulation_not_averaged")
    assert "4 micro-batches are added up" in verdict.headline
    assert "the steps of SGD are 4.00 times as long" in verdict.headline
    assert "(loss / 4).backward()" in verdict.remedy


def test_summed_over_micro_batches_with_adam_is_advice_that_says_what_it_changes():
    verdict = judge(*SUMMED)
    assert (verdict.status, verdict.fault) == ("advice", "")
    assert "only through eps" in verdict.headline
    coupled = dataclasses.replace(
        ADAM, groups=(dataclasses.replace(ADAM.groups[0], weight_decay=0.1, decoupled=False),)
    )
    assert "weight decay, which it adds to the gradient" in judge(*SUMMED, optimizer=coupled).headline


def test_clipping_turns_it_into_a_failure_and_clipping_that_never_acts_does_not():
    clipped = [window(*[1.0] * 4, clipped=c, change=c) for c in (1.0, 0.4, 0.2)]
    verdict = judge(*clipped)
    assert (verdict.status, verdict.fault) == ("fail", "accumulation_not_averaged")
    assert "clip_grad_norm_ shortens it at 2 of them, as if its limit were 0.250 times as large" in verdict.headline
    unused = judge(*[window(*[1.0] * 4, clipped=1.0)] * 3)
    assert unused.status == "advice"
    assert "clip_grad_norm_ did not act" in unused.headline


def test_groups_that_are_clipped_apart_have_no_single_factor():
    assert judge(*[window(*[1.0] * 4, clipped=0.02, change=None)] * 3).status == "fail"


def test_num_items_in_batch_is_ignored():
    backwards = tuple(Backward(0.7, (Term("cross_entropy", "mean", 8, 1.0),), 8, num_items=True) for _ in range(4))
    verdict = judge(*[Window(i, backwards, change=1.0) for i in range(3)], optimizer=SGD)
    assert verdict.fault == "num_items_ignored"
    assert "accepts_loss_kwargs = False" in verdict.remedy


def test_divided_twice():
    verdict = judge(*[window(*[1 / 16] * 4)] * 3, optimizer=SGD)
    assert (verdict.status, verdict.fault) == ("fail", "accumulation_divided_twice")
    assert "0.250 times the mean" in verdict.headline
    assert judge(*[window(*[0.25] * 4, change=0.25)] * 3, optimizer=SGD).fault == "accumulation_divided_twice"
    assert judge(*[window(*[1 / 16] * 4)] * 3).status == "advice"


@pytest.mark.parametrize(("factor", "operation"), [(8.0, "multiplied by"), (1 / 8, "divided by")])
def test_scaled_by_the_number_of_processes(factor, operation):
    verdict = judge(*[window(factor)] * 3, optimizer=SGD, ranks=8)
    assert (verdict.status, verdict.fault) == ("fail", "loss_scaled_by_ranks")
    assert operation in verdict.causes[0]
    assert judge(*[window(factor)] * 3, optimizer=SGD).status == "pass"
    assert judge(*[window(factor, change=None)] * 3, optimizer=SGD, ranks=8).status == "skipped"  # reduced by hand


def test_a_loss_scale_that_is_never_undone():
    verdict = judge(*[window(65536.0)] * 3, optimizer=SGD)
    assert (verdict.status, verdict.fault) == ("fail", "grads_still_scaled")
    assert "2^16" in verdict.headline
    assert judge(*[window(128.0)] * 3, optimizer=SGD).status == "pass"
    assert judge(*[window(256.0, items=256.0, reduction="sum", rows=256)] * 3, optimizer=SGD).status == "pass"


@pytest.mark.parametrize(("items", "status"), [((2.0, 40.0), "fail"), ((4.0, 40.0), "fail"), ((8.0, 40.0), "pass")])
def test_uneven_micro_batches(items, status):
    """An effective sample size of 4 n m / (n + m)^2: 18 %, 33 % and 56 %."""
    verdict = judge(*[window(0.5, 0.5, items=items)] * 3)
    assert verdict.status == status
    if status == "fail":
        assert verdict.fault == "uneven_micro_batches_averaged"
        assert f"{items[0]:.2f} to 40.0 label positions" in verdict.headline
    else:
        assert "an effective sample size of 56 %" in verdict.notes[0]


def test_one_row_a_micro_batch_may_mean_that_rows_count_the_same():
    verdict = judge(*[window(0.5, 0.5, items=(2.0, 40.0), rows=1)] * 3)
    assert verdict.status == "pass"
    assert "each micro-batch counts the same" in verdict.notes[0]


# ---------------------------------------------------------------------- both sides of each limit
@pytest.mark.parametrize(("factor", "status"), [(4.07, "fail"), (4.09, "pass"), (3.93, "fail"), (3.91, "pass")])
def test_two_per_cent(factor, status):
    assert judge(*[window(*[factor / 4] * 4)] * 3, optimizer=SGD).status == status


def test_one_step_is_too_few():
    verdict = judge(SUMMED[0], optimizer=SGD)
    assert verdict.status == "inconclusive"
    assert "one step is too few" in verdict.headline


# ---------------------------------------------------------------------- not judged
@pytest.mark.parametrize(
    ("windows", "reason"),
    [
        ([dataclasses.replace(SUMMED[0], disturbed=True)] * 3, "gradients of an earlier step"),
        ([dataclasses.replace(SUMMED[0], places=2)] * 3, "from several lines"),
        ([Window(0, (Backward(0.7, ()),), change=1.0)] * 3, "without the losses of torch"),
        ([window(0.3), window(0.6), window(3.0)], "no constant multiple"),
        ([window(*[1.0] * 4, change=c) for c in (0.3, 0.1, 0.7)], "something other than clip_grad_norm_"),
        ([window(*[1.0] * 4, change=None)] * 3, "something other than clip_grad_norm_"),
        ([window(float("nan"))] * 3, "not finite"),
        ([window(-1.0)] * 3, "zero or less"),
    ],
)
def test_what_is_not_judged_says_why(windows, reason):
    verdict = judge(*windows, optimizer=SGD)
    assert verdict.status == "skipped"
    assert reason in verdict.headline
    assert not verdict.unmeasured


def test_several_losses_of_the_same_rows_are_no_micro_batches():
    """Adversarial training backpropagates twice for the same rows."""
    term = (Term("cross_entropy", "mean", 8, 1.0),)
    twice = Window(0, (Backward(0.7, term, 8), Backward(0.7, term, 8, repeated=True)), change=1.0)
    assert judge(*[twice] * 3, optimizer=SGD).status == "skipped"


def test_the_mean_passes_from_wherever_it_is_backpropagated():
    """Lightning calls backward() for the last micro-batch inside the optimizer's step, for the others outside of it."""
    assert judge(*[dataclasses.replace(window(*[0.25] * 4), places=2)] * 3, optimizer=SGD).status == "pass"
    twice = judge(*[dataclasses.replace(window(*[1 / 16] * 4), places=2)] * 3, optimizer=SGD)
    assert twice.fault == "accumulation_divided_twice"  # losses that are meant to be added up do not explain that


def test_without_a_measurement_nothing_is_judged():
    verdict = diagnose(example_trace())
    found = next(v for v in verdict.verdicts if v.check == "loss_scale")
    assert found.status == "skipped"
    assert found.unmeasured == "loss_scale"


def test_without_a_step_there_is_nothing_to_judge():
    verdict = judge()
    assert verdict.status == "skipped"
    assert "no step of an optimizer" in verdict.headline
    assert not verdict.unmeasured


def test_the_new_faults_rank_below_those_that_stop_learning():
    stops = FAULTS["optimizer_rebuilt"].rank
    for name in ("num_items_ignored", "loss_scaled_by_ranks", "uneven_micro_batches_averaged"):
        assert stops < FAULTS[name].rank < FAULTS["diverged"].rank
