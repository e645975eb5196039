"""weights_move: every fault has its own words, every limit holds from both sides, healthy peculiarities pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import Recipe, check_weights_move, example_trace
from pytest_ftcheck.checks.weights import LEAST_BUDGET, LEAST_MOVED, MOST_STEPS, steps_to_matter
from pytest_ftcheck.examples import tensor
from pytest_ftcheck.trace import Iteration

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


STILL = {"moved": 0.0, "rms": 0.0, "largest": 0.0, "by_gradient": 0.0, "by_decay": 0.0, "max_update": 0.0}
DECAYED = {"by_gradient": 0.0, "by_decay": 1e-6, "max_update": 0.0, "touched": 0.0}
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
    trace = changed(HEAD, motion=STILL, group=None, since=None, lr_sum=0.0, lr_peak=0.0)
    trace = replace(
        trace, optimizer=replace(GOOD.optimizer, groups=(replace(GOOD.optimizer.groups[0], tensors=2, foreign=0),))
    )
    verdict = check_weights_move(trace)
    assert verdict.status == "fail"
    assert "2 of 4 tensors (the whole head) did not move: in no parameter group" in verdict.headline
    assert "AdamW holds 2 tensors of this model" in verdict.headline
    assert "built without them" in verdict.causes[0]
    assert "add_param_group" in verdict.remedy


def test_stale_copies_in_the_optimizer():
    trace = changed(HEAD, motion=STILL, group=None, lr_sum=0.0)
    groups = (replace(GOOD.optimizer.groups[0], tensors=2, foreign=2),)
    verdict = check_weights_move(replace(trace, optimizer=replace(GOOD.optimizer, groups=groups)))
    assert "AdamW holds 2 tensors that are not in this model" in verdict.causes[0]
    assert "before the layer was replaced" in verdict.causes[0]


def test_moved_by_another_optimizer_is_not_out():
    assert check_weights_move(changed(HEAD, group=None, lr_sum=0.0, lr_peak=0.0)).status == "pass"


def test_a_learning_rate_of_zero():
    verdict = check_weights_move(changed(HEAD, motion=STILL, lr_sum=0.0, lr_peak=0.0))
    assert verdict.status == "fail"
    assert "the learning rate of its group was 0" in verdict.headline
    assert "at each of the 20 steps of parameter group 0" in verdict.causes[0]


def test_one_step_at_learning_rate_zero_cannot_tell():
    trace = changed(ALL, motion=STILL, lr_sum=0.0)
    assert check_weights_move(replace(trace, steps=trace.steps[:1])).status == "inconclusive"
    assert check_weights_move(replace(trace, steps=trace.steps[:2])).status == "fail"


def test_no_gradient():
    verdict = check_weights_move(changed(BASE, motion=STILL, gradients=NONE))
    assert verdict.status == "fail"
    assert "(the whole base) did not move: no gradient reached it" in verdict.headline
    assert "cut between the base and the head" in verdict.causes[0]
    verdict = check_weights_move(changed(HEAD, motion=STILL, gradients=NONE))
    assert "they take no part in the loss" in verdict.causes[0]


def test_zero_gradient():
    verdict = check_weights_move(changed(HEAD, motion=STILL, gradients=ZERO))
    assert verdict.status == "fail"
    assert "its gradient is exactly zero" in verdict.headline
    assert "dead ReLUs" in verdict.causes[0]


def test_below_a_zero_last_layer_one_step_cannot_tell():
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


@pytest.mark.parametrize("gradients", [NONE, ZERO])
def test_moved_by_weight_decay_alone(gradients):
    verdict = check_weights_move(changed(HEAD, motion=DECAYED, gradients=gradients))
    assert verdict.status == "fail"
    assert "did not learn: moved by weight decay alone" in verdict.headline
    assert (
        "1.00e-06 rms) is weight decay 0.01; gradients moved them by 0: no gradient reaches them" in verdict.causes[0]
    )
    assert "weight decay only hides it" in verdict.remedy


def test_more_decay_than_gradient():
    verdict = check_weights_move(changed(HEAD, motion={"by_gradient": 1e-5 * BUDGET, "by_decay": 1e-3 * BUDGET}))
    assert "moved by weight decay alone" in verdict.headline
    assert "their largest gradient has rms 0.00800" in verdict.causes[0]


@pytest.mark.parametrize(("share", "status"), [(0.99, "fail"), (1.01, "pass")])
def test_the_least_share_of_the_budget(share, status):
    trace = changed(HEAD, motion={"by_gradient": share * LEAST_BUDGET * BUDGET, "by_decay": 0.0})
    verdict = check_weights_move(trace)
    assert verdict.status == status
    if status == "fail":
        assert "moved far less than its learning rate allows" in verdict.headline
        assert "0.001 of the summed learning rates" in verdict.limit
        assert verdict.evidence[0]["by gradient/LR sum"] == pytest.approx(share * LEAST_BUDGET)
    assert check_weights_move(trace, min_budget=1e-4).status == "pass"
    assert check_weights_move(trace, min_budget=0.1).status == "fail"


def test_gradients_negligible_beside_eps():
    verdict = check_weights_move(
        changed(HEAD, motion={"by_gradient": 1e-6 * BUDGET, "by_decay": 0.0}, gradients={"max_rms": 1e-14})
    )
    assert verdict.status == "fail"
    assert "negligible beside Adam's eps" in verdict.headline
    assert "rms 1.00e-14 at most" in verdict.causes[0]
    assert "scaled down" in verdict.causes[1]


@pytest.mark.parametrize(("factor", "status"), [(1.01, "fail"), (0.99, "pass")])
def test_the_most_steps_for_the_output_to_change(factor, status):
    # 0.02 / (update * sqrt(64)) steps
    update = 0.02 / (8 * MOST_STEPS * factor)
    trace = changed(HEAD, motion={"max_update": update}, lr_sum=1e-8, lr_peak=1e-9)
    trace = changed(HEAD, trace, motion={"by_gradient": 2.5e-9, "by_decay": 0.0})
    verdict = check_weights_move(trace)
    assert verdict.status == status
    if status == "fail":
        assert "its steps are negligible beside its size (peak LR 1.00e-09)" in verdict.headline
        assert "peaks at 1.00e-09" in verdict.causes[0]
        assert verdict.evidence[0]["steps to matter"] == pytest.approx(MOST_STEPS * factor, abs=1)
        assert "10,000 steps" in verdict.limit
    assert check_weights_move(trace, max_steps=1e6).status == "pass"
    assert check_weights_move(trace, max_steps=10).status == "fail"


def test_a_slow_group_is_compared_with_the_others():
    trace = changed(HEAD, motion={"max_update": 1e-12, "by_gradient": 2.5e-10}, lr_sum=1e-9, lr_peak=1e-10, group=1)
    group = GOOD.optimizer.groups[0]
    groups = (group, replace(group, index=1, lr_peak=1e-10))
    verdict = check_weights_move(replace(trace, optimizer=replace(GOOD.optimizer, groups=groups)))
    assert "parameter group 1 peaks at 1.00e-10; the other groups have up to 5.00e-05" in verdict.causes[0]


def test_without_adam_all_matrices_of_a_part_must_be_slow():
    sgd = replace(GOOD, optimizer=replace(GOOD.optimizer, name="SGD", family="sgd"))
    sgd = replace(sgd, tensors=(*sgd.tensors, tensor("classifier.2.weight", "head")))
    slow = {"max_update": 1e-9}
    assert check_weights_move(changed(HEAD, sgd, motion=slow)).status == "pass"
    assert check_weights_move(changed((*HEAD, "classifier.2.weight"), sgd, motion=slow)).status == "fail"
    adam = replace(sgd, optimizer=GOOD.optimizer)
    assert check_weights_move(changed(HEAD, adam, motion=slow)).status == "fail"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("share", "status"), [(0.99, "fail"), (1.01, "pass")])
def test_updates_rounded_away(dtype, share, status):
    verdict = check_weights_move(changed(HEAD[:1], motion={"moved": share * LEAST_MOVED}, dtype=dtype))
    assert verdict.status == status
    if status == "fail":
        assert "its updates are rounded away" in verdict.headline
        assert f"{dtype} cannot add an update of 5.00e-05 to weights of rms 0.0200" in verdict.causes[0]
        assert "keep the parameters in float32" in verdict.remedy


def test_rounding_is_no_word_for_float32():
    assert check_weights_move(changed(HEAD[:1], motion={"moved": 0.1})).status == "pass"


def test_norms_and_biases_that_low_precision_cannot_move_are_a_note():
    verdict = check_weights_move(changed(HEAD[1:], motion={"moved": 0.0}, dtype="bfloat16"))
    assert verdict.status == "pass"
    assert "3 of 4 tensors moved" in verdict.headline
    assert any("cannot move in this dtype: classifier.bias" in n for n in verdict.notes)


@pytest.mark.parametrize(
    "fields", [{"motion": {**STILL, "max_update": 4e-5, "outside": 1e-3}}, {"motion": STILL, "replaced": True}]
)
def test_put_back_between_the_steps(fields):
    verdict = check_weights_move(changed(HEAD, **fields))
    assert verdict.status == "fail"
    assert "moved by the optimizer, then put back" in verdict.headline
    assert "an EMA" in verdict.causes[0]


def test_what_nothing_explains():
    verdict = check_weights_move(changed(HEAD, motion=STILL))
    assert verdict.status == "fail"
    assert "did not change" in verdict.headline
    assert "nothing that was measured explains it" in verdict.causes[0]


def test_several_faults_are_all_listed_and_the_commonest_leads():
    trace = changed(HEAD[:1], changed(BASE, motion=STILL, gradients=NONE), motion=STILL, lr_sum=0.0)
    verdict = check_weights_move(trace)
    assert "3 of 4 tensors did not move: no gradient reached it" in verdict.headline
    assert any("learning rate was 0" in c for c in verdict.causes[1:])
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
        (embedding.name,), replace(GOOD, tensors=(*GOOD.tensors, embedding)), motion={**STILL, "touched": 0.0}
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
        ({"shape": (8, 4, 2, 2)}, 0.02 / (4e-5 * 4)),
    ],
)
def test_steps_to_matter(fields, expected):
    t = tensor("w.weight", "head", **fields)
    assert steps_to_matter(t) == (None if expected is None else pytest.approx(expected))
    assert steps_to_matter(replace(t, motion=replace(t.motion, max_update=0.0))) is None


def test_writes_between_the_steps_are_a_note():
    verdict = check_weights_move(changed(HEAD[:1], motion={"outside": 0.02 * GOOD.tensors[2].motion.rms}))
    assert verdict.status == "pass"
    assert any("1 tensor also changed between optimizer steps" in n for n in verdict.notes)
    assert check_weights_move(changed(HEAD[:1], motion={"outside": 0.005 * GOOD.tensors[2].motion.rms})).notes == ()


def test_frozen_tensors_are_not_asked():
    frozen = changed(BASE, motion=STILL, gradients=NONE, trainable=False, trainable_last=False, group=None)
    assert check_weights_move(frozen).headline.startswith("2 of 2 tensors moved")
    assert check_weights_move(frozen, "base").status == "skipped"
    assert "all 2 selected tensors are frozen" in check_weights_move(frozen, "base").headline


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


def test_the_message_of_a_failure_has_everything():
    text = str(check_weights_move(changed(HEAD, motion=STILL)))
    for word in ("weights_move: FAIL.", "cause: ", "do: ", "limit: ", "measured: ", *HEAD):
        assert word in text
