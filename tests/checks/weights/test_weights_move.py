"""weights_move: every fault is named, every limit holds from both sides, healthy peculiarities pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import Intent, Recipe, check_weights_move, example_trace
from pytest_ftcheck.checks.optimizer.record import OptimizerStart
from pytest_ftcheck.checks.tensor_state import LEAST_SHARE_CHANGED
from pytest_ftcheck.checks.weights.weights_move import (
    LEAST_BUDGET,
    LEAST_SHARE,
    MOST_STEPS,
    steps_to_matter,
)
from pytest_ftcheck.core.example_trace import tensor
from pytest_ftcheck.core.observations import Iteration

GOOD = example_trace()
BUDGET = Recipe().lr_sum()
BASE = ("base_model.layer.0.lin.weight", "base_model.layer.0.lin.bias")
HEAD = ("classifier.weight", "classifier.bias")
ALL = (*BASE, *HEAD)


def changed(names, trace=GOOD, *, motion=None, gradients=None, **fields):
    """The trace with some tensors changed."""

    def change(t):
        if t.name not in names:
            return t
        return replace(
            t,
            motion=replace(t.motion, **(motion or {})),
            gradients=replace(t.gradients, **(gradients or {})),
            **fields,
        )

    return replace(trace, tensors=tuple(change(t) for t in trace.tensors))


STILL = {"share_changed": 0.0, "rms": 0.0, "largest": 0.0, "by_gradient": 0.0, "by_decay": 0.0, "max_update": 0.0}
DECAYED = {"by_gradient": 0.0, "by_decay": 1e-6, "max_update": 0.0, "share_with_gradient": 0.0}
NONE = {"none": 20, "max_norm": 0.0, "max_rms": 0.0, "first_nonzero": None}
ZERO = {"zero": 20, "max_norm": 0.0, "max_rms": 0.0, "first_nonzero": None}


def test_all_moved():
    verdict = check_weights_move(GOOD)
    assert verdict.status == "pass"
    assert verdict.headline == "4 of 4 tensors moved, by 25 % of their LR budget (rms, median)."
    assert verdict.notes == ()


def test_another_optimizer_has_no_budget():
    sgd = replace(GOOD, optimizer=replace(GOOD.optimizer, name="SGD", family="sgd"))
    assert check_weights_move(sgd).headline == "4 of 4 tensors moved."
    # and none is asked of it
    assert check_weights_move(changed(HEAD, sgd, motion={"by_gradient": 1e-9 * BUDGET})).status == "pass"


# ------------------------------------------------------------------ faults, one by one
def test_not_in_the_optimizer():
    trace = changed(HEAD, motion=STILL, group=None, first_step=None, lr_sum=0.0, lr_peak=0.0)
    trace = replace(
        trace, optimizer=replace(GOOD.optimizer, groups=(replace(GOOD.optimizer.groups[0], tensors=2, not_in_model=0),))
    )
    verdict = check_weights_move(trace)
    assert verdict.status == "fail"
    assert "2 of 4 tensors (the whole head) did not move: they are in no parameter group" in verdict.headline
    assert "(AdamW holds 2 tensors of this model)" in verdict.headline
    assert verdict.fault == "not_in_optimizer"
    assert "add_param_group" in verdict.remedy


def test_stale_copies_in_the_optimizer():
    trace = changed(HEAD, motion=STILL, group=None, lr_sum=0.0)
    groups = (replace(GOOD.optimizer.groups[0], tensors=2, not_in_model=2),)
    verdict = check_weights_move(replace(trace, optimizer=replace(GOOD.optimizer, groups=groups)))
    assert verdict.fault == "stale_optimizer"
    assert "2 tensors that are not in this model" in verdict.headline
    assert "before the layer was replaced" in verdict.causes[0]


def test_a_tensor_that_another_optimizer_moves_is_no_fault():
    assert check_weights_move(changed(HEAD, group=None, lr_sum=0.0, lr_peak=0.0)).status == "pass"


def test_a_learning_rate_of_zero():
    verdict = check_weights_move(changed(HEAD, motion=STILL, lr_sum=0.0, lr_peak=0.0))
    assert verdict.status == "fail"
    assert "2 of 4 tensors (the whole head) did not move: their learning rate was 0." in verdict.headline
    assert "the learning rate was 0 at each of the 20 steps" in verdict.causes[0]
    assert "scheduler" in verdict.causes[0]
    assert {r["LR sum"] for r in verdict.evidence} == {0.0}
    two = (GOOD.optimizer.groups[0], replace(GOOD.optimizer.groups[0], index=1, lr_peak=0.0))
    trace = changed(HEAD, motion=STILL, lr_sum=0.0, lr_peak=0.0, group=1)
    verdict = check_weights_move(replace(trace, optimizer=replace(GOOD.optimizer, groups=two)))
    assert (
        "the learning rate of parameter group 1 was 0 at each of the 20 steps (other groups: up to" in verdict.causes[0]
    )
    assert "set the group's learning rate" in verdict.remedy
    all_zero = tuple(replace(g, lr_peak=0.0) for g in two)
    verdict = check_weights_move(replace(trace, optimizer=replace(GOOD.optimizer, groups=all_zero)))
    assert "a warm-up whose scheduler is never stepped" in verdict.causes[0]


def test_a_learning_rate_of_zero_that_was_requested():
    trace = changed(ALL, replace(GOOD, recipe=Recipe(steps=20, lr=0.0)), motion=STILL, lr_sum=0.0, lr_peak=0.0)
    verdict = check_weights_move(trace)
    assert verdict.status == "fail"
    assert "4 of 4 tensors did not move: their learning rate was 0." in verdict.headline
    assert verdict.causes == ("the run was requested with lr=0",)
    assert "set a learning rate" in verdict.remedy
    # a schedule that stays at zero was not requested
    assert "schedule" in check_weights_move(replace(trace, recipe=Recipe(steps=20))).causes[0]


def test_one_step_at_learning_rate_zero_is_inconclusive():
    trace = changed(ALL, motion=STILL, lr_sum=0.0)
    verdict = check_weights_move(replace(trace, steps=trace.steps[:1]))
    assert verdict.status == "inconclusive"
    assert "was 0 at the only step" in verdict.causes[0]
    assert check_weights_move(replace(trace, steps=trace.steps[:2])).status == "fail"


def test_no_gradient():
    verdict = check_weights_move(changed(BASE, motion=STILL, gradients=NONE))
    assert verdict.status == "fail"
    assert "(the whole base) did not move: no gradient reached them" in verdict.headline
    assert verdict.fault == "cut_below_head"
    verdict = check_weights_move(changed(HEAD, motion=STILL, gradients=NONE))
    assert verdict.fault == "not_in_graph"


def test_zero_gradient():
    verdict = check_weights_move(changed(HEAD, motion=STILL, gradients=ZERO))
    assert verdict.status == "fail"
    assert "(the whole head) did not move: their gradient is exactly zero" in verdict.headline
    assert "dead ReLUs" in verdict.causes[0]


def test_below_a_zero_last_layer_one_step_is_inconclusive():
    """grads_nonzero says the same: the first step frees the layer below only for the second."""
    trace = changed(BASE, motion=STILL, gradients={**ZERO, "zero": 1, "steps": 1})
    verdict = check_weights_move(replace(trace, steps=trace.steps[:1]))
    assert verdict.status == "inconclusive"
    assert "at least 3 steps" in verdict.remedy
    decayed = changed(BASE, motion=DECAYED, gradients={**ZERO, "zero": 2, "steps": 2})
    assert check_weights_move(replace(decayed, steps=trace.steps[:2])).status == "inconclusive"
    assert check_weights_move(replace(decayed, steps=trace.steps[:3])).status == "fail"
    missing = changed(BASE, motion=STILL, gradients={**NONE, "none": 1, "steps": 1})
    assert check_weights_move(replace(missing, steps=trace.steps[:1])).status == "fail"


def test_the_module_whose_input_is_zero_is_named():
    """Its bias learns and its weight gets exactly nothing: what comes before it is silent."""
    names = ("classifier.0.weight", "classifier.0.bias", "classifier.3.weight")
    bias = tensor("classifier.3.bias", "head", shape=(2,))
    layers = [tensor(n, "head", shape=(64,) if n.endswith("bias") else (64, 64)) for n in names]
    trace = replace(GOOD, tensors=(*GOOD.tensors[:2], *layers, bias))
    for motion, verb in ((STILL, "did not move"), (DECAYED, "did not learn")):
        verdict = check_weights_move(changed(names, trace, motion=motion, gradients=ZERO))
        assert verdict.status == "fail"
        assert f"3 of 6 tensors {verb}: " in verdict.headline
        assert verdict.causes[0].startswith("the input of classifier.3 is zero for every row")
        assert "the input of classifier.3" in verdict.remedy
    # a bias that gets none either: nothing is known of its input
    both = changed((*names, bias.name), trace, motion=STILL, gradients=ZERO)
    assert not any("the input of" in c for c in check_weights_move(both).causes)
    # no gradient at all is another fault than one that is zero
    cut = changed(names, trace, motion=STILL, gradients=NONE)
    assert not any("the input of" in c for c in check_weights_move(cut).causes)


@pytest.mark.parametrize(
    ("gradients", "root", "why"),
    [
        (NONE, "not_in_graph", "no gradient reached them"),
        (
            ZERO,
            "gradient_zero",
            "their gradient is exactly zero",
        ),
    ],
)
def test_moved_by_weight_decay_alone(gradients, root, why):
    verdict = check_weights_move(changed(HEAD, motion=DECAYED, gradients=gradients))
    assert verdict.status == "fail"
    assert "(the whole head) did not learn: they were moved by weight decay alone" in verdict.headline
    assert verdict.fault == root  # decay is only what hides it
    assert verdict.causes[1] == f"what moved them (rms 1.00e-06 to 1.00e-06) is weight decay 0.01; {why}"
    assert "0.001 of the summed learning rates" in verdict.limit
    single = check_weights_move(changed(HEAD[:1], motion=DECAYED, gradients=gradients))
    assert "(classifier.weight) did not learn: moved by weight decay alone" in single.headline
    assert any("what moved them (rms 1.00e-06) is weight decay 0.01" in c for c in single.causes)


def test_more_decay_than_gradient():
    verdict = check_weights_move(
        changed(HEAD, motion={"by_gradient": 1e-5 * BUDGET, "by_decay": 1e-3 * BUDGET, "max_update": 1e-9})
    )
    assert "moved by weight decay alone" in verdict.headline
    assert "rms is 0.00800 at most" in verdict.causes[0]
    assert verdict.causes[-1].endswith("is weight decay 0.01; their gradients did less")


@pytest.mark.parametrize(("share", "status"), [(0.99, "fail"), (1.01, "pass")])
def test_the_least_share_of_the_budget(share, status):
    trace = changed(HEAD, motion={"by_gradient": share * LEAST_BUDGET * BUDGET, "by_decay": 0.0, "max_update": 4e-7})
    verdict = check_weights_move(trace)
    assert verdict.status == status
    if status == "fail":
        assert "did not learn: they moved far less than their learning rates allow" in verdict.headline
        assert "0.001 of the summed learning rates" in verdict.limit
        assert "10,000 steps" not in verdict.limit  # only what was violated
        # a gradient of rms 0.008 is a full step to Adam
        assert "0.00800 at most, not small beside the eps of AdamW (1.00e-08)" in verdict.causes[0]
        assert "step by step" in verdict.remedy
        assert verdict.evidence[0]["by gradient/LR sum"] == pytest.approx(share * LEAST_BUDGET)
    assert check_weights_move(trace, min_budget=1e-4).status == "pass"
    assert check_weights_move(trace, min_budget=0.1).status == "fail"


def test_gradients_negligible_beside_eps():
    verdict = check_weights_move(
        changed(
            HEAD,
            motion={"by_gradient": 1e-6 * BUDGET, "by_decay": 0.0, "max_update": 1e-11},
            gradients={"max_rms": 1e-14},
        )
    )
    assert verdict.status == "fail"
    assert "did not learn: their gradients are negligible beside Adam's eps" in verdict.headline
    assert "1.00e-14 at most, small beside the eps of AdamW (1.00e-08)" in verdict.causes[0]
    assert "or the loss is scaled down" in verdict.causes[0]
    assert "0.001 of the summed learning rates" in verdict.limit
    assert {r["why"] for r in verdict.evidence} == {"gradient negligible beside Adam's eps"}


def test_negligible_gradients_are_not_called_weight_decay():
    """Even where decay moved more than they did: the root is the gradient."""
    motion = {"by_gradient": 1e-9 * BUDGET, "by_decay": 1e-3 * BUDGET, "max_update": 1e-14}
    verdict = check_weights_move(changed(HEAD, motion=motion, gradients={"max_rms": 1e-14}))
    assert "negligible beside Adam's eps" in verdict.headline
    assert "decay" not in verdict.headline


def scaled(factor, trace=GOOD):
    """The loss as the probe sees it at the start, beside the standard loss of 0.70."""
    first = replace(trace.probe_loss.points[0], loss=0.70 * factor, reference=0.70)
    return replace(trace, probe_loss=replace(trace.probe_loss, points=(first, *trace.probe_loss.points[1:])))


def test_a_loss_that_is_scaled_down_is_the_root():
    feeble = {
        "motion": {"by_gradient": 1e-6 * BUDGET, "by_decay": 0.0, "max_update": 1e-11},
        "gradients": {"max_rms": 1e-14},
    }
    verdict = check_weights_move(changed(HEAD, scaled(1e-12), **feeble))
    (cause,) = verdict.causes
    for text in ("the loss is scaled down", "7.00e-13", "0.700", "rms 1.00e-14"):
        assert text in cause
    assert "undo the scaling of the loss" in verdict.remedy
    # ... and of weight decay's share, too
    decayed = {
        "motion": {"by_gradient": 1e-5 * BUDGET, "by_decay": 1e-3 * BUDGET, "max_update": 1e-9},
        "gradients": {"max_rms": 1e-9},
    }
    assert "7.00e-13" in check_weights_move(changed(HEAD, scaled(1e-12), **decayed)).causes[0]


@pytest.mark.parametrize(("factor", "named"), [(0.99e-3, True), (1.01e-3, False), (-1e-6, True), (float("nan"), False)])
def test_a_thousandth_of_the_standard_loss_is_scaled_down(factor, named):
    feeble = {
        "motion": {"by_gradient": 1e-6 * BUDGET, "by_decay": 0.0, "max_update": 1e-11},
        "gradients": {"max_rms": 1e-14},
    }
    verdict = check_weights_move(changed(HEAD, scaled(factor), **feeble))
    assert verdict.causes[0].startswith("the loss is scaled down") is named
    assert verdict.status == "fail"


@pytest.mark.parametrize(("factor", "status"), [(1.01, "fail"), (0.99, "pass")])
def test_the_most_steps_for_the_output_to_change(factor, status):
    # 0.02 / (update * sqrt(64)) steps
    update = 0.02 / (8 * MOST_STEPS * factor)
    trace = changed(HEAD, motion={"max_update": update}, lr_sum=1e-8, lr_peak=1e-9)
    trace = changed(HEAD, trace, motion={"by_gradient": 2.5e-9, "by_decay": 0.0})
    verdict = check_weights_move(trace)
    assert verdict.status == status
    if status == "fail":
        assert (
            "(classifier.weight) did not learn: steps negligible beside its size (peak LR 1.00e-09)" in verdict.headline
        )
        assert "the learning rate peaks at 1.00e-09, too small for weights of rms 0.0200" in verdict.causes[0]
        assert verdict.evidence[0]["steps to matter"] == pytest.approx(MOST_STEPS * factor, abs=1)
        assert "10,000 steps" in verdict.limit
        assert "summed learning rates" not in verdict.limit  # only what was violated
    assert check_weights_move(trace, max_steps=1e6).status == "pass"
    assert check_weights_move(trace, max_steps=10).status == "fail"


def test_a_slow_group_is_compared_with_the_others():
    trace = changed(HEAD, motion={"max_update": 1e-12, "by_gradient": 2.5e-10}, lr_sum=1e-9, lr_peak=1e-10, group=1)
    group = GOOD.optimizer.groups[0]
    groups = (group, replace(group, index=1, lr_peak=1e-10))
    verdict = check_weights_move(replace(trace, optimizer=replace(GOOD.optimizer, groups=groups)))
    assert (
        "2 of 4 tensors (the whole head) did not learn: their steps are negligible beside their size (peak LR 1.00e-10)."
        in (verdict.headline)
    )
    assert (
        "parameter group 1 peaks at LR 1.00e-10 (other groups: up to 5.00e-05), too small for weights of rms 0.0200"
        in verdict.causes[0]
    )
    # the bias has no fan-in to measure it by, and the learning rate is the group's
    assert {r["tensor"]: r["steps to matter"] for r in verdict.evidence} == {
        "classifier.weight": pytest.approx(2.5e9, rel=1e-3),
        "classifier.bias": None,
    }


def test_the_bias_of_a_group_counts_only_where_all_its_matrices_are_slow():
    slow = {"max_update": 1e-12, "by_gradient": 2.5e-10}
    rate = {"lr_sum": 1e-9, "lr_peak": 1e-10, "group": 1}
    second = replace(GOOD, tensors=(*GOOD.tensors, tensor("classifier.2.weight", "head", group=1)))
    verdict = check_weights_move(changed(HEAD, second, motion=slow, **rate))
    assert [r["tensor"] for r in verdict.evidence] == ["classifier.weight"]
    # nor does rounding noise: it would not learn at any rate
    noisy = changed(HEAD[1:], changed(HEAD, motion=slow, **rate), gradients={"noise": 0.8})
    assert [r["tensor"] for r in check_weights_move(noisy).evidence] == ["classifier.weight"]


def test_the_peak_learning_rate_is_that_of_the_slow_tensors():
    """Another fault beside it lies in a group with a learning rate of its own."""
    motion = {"max_update": 1e-12, "by_gradient": 2.5e-10}
    trace = changed(HEAD, motion=motion, lr_sum=1e-9, lr_peak=1e-10, group=1)
    trace = changed(BASE[:1], trace, motion={"share_changed": 0.1}, dtype="bfloat16")
    verdict = check_weights_move(trace)
    assert (
        "3 of 4 tensors did not learn: their steps are negligible beside their size (peak LR 1.00e-10)"
        in verdict.headline
    )
    assert any("bfloat16 cannot add" in c for c in verdict.causes[1:])


def test_slow_under_another_optimizer():
    verdict = check_weights_move(changed(HEAD, motion={"max_update": 1e-12}, lr_sum=0.0, lr_peak=0.0, group=None))
    assert "1 of 4 tensors (classifier.weight) did not learn: steps negligible beside its size." in verdict.headline
    assert "another optimizer than AdamW moves them, by rms 1.00e-12 a step at most" in verdict.causes[0]
    assert "weights of rms 0.0200" in verdict.causes[0]


def test_without_adam_all_matrices_must_be_slow_and_then_it_is_inconclusive():
    sgd = replace(GOOD, optimizer=replace(GOOD.optimizer, name="SGD", family="sgd"))
    sgd = replace(sgd, tensors=(*sgd.tensors, tensor("classifier.2.weight", "head")))
    slow = {"max_update": 1e-9}
    assert check_weights_move(changed(HEAD, sgd, motion=slow)).status == "pass"
    head = (*HEAD, "classifier.2.weight")
    assert check_weights_move(changed(head, sgd, motion=slow)).status == "pass"  # the base is fast
    embedding = tensor("base_model.words.weight", "base", role="embedding")
    for trace in (sgd, replace(sgd, tensors=(embedding, *sgd.tensors))):  # a table is no matrix that could be fast
        verdict = check_weights_move(changed((*BASE, *head), trace, motion=slow))
        assert verdict.status == "inconclusive"
        assert "their steps are negligible beside their size" in verdict.headline
        assert "the gradients are" in verdict.remedy
    adam = replace(sgd, optimizer=GOOD.optimizer)
    assert check_weights_move(changed(HEAD, adam, motion=slow)).status == "fail"


@pytest.mark.parametrize(("share", "status"), [(0.99, "fail"), (1.01, "pass")])
def test_without_adam_a_group_far_below_another_is_slow(share, status):
    groups = (GOOD.optimizer.groups[0], replace(GOOD.optimizer.groups[0], index=1))
    sgd = replace(GOOD, optimizer=replace(GOOD.optimizer, name="SGD", family="sgd", groups=groups))
    peak = share * LEAST_SHARE * groups[0].lr_peak
    verdict = check_weights_move(changed(HEAD, sgd, motion={"max_update": 1e-9}, group=1, lr_peak=peak))
    assert verdict.status == status
    if status == "fail":
        assert "2 of 4 tensors (the whole head) did not learn" in verdict.headline
        assert "parameter group 1 peaks at" in verdict.causes[0]


RISING = [1e-9 * (i + 1) / 20 for i in range(20)]


@pytest.mark.parametrize(
    ("rates", "open_"),
    [
        (RISING, True),
        ([5e-10, *[1e-9] * 19], True),
        ([5.1e-10, *[1e-9] * 19], False),  # no rise to speak of
        ([1e-9] * 20, False),
        ([*RISING[:-1], RISING[-2] * 0.99], False),  # past its peak
        ([1e-9, 1e-3] * 10, False),  # another optimizer's steps between
    ],
)
@pytest.mark.parametrize(("family", "else_"), [("adam", "fail"), ("sgd", "inconclusive")])
def test_a_warm_up_that_still_rises_is_inconclusive(rates, open_, family, else_):
    steps = tuple(replace(s, lrs=(r,)) for s, r in zip(GOOD.steps, rates, strict=True))
    peak = max(r for r in rates if r < 1e-4)
    groups = (replace(GOOD.optimizer.groups[0], lr_peak=peak),)
    trace = replace(GOOD, steps=steps, optimizer=replace(GOOD.optimizer, family=family, groups=groups))
    small = {"max_update": 1e-9, "by_gradient": 2.5e-9}
    verdict = check_weights_move(changed(ALL, trace, motion=small, lr_peak=peak, lr_sum=1e-8))
    assert verdict.status == ("inconclusive" if open_ else else_)
    assert ("the warm-up is still under way" in verdict.remedy) is open_


@pytest.mark.parametrize(("share", "status"), [(0.99, "fail"), (1.01, "pass")])
def test_a_displacement_that_cancelled_is_no_budget_fault(share, status):
    """A bias of two elements may come back to where it was: the largest single step tells."""
    update = share * 10 * LEAST_BUDGET * Recipe().lr
    trace = changed(HEAD[1:], motion={"by_gradient": 1e-5 * BUDGET, "by_decay": 0.0, "max_update": update})
    assert check_weights_move(trace).status == status


def test_another_optimizers_tensor_has_no_budget_of_ours():
    """Its learning rates are known, but not what they mean: it may be SGD beside Adam."""
    trace = changed(HEAD, motion={"by_gradient": 1e-5 * BUDGET, "max_update": 4e-7}, group=None)
    assert check_weights_move(trace).status == "pass"
    assert check_weights_move(changed(HEAD, trace, group=0)).status == "fail"


def test_a_tensor_without_elements_is_not_judged():
    empty = tensor("classifier.extra", "head", shape=(0,))
    trace = changed((empty.name,), replace(GOOD, tensors=(*GOOD.tensors, empty)), motion=STILL, gradients=NONE)
    assert check_weights_move(trace).headline.startswith("4 of 4 tensors moved")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("share", "status"), [(0.99, "fail"), (1.01, "pass")])
def test_updates_rounded_away(dtype, share, status):
    verdict = check_weights_move(changed(HEAD[:1], motion={"share_changed": share * LEAST_SHARE_CHANGED}, dtype=dtype))
    assert verdict.status == status
    if status == "fail":
        assert "(classifier.weight) did not move: updates rounded away" in verdict.headline
        assert verdict.limit == f"at least 50 % of the elements of a matrix move in {dtype}"
        assert verdict.evidence[0]["moved"] == "50 %"
        assert f"{dtype} cannot add an update of 5.00e-05 to weights of rms 0.0200" in verdict.causes[0]
        assert "keep the parameters in float32" in verdict.remedy


def test_float32_does_not_round_updates_away():
    assert check_weights_move(changed(HEAD[:1], motion={"share_changed": 0.1})).status == "pass"


def test_norms_and_biases_that_low_precision_cannot_move_are_a_note():
    verdict = check_weights_move(changed(HEAD[1:], motion={"share_changed": 0.0}, dtype="bfloat16"))
    assert verdict.status == "pass"
    assert "3 of 4 tensors moved" in verdict.headline
    assert any("cannot move in this dtype: classifier.bias" in n for n in verdict.notes)


BACK = {"share_changed": 0.0, "between_steps": 1e-3, "between_steps_writes": 19, "projections": 19, "roundings": 19}


def test_norms_and_biases_that_the_loop_rounds_back_are_a_note():
    verdict = check_weights_move(changed(HEAD[1:], motion=BACK))
    assert verdict.status == "pass"
    assert any("cannot move by steps this short: they are rounded back: classifier.bias" in n for n in verdict.notes)


def test_matrices_that_the_loop_rounds_back():
    verdict = check_weights_move(changed(HEAD, motion=BACK))
    assert (verdict.status, verdict.fault) == ("fail", "weights_rounded")
    assert "moved by the optimizer, then rounded back (steps of rms 4.00e-05)" in verdict.headline
    assert check_weights_move(changed(HEAD, motion={**BACK, "roundings": 18})).fault == "weights_overwritten"


@pytest.mark.parametrize(
    "fields", [{"motion": {**STILL, "max_update": 4e-5, "between_steps": 1e-3}}, {"motion": STILL, "replaced": True}]
)
def test_reset_between_the_steps(fields):
    verdict = check_weights_move(changed(HEAD, **fields))
    assert verdict.status == "fail"
    assert verdict.fault == "weights_overwritten"
    assert "did not move: the optimizer moved them, then they were reset" in verdict.headline
    assert "EMA" in verdict.causes[0]
    assert ("(steps of rms 4.00e-05)" in verdict.headline) is bool(fields["motion"]["max_update"])
    assert "rms 0" not in verdict.headline
    assert {r["why"] for r in verdict.evidence} == {"moved by the optimizer, then reset"}


@pytest.mark.parametrize(("names", "status"), [(HEAD[:1], "pass"), (HEAD, "fail")])
def test_tensors_that_are_pruned_whole(names, status):
    """AdaLoRA sets singular values to zero again, which they were at the start; a loop that undoes its steps does so to all."""
    zero = replace(GOOD.tensors[0].first, rms=0.0)
    began = changed(HEAD, first=zero, motion={"between_steps_writes": 3, "between_steps": 1e-3})
    verdict = check_weights_move(changed(names, began, last=zero, motion={**STILL, "max_update": 4e-5}))
    assert verdict.status == status
    assert verdict.fault == ("weights_overwritten" if status == "fail" else "")


def test_unexplained():
    verdict = check_weights_move(changed(HEAD, motion=STILL))
    assert verdict.status == "fail"
    assert "(the whole head) did not move: nothing changed them" in verdict.headline
    assert verdict.fault == "weights_still"
    assert "AdamW.step() may not write to classifier.weight" in verdict.causes[0]


def test_several_faults_are_all_listed_and_the_commonest_leads():
    trace = changed(HEAD[:1], changed(BASE, motion=STILL, gradients=NONE), motion=STILL, lr_sum=0.0)
    verdict = check_weights_move(trace)
    assert "3 of 4 tensors did not move: no gradient reached them" in verdict.headline
    assert verdict.fault == "cut_below_head"
    assert any("learning rate was 0 at each of the 20 steps" in c for c in verdict.causes[1:])
    assert verdict.evidence[0]["why"] == "learning rate 0"
    assert verdict.evidence[0]["tensor"] == "classifier.weight"  # the head first
    assert len(verdict.evidence) == 3


def test_a_single_tensor_is_named():
    assert (
        "1 of 4 tensors (classifier.weight) did not move"
        in check_weights_move(changed(HEAD[:1], motion=STILL)).headline
    )


# ------------------------------------------------------------------ healthy peculiarities
def test_rounding_noise_is_exempt():
    verdict = check_weights_move(changed(BASE[1:], motion=STILL, gradients={"noise": 0.8}))
    assert verdict.status == "pass"
    assert any("1 tensor exempt" in n and BASE[1] in n for n in verdict.notes)


def test_rounding_noise_does_not_show_that_a_block_learns():
    """The key biases of a base whose real tensors are all negligible: exempt themselves, and no excuse for the others."""
    weights = [f"base_model.layer.{i}.{m}.weight" for i in (0, 1) for m in ("q", "k")]
    keys = [f"base_model.layer.{i}.k.bias" for i in (0, 1)]
    trace = replace(
        GOOD,
        tensors=(
            *(tensor(n, "base") for n in weights),
            *(tensor(n, "base", shape=(64,)) for n in keys),
            *GOOD.tensors[2:],
        ),
    )
    trace = changed(keys, trace, gradients={"noise": 0.8, "max_rms": 1e-16})
    negligible = {
        "motion": {"by_gradient": 1e-6 * BUDGET, "by_decay": 0.0, "max_update": 1e-11},
        "gradients": {"max_rms": 1e-14},
    }
    for fields, why in (
        (negligible, "their gradients are negligible beside Adam's eps"),
        ({"motion": STILL, "gradients": NONE}, "no gradient reached them"),
        ({"motion": STILL, "gradients": ZERO}, "their gradient is exactly zero"),
    ):
        verdict = check_weights_move(changed(weights, trace, **fields), part="base")
        assert verdict.status == "fail"
        assert verdict.headline.startswith("4 of 6 base tensors did not ")
        assert why in verdict.headline
        assert [r["tensor"] for r in verdict.evidence] == sorted(weights)
        assert any("2 tensors exempt" in n and "layer.0.k.bias and others" in n for n in verdict.notes)


def test_a_second_stack_of_blocks_beside_one_that_learns_is_a_note():
    """Canine: the head reads one encoder; the blocks of the other take no part."""
    spare = [f"base_model.final_encoder.layer.{i}.lin.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")]
    tensors = [tensor(n, "base", shape=(64,) if n.endswith("bias") else (64, 64)) for n in spare]
    trace = replace(GOOD, tensors=(*GOOD.tensors, *tensors))
    verdict = check_weights_move(changed(spare, trace, motion=STILL, gradients=NONE))
    assert verdict.status == "pass"
    assert "4 of 8 tensors moved" in verdict.headline
    assert any("4 base tensors without gradient" in n and "final_encoder.layer.0" in n for n in verdict.notes)
    # one block of it alone: a cut between neighbours
    verdict = check_weights_move(changed(spare[:2], trace, motion=STILL, gradients=NONE))
    assert verdict.status == "fail"
    assert verdict.headline.startswith("2 of 8 tensors did not move: no gradient reached them")


def test_a_pooler_that_nothing_reads_is_a_note():
    spare = tensor("base_model.pooler.weight", "base")
    trace = changed((spare.name,), replace(GOOD, tensors=(*GOOD.tensors, spare)), motion=STILL, gradients=NONE)
    verdict = check_weights_move(trace)
    assert verdict.status == "pass"
    assert "4 of 5 tensors moved" in verdict.headline
    assert any("base_model.pooler.weight" in n and "freeze them" in n for n in verdict.notes)


def test_an_embedding_whose_sampled_rows_no_word_asked_for():
    embedding = tensor("base_model.words.weight", "base", role="embedding")
    trace = changed(
        (embedding.name,),
        replace(GOOD, tensors=(*GOOD.tensors, embedding)),
        motion={**STILL, "share_with_gradient": 0.0},
    )
    assert check_weights_move(trace).status == "pass"


def test_a_matrix_that_started_at_zero_is_not_slow():
    trace = changed(HEAD[:1], motion={"max_update": 1e-12}, first=replace(GOOD.tensors[0].first, rms=0.0))
    assert check_weights_move(trace).status == "pass"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0.02 / (4e-5 * 8)),
        ({"shape": (64,)}, None),
        ({"role": "embedding"}, None),
        ({"role": "bias"}, None),  # one a head, as in XLNet
        ({"shape": (8, 4, 2, 2)}, 0.02 / (4e-5 * 4)),
        ({"shape": (8, 8)}, 0.02 / (4e-5 * 8**0.5)),
        ({"shape": (8, 7)}, None),  # gains, or a few features: no layer
    ],
)
def test_steps_to_matter(fields, expected):
    t = tensor("w.weight", "head", **fields)
    assert steps_to_matter(t) == (None if expected is None else pytest.approx(expected))
    assert steps_to_matter(replace(t, motion=replace(t.motion, max_update=0.0))) is None


def test_writes_between_the_steps_are_a_note():
    verdict = check_weights_move(changed(HEAD[:1], motion={"between_steps": 0.02 * GOOD.tensors[2].motion.rms}))
    assert verdict.status == "pass"
    assert any("1 tensor also changed between optimizer steps" in n for n in verdict.notes)
    assert (
        check_weights_move(changed(HEAD[:1], motion={"between_steps": 0.005 * GOOD.tensors[2].motion.rms})).notes == ()
    )


def test_frozen_tensors_are_judged_only_where_nothing_else_is_selected():
    frozen = changed(BASE, motion=STILL, gradients=NONE, trainable=False, trainable_last=False, group=None)
    assert check_weights_move(frozen).headline.startswith("2 of 2 tensors moved")
    asked = check_weights_move(frozen, "base")
    assert asked.status == "fail"
    assert "All of the 2 base tensors are frozen (requires_grad=False)" in asked.headline
    assert "assert_frozen_stay_frozen" in asked.remedy
    head = changed(HEAD, motion=STILL, gradients=NONE, trainable=False, trainable_last=False, group=None)
    noted = check_weights_move(head)
    assert noted.status == "pass"
    assert any("the whole head is frozen (2 tensors" in n for n in noted.notes)


def test_nonfinite_gradients_are_for_another_check():
    assert check_weights_move(changed(HEAD, gradients={"nonfinite": 3, "first_nonfinite": 2})).status == "pass"


# ------------------------------------------------------------------ arguments
def test_a_part_is_judged_alone():
    trace = changed(HEAD, motion=STILL)
    assert check_weights_move(trace, "base").status == "pass"
    assert check_weights_move(trace, "head").status == "fail"
    assert check_weights_move(trace, ignore="classifier").status == "pass"
    assert check_weights_move(trace, include="*.bias").status == "fail"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"min_budget": 0}, ValueError),
        ({"min_budget": 1}, ValueError),
        ({"min_budget": "0.1"}, TypeError),
        ({"max_steps": 0}, ValueError),
        ({"max_steps": float("nan")}, ValueError),
        ({"max_steps": True}, TypeError),
        ({"part": "tail"}, ValueError),
    ],
)
def test_bad_arguments(arguments, error):
    with pytest.raises(error, match=r"min_budget=|max_steps=|part="):
        check_weights_move(GOOD, **arguments)


def test_no_step():
    verdict = check_weights_move(replace(GOOD, steps=()))
    assert verdict.status == "fail"
    assert verdict.headline == "No optimizer step was taken in 20 iterations."
    cut = replace(GOOD, steps=(), iterations=(Iteration(None, None, 0, True, "no graph"),))
    assert check_weights_move(cut).causes == ("no graph",)


def test_wording():
    assert str(check_weights_move(changed(HEAD, motion=STILL, lr_sum=0.0, lr_peak=0.0))).splitlines() == [
        "weights_move: FAIL. 2 of 4 tensors (the whole head) did not move: their learning rate was 0.",
        "  tensor             moved  by decay  LR sum  why",
        "  classifier.bias      0 %         0       0  learning rate 0",
        "  classifier.weight    0 %         0       0  learning rate 0",
        "  cause: the learning rate was 0 at each of the 20 steps: lr=0, a warm-up whose scheduler is never "
        "stepped, or a schedule that had already ended",
        "  do: step the scheduler after each optimizer step; print scheduler.get_last_lr() over the first steps",
        "  limit: every tensor that should learn moves",
        "  measured: elementwise, before against after 20 steps; all elements of the head, a fixed sample elsewhere",
    ]


def test_what_is_declared_to_learn_and_is_frozen_did_not_move():
    frozen = changed(["classifier.weight", "classifier.bias"], trainable=False, trainable_last=False)
    assert check_weights_move(frozen).status == "pass"
    verdict = check_weights_move(replace(frozen, intent=Intent(trained="")))
    assert (verdict.status, verdict.fault) == ("fail", "frozen_by_mistake")
    assert "they are frozen (requires_grad=False)" in verdict.headline


@pytest.mark.parametrize("field", ["frozen", "unused"])
def test_what_is_declared_frozen_or_unused_is_not_judged(field):
    still = changed(
        ["base_model.layer.0.lin.weight", "base_model.layer.0.lin.bias"],
        motion=STILL,
        gradients=NONE,
    )
    assert check_weights_move(still).status == "fail"
    declared = replace(still, intent=Intent(**{field: "base_model"}))
    assert check_weights_move(declared).status == "pass"
    assert check_weights_move(declared, "base").status == "skipped"


def test_what_is_still_to_be_unfrozen_is_not_judged():
    names = ["base_model.layer.0.lin.weight", "base_model.layer.0.lin.bias"]
    frozen = changed(names, trainable=False, trainable_last=False)
    assert check_weights_move(replace(frozen, intent=Intent(trained="", thaw_step=20))).status == "pass"
    assert check_weights_move(replace(frozen, intent=Intent(trained="", thaw_step=19))).fault == "frozen_by_mistake"


def test_the_fault_is_named():
    assert (
        check_weights_move(changed(["classifier.weight"], motion=STILL, gradients=NONE, group=None)).fault
        == "not_in_optimizer"
    )
    assert check_weights_move(changed(["classifier.weight"], motion=STILL, lr_sum=0.0, lr_peak=0.0)).fault == "lr_zero"
    assert check_weights_move(GOOD).fault == ""


# ------------------------------------------------------------------ a learning rate for Adam under SGD
def slow_sgd(*, lr=2e-5, momentum=0.0, first=0.70, last=0.69999, prior=0.6931):
    """Every matrix needs 50,000 steps; the loss stands still."""
    trace = example_trace()
    group = replace(trace.optimizer.groups[0], lr_peak=lr, settings={"momentum": momentum})
    probe = replace(
        trace.probe_loss,
        points=(
            replace(trace.probe_loss.points[0], loss=first),
            replace(trace.probe_loss.points[-1], loss=last),
        ),
        prior_entropy=prior,
    )
    tensors = tuple(
        replace(t, lr_peak=lr, motion=replace(t.motion, max_update=t.first.rms / 8 / 50_000, by_gradient=1e-6))
        for t in trace.tensors
    )
    optimizer = replace(trace.optimizer, name="SGD", family="sgd", groups=(group,))
    return replace(trace, optimizer=optimizer, probe_loss=probe, tensors=tensors)


def test_sgd_at_a_rate_for_adam_that_gains_nothing_fails():
    verdict = check_weights_move(slow_sgd())
    assert (verdict.status, verdict.fault) == ("fail", "lr_too_small")


@pytest.mark.parametrize(
    "how",
    [
        {"lr": 1e-2},
        {"momentum": 0.95},
        {"first": 0.01, "last": 0.01},
        {"last": 0.6999},  # 0.0001 in 20 steps are 0.05 in 10,000
        {"prior": None},
    ],
)
def test_sgd_that_may_yet_be_healthy_is_inconclusive(how):
    assert check_weights_move(slow_sgd(**how)).status == "inconclusive"


@pytest.mark.parametrize(("before", "status"), [(0, "inconclusive"), (6, "fail")])
def test_one_step_at_rate_zero_is_a_warm_up_or_the_end_of_a_schedule(before, status):
    still = [replace(t, motion=replace(t.motion, **STILL), lr_sum=0.0, lr_peak=0.0) for t in GOOD.tensors]
    trace = replace(GOOD, tensors=tuple(still), steps=GOOD.steps[:1], recipe=None)
    trace = replace(trace, measurements={"optimizer_start": OptimizerStart(before, before)})
    verdict = check_weights_move(trace)
    assert verdict.status == status
    assert ("had taken 6 steps before" in str(verdict)) == bool(before)
