"""grads_match_reference on hand-written records: every fault, the edges of the limits, and what it says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import Intent, check_grads_match_reference, check_grads_nonzero, example_trace
from pytest_ftcheck.checks.gradients.grads_match_reference import MINUS
from pytest_ftcheck.checks.gradients.record import (
    Exchange,
    GradientMatch,
    ReferenceGradient,
    ReferenceStep,
    Slope,
    WatchedStep,
)
from pytest_ftcheck.checks.gradients.reference_faults import (
    BACKWARDS,
    LEAST_SCALE,
    NEGATED,
    REVERSED,
    SAME,
    UNCLIPPED,
)
from pytest_ftcheck.checks.loss.record import LossShape
from pytest_ftcheck.core.observations import Iteration

GOOD = example_trace()
SGD = replace(GOOD, optimizer=replace(GOOD.optimizer, name="SGD", family="sgd"))


def step(number, *, batches=1, trace=GOOD, loss_factor=1.0, names=("all",), **changes):
    """A step whose gradient is as it should be; changes go to the match of the parts named."""
    first = number * batches
    iterations = tuple(range(first, first + batches))
    fields = {"reference": float(batches), "actual": 1.0, "cosine": 1.0}
    match = {k: changes.pop(k) for k in list(changes) if k in GradientMatch.__dataclass_fields__}
    parts = tuple(
        GradientMatch(name, **{**fields, **(match if name in names else {})}) for name in ("head", "base", "all")
    )
    losses = tuple(trace.iterations[i].loss / loss_factor for i in iterations)
    whole = ReferenceStep(number, iterations, losses, 4, 4, 0, 0, missing=(), parts=parts)
    return replace(whole, **changes)


def judged(*steps, trace=GOOD, intent=None, **record):
    record.setdefault("loss_connected", True)
    return check_grads_match_reference(
        replace(trace, intent=intent, measurements={"reference": ReferenceGradient(steps=steps, **record)})
    )


def accumulated(k, trace=GOOD):
    """The same trace with a step at every k-th iteration."""
    iterations = tuple(
        Iteration(0.7 - 0.005 * i, i // k if i % k == k - 1 else None, int(i % k == k - 1), True) for i in range(20 * k)
    )
    return replace(trace, iterations=iterations)


def outcome(verdict):
    return verdict.status, verdict.fault


def test_not_measured_is_skipped_with_the_reason():
    assert check_grads_match_reference(GOOD).status == "inconclusive"
    trace = replace(GOOD, skipped={"reference": "it raised OSError: no"})
    assert "OSError" in check_grads_match_reference(trace).headline
    verdict = judged(reason="the optimizer needs a closure")
    assert verdict.status == "skipped"
    assert "closure" in verdict.headline


def test_the_gradient_of_the_loss_passes():
    verdict = judged(step(0), step(1), slopes=(Slope("head", 1.01, 1.0, 3e-3),))
    assert verdict.status == "pass"
    assert "At 2 steps" in verdict.headline
    assert "cosine 1.00" in verdict.headline
    assert "1.00 to 1.00 times" in verdict.headline
    assert verdict.notes == ()
    assert [row.get("step") for row in verdict.evidence] == [0, 1, None]


def test_another_direction_is_no_fault_but_a_note():
    verdict = judged(step(0, cosine=0.4), step(1, cosine=0.5))
    assert verdict.status == "pass"
    assert "cosine 0.400 or more" in verdict.headline
    assert "direction" in verdict.notes[0]
    verdict = judged(step(0, cosine=0.4, loss_factor=0.8), step(1, cosine=0.5, loss_factor=1.3))
    assert "another loss" in verdict.notes[0]


@pytest.mark.parametrize("part", ["all", "head", "base"])
def test_a_gradient_with_the_wrong_sign(part):
    verdict = judged(step(0, cosine=-1.0, names=(part,)), step(1, cosine=-0.95, names=(part,)))
    assert outcome(verdict) == ("fail", "grads_negated")
    assert ("gradient of the " + part in verdict.headline) == (part != "all")


def test_how_far_backwards_is_too_far():
    def at(cosine, factors):
        return judged(
            step(0, cosine=cosine, loss_factor=factors[0]), step(1, cosine=cosine, loss_factor=factors[1])
        ).status

    same, other = (1.0, 1.0), (0.7, 1.4)
    assert at(BACKWARDS - 0.01, same) == "fail"
    assert at(BACKWARDS + 0.01, same) == "pass"
    assert at(NEGATED + 0.01, other) == "pass"  # another loss: only the negated gradient itself is sure
    assert at(NEGATED - 0.01, other) == "fail"
    # one good step clears it
    assert judged(step(0, cosine=-1.0), step(1, cosine=0.1)).status == "pass"


def test_gradients_that_add_up():
    steps = [step(0), step(1, cosine=0.7, since_start=1.0), step(2, cosine=0.5, since_start=1.0)]
    verdict = judged(*steps)
    assert outcome(verdict) == ("fail", "grads_never_zeroed")
    assert "At step 2" in verdict.headline
    assert "zero_grad" in verdict.remedy
    assert judged(step(0), step(1, cosine=0.7, since_start=SAME - 0.01)).status == "pass"
    # a base without a gradient at first has the same sum: nothing adds up
    assert judged(step(0), step(1, cosine=1.0, since_start=1.0)).status == "pass"
    assert outcome(judged(step(0), step(1, cosine=0.7, since_start=1.0, names=("base",)))) == (
        "fail",
        "grads_never_zeroed",
    )


def test_lost_batches_need_a_loop_that_accumulates():
    trace = accumulated(4)
    steps = [step(i, batches=4, trace=trace, cosine=0.6, last_batch=1.0) for i in range(2)]
    verdict = judged(*steps, trace=trace)
    assert outcome(verdict) == ("fail", "micro_batches_lost")
    assert "of the 4 batches" in verdict.headline.lower()
    assert "75 %" in verdict.causes[0]
    assert judged(steps[0], trace=trace).status == "fail"
    # steps that a scaler skipped: batches before one step differ in number, and nothing was declared
    uneven = replace(trace, iterations=(trace.iterations[3], *trace.iterations))
    shifted = [replace(s, iterations=tuple(i + 1 for i in s.iterations)) for s in steps]
    assert judged(*shifted, trace=uneven).status == "pass"
    assert judged(*shifted, trace=uneven, intent=Intent(accumulation=4)).status == "fail"
    whole = [step(i, batches=4, trace=trace, cosine=1.0, last_batch=1.0) for i in range(2)]
    assert judged(*whole, trace=trace, intent=Intent(accumulation=4)).status == "pass"


def test_the_gradient_of_the_step_before():
    assert outcome(judged(step(1, cosine=-0.2, previous_step=1.0), step(2, cosine=0.1, previous_step=1.0))) == (
        "fail",
        "grads_one_step_late",
    )
    assert judged(step(1, cosine=1.0, previous_step=1.0), step(2, cosine=1.0, previous_step=1.0)).status == "pass"


def test_nothing_found_where_backward_gives_a_gradient():
    empty = [step(i, names=("all", "head", "base"), actual=0.0, cosine=None, reference=0.35) for i in range(2)]
    verdict = judged(*empty)
    assert outcome(verdict) == ("fail", "grads_gone_before_step")
    assert "norm 0.350" in verdict.headline
    assert judged(empty[0], step(1)).status == "pass"
    cut = [replace(s, backward_reached=False) for s in empty]
    assert outcome(judged(*cut)) == ("fail", "backward_reaches_nothing")
    assert outcome(judged(cut[0], replace(empty[1], backward_reached=True))) == ("fail", "grads_gone_before_step")


@pytest.mark.parametrize(("logits", "words"), [(True, "though the logits do"), (False, "cut inside"), (None, "is cut")])
def test_a_loss_without_a_path(logits, words):
    empty = step(0, names=("all", "head", "base"), actual=0.0, cosine=None, reference=0.0)
    verdict = judged(empty, loss_connected=False, logits_connected=logits)
    assert outcome(verdict) == ("fail", "loss_cut_off")
    assert words in verdict.headline
    # the loop's own loss has a path: then the recomputed one says nothing
    assert judged(step(0, cosine=None, reference=0.0), loss_connected=False).status == "skipped"


def test_nan_that_was_replaced():
    bad = [step(i, nonfinite=3) for i in range(2)]
    verdict = judged(*bad)
    assert outcome(verdict) == ("fail", "nan_gradients_replaced")
    assert "3 of 4 tensors at 2 of 2" in verdict.headline
    assert outcome(judged(step(0, nonfinite=3, actual_nonfinite=3), step(1, nonfinite=3, actual_nonfinite=3)))[1] == ""
    assert judged(step(0, nonfinite=3), step(1), step(2)).status == "pass"  # one such step may be an overflow
    assert judged(step(0, nonfinite=3, loss_factor=0.5), step(1, nonfinite=3, loss_factor=0.7)).status != "fail"


def test_removed_gradients_are_a_fault_only_where_training_was_declared():
    gone = [step(i, missing=("base_model.layer.0.lin.weight",)) for i in range(2)]
    assert judged(*gone).status == "pass"
    verdict = judged(*gone, intent=Intent(trained="base_model"))
    assert outcome(verdict) == ("fail", "grads_removed")
    assert "base_model.layer.0.lin.weight" in verdict.headline
    assert judged(*gone, intent=Intent(trained="classifier")).status == "pass"
    assert judged(*gone, intent=Intent(trained="", frozen="base_model")).status == "pass"
    assert judged(*gone, intent=Intent(trained="base_model", thaw_step=2)).status == "pass"
    assert judged(gone[0], step(1), intent=Intent(trained="base_model")).status == "pass"


def test_the_gradient_of_another_tensor_of_the_same_shape():
    swap = (Exchange("a.weight", "b.weight", 0.43, 1.0), Exchange("b.weight", "a.weight", 0.4, 1.0))
    verdict = judged(*(step(i, exchanged=swap) for i in range(2)))
    assert outcome(verdict) == ("fail", "grads_of_another")
    assert verdict.headline == (
        "2 tensors got the gradient of another tensor at each of 2 recomputed steps: a.weight has that of b.weight (cosine 1.00; with its "
        "own 0.430 at most)."
    )
    assert (
        judged(*(step(i, exchanged=swap, losses=(9.0 + i,)) for i in range(2))).status == "fail"
    )  # whatever the loop's loss is
    assert judged(step(0, exchanged=swap), step(1)).status == "pass"
    assert judged(step(0, exchanged=swap)).status == "pass"


def test_the_gradient_of_another_tensor():
    least_aligned = (GradientMatch("classifier.weight", 1.0, 1.0, -0.02),)
    wrong = [step(i, wrong_direction=("classifier.weight",), least_aligned=least_aligned) for i in range(2)]
    verdict = judged(*wrong)
    assert outcome(verdict) == ("fail", "grads_of_another")
    assert "cosine -0.0200" in verdict.headline
    assert judged(wrong[0], step(1)).status == "pass"
    assert judged(wrong[0]).status == "pass"
    assert judged(*(replace(w, losses=(9.0 + w.step,)) for w in wrong)).status == "pass"


def clipped(norm, trace=GOOD):
    return replace(trace, steps=tuple(replace(s, grad_norm=norm) for s in trace.steps))


def test_clipped_to_less_than_was_declared():
    steps = [step(i, actual=1e-8, reference=0.4) for i in range(3)]
    verdict = judged(*steps, trace=clipped(1e-8), intent=Intent(max_grad_norm=1.0))
    assert outcome(verdict) == ("fail", "clipped_to_nothing")
    assert "from a norm of 0.400 to 1.00e-08" in verdict.headline
    assert "not an eps" in verdict.causes[0]
    lightly = [step(i, actual=0.6, reference=2.0) for i in range(3)]
    assert judged(*lightly, trace=clipped(0.6), intent=Intent(max_grad_norm=1.0)).status == "pass"
    assert judged(*lightly, trace=clipped(0.6)).status == "pass"


def test_clipped_to_nothing_without_a_declaration_is_judged_by_what_adam_needs():
    def at(norm):
        steps = [step(i, actual=norm, reference=0.4) for i in range(3)]
        return outcome(judged(*steps, trace=clipped(norm)))[0]

    need = 1e-10 * math.sqrt(sum(t.numel for t in GOOD.tensors))
    assert at(0.9 * need) == "fail"
    assert at(1.1 * need) == "pass"


def test_a_norm_above_the_declared_one():
    intent = Intent(max_grad_norm=0.5)
    limit = 0.5 * UNCLIPPED
    assert judged(step(0), trace=clipped(0.99 * limit), intent=intent).status == "pass"
    verdict = judged(step(0), trace=clipped(1.01 * limit), intent=intent)
    assert outcome(verdict) == ("fail", "clipping_without_effect")
    assert "declared to be clipped to a norm of 0.5" in verdict.headline
    # head and base clipped each on its own reach 1.41 times
    apart = step(0, names=("head",), actual=0.5)
    assert judged(apart, trace=clipped(0.5 * 1.42), intent=intent).status == "pass"
    assert judged(apart, trace=clipped(0.5 * 1.51), intent=intent).status == "fail"
    # known without any probe
    assert outcome(check_grads_match_reference(replace(clipped(5.0), intent=intent))) == (
        "fail",
        "clipping_without_effect",
    )
    assert check_grads_match_reference(clipped(5.0)).status == "inconclusive"
    lbfgs = replace(clipped(5.0), intent=intent, optimizer=replace(GOOD.optimizer, name="LBFGS", family="other"))
    assert check_grads_match_reference(lbfgs).status == "inconclusive"


def test_a_norm_above_the_declared_one_at_two_steps_is_let_pass():
    steps = tuple(replace(s, grad_norm=9.0 if i < 2 else 0.4) for i, s in enumerate(GOOD.steps))
    assert judged(step(0), trace=replace(GOOD, steps=steps), intent=Intent(max_grad_norm=0.5)).status == "pass"


@pytest.mark.parametrize(("trace", "status"), [(SGD, "fail"), (GOOD, "advice")])
def test_sums_and_scales_matter_to_sgd_alone(trace, status):
    long = accumulated(4, trace)
    summed = [step(i, batches=4, trace=long, actual=4.0) for i in range(2)]
    assert outcome(judged(*summed, trace=long)) == (status, "accumulation_not_averaged")
    mean = [step(i, batches=4, trace=long, actual=1.0) for i in range(2)]
    assert judged(*mean, trace=long).status == "pass"
    scaled = [step(i, actual=65536.0) for i in range(2)]
    verdict = judged(*scaled, trace=trace)
    assert outcome(verdict) == (status, "grads_still_scaled")
    assert "65,536 times" in verdict.headline
    assert judged(*[step(i, actual=LEAST_SCALE / 2) for i in range(2)], trace=trace).status == "pass"
    assert judged(*[step(i, actual=700.0) for i in range(2)], trace=trace).status == "pass"


def test_a_loss_in_another_unit_has_its_gradient_in_that_unit():
    scaled = [step(i, actual=1024.0, loss_factor=1024.0) for i in range(3)]
    assert judged(*scaled, trace=SGD).status == "pass"


def test_divided_twice_under_sgd():
    long = accumulated(4, SGD)
    twice = [step(i, batches=4, trace=long, actual=0.25) for i in range(2)]
    assert outcome(judged(*twice, trace=long)) == ("fail", "accumulation_divided_twice")


def test_a_divided_loss_that_is_not_accumulated():
    steps = [step(i, actual=0.25) for i in range(2)]
    assert outcome(judged(*steps, intent=Intent(accumulation=4))) == ("fail", "batches_not_accumulated")
    assert judged(*steps).status == "pass"
    # the loop may cut each batch into four on its own
    assert judged(step(0), step(1), intent=Intent(accumulation=4)).status == "pass"


def test_slopes():
    def at(slope, near):
        return outcome(judged(step(0), slopes=(Slope("base", slope, near, 3e-3),)))

    assert at(-1.0, -1.0) == ("fail", "gradient_reversed")
    assert at(REVERSED - 0.01, REVERSED - 0.01) == ("fail", "gradient_reversed")
    assert at(REVERSED + 0.01, REVERSED + 0.01)[0] == "pass"
    assert at(-1.0, 0.2)[0] == "pass"
    # not yet the slope of the tangent: a shorter stride gives another
    assert at(-2.0, -1.0)[0] == "pass"
    # curvature, a straight-through estimate, a detached branch
    assert at(0.4, 0.4)[0] == "pass"
    assert at(2.0, 1.9)[0] == "pass"
    verdict = judged(step(0), slopes=(Slope("base", -1.0, -1.0, 3e-3),))
    assert "Moving the base along its own gradient lowers the loss" in verdict.headline


def test_the_first_fault_is_the_verdict_and_the_others_are_notes():
    verdict = judged(step(0, cosine=-1.0), step(1, cosine=-1.0), trace=clipped(5.0), intent=Intent(max_grad_norm=0.5))
    assert verdict.fault == "grads_negated"
    assert any("clipped to a norm of 0.5" in note for note in verdict.notes)
    assert len(verdict.causes) == 2


def test_the_fault_is_the_cause_that_grads_nonzero_gives():
    none = {"none": 20, "max_norm": 0.0, "max_rms": 0.0, "first_nonzero": None}
    tensors = tuple(replace(t, gradients=replace(t.gradients, **none)) for t in GOOD.tensors)
    empty = [step(i, names=("all", "head", "base"), actual=0.0, cosine=None, reference=0.35) for i in range(2)]
    trace = replace(
        GOOD, tensors=tensors, measurements={"reference": ReferenceGradient(tuple(empty), loss_connected=True)}
    )
    verdict = check_grads_nonzero(trace)
    assert outcome(verdict) == ("fail", "grads_gone_before_step")
    assert "zero_grad()" in verdict.causes[0]


def test_a_watched_loop():
    def at(*cosines):
        return judged(watched_steps=tuple(WatchedStep(i, *pair) for i, pair in enumerate(cosines)))

    assert outcome(at((0.7, 1.0), (0.6, 1.0))) == ("fail", "grads_never_zeroed")
    assert at((0.7, 1.0), (1.0, 1.0)).status == "pass"  # one step alone may be chance
    assert at((0.7, 1.0), (0.6, 0.9)).status == "pass"
    assert "another gradient" in at((0.7, 1.0)).headline


def test_wording():
    verdict = judged(
        *(step(i, batches=4, trace=accumulated(4), cosine=0.6, last_batch=1.0) for i in range(2)), trace=accumulated(4)
    )
    assert verdict.headline == (
        "Of the 4 batches for one optimizer step only the last one counts: the optimizer found the gradient of the last (cosine 1.00), "
        "not that of all 4 (cosine 0.600)."
    )
    assert verdict.causes == (
        "zero_grad() is called between the batches of a step, so 75 % of the rows never reach the weights",
    )
    assert verdict.remedy == "call zero_grad() only after optimizer.step(), under accelerator.accumulate(), too"


# ------------------------------------------------------------------ an optimizer that maximizes
def maximizing(*settings):
    groups = tuple(replace(GOOD.optimizer.groups[0], settings=s) for s in settings or ({"maximize": 1.0},))
    return replace(GOOD, optimizer=replace(GOOD.optimizer, groups=groups))


ASCENDED = (step(0, cosine=-1.0, wrong_direction=("a",)), step(1, cosine=-1.0, wrong_direction=("a",)))


def test_an_optimizer_that_maximizes_descends_the_opposite_of_the_gradient():
    verdict = judged(
        *(replace(s, parts=tuple(replace(p, cosine=-1.0) for p in s.parts)) for s in ASCENDED), trace=maximizing()
    )
    assert (verdict.status, verdict.notes) == ("pass", (MINUS,))
    assert "cosine 1.00" in verdict.headline


def test_a_part_that_goes_the_other_way_than_the_rest_is_negated_all_the_same():
    assert outcome(judged(*ASCENDED, trace=maximizing())) == ("fail", "grads_negated")


def test_groups_that_do_not_all_maximize_are_compared_as_they_are():
    assert outcome(judged(*ASCENDED, trace=maximizing({"maximize": 1.0}, {}))) == ("fail", "grads_negated")


def test_an_optimizer_that_maximizes_climbs_the_opposite_of_a_log_likelihood():
    shape = LossShape(kind="single", cosine=-1.0, of_minus=LossShape(kind="single", cosine=1.0))
    record = ReferenceGradient(steps=ASCENDED, loss_connected=True)
    trace = replace(maximizing(), measurements={"reference": record, "loss_shape": shape})
    assert outcome(check_grads_match_reference(trace)) == ("fail", "grads_negated")
