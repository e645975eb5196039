"""loss_decreases: by effect, by the sign test, by the trend; at every limit from both sides, and never by "last < first"."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from pytest_ftcheck import Intent, check_loss_decreases, diagnose, example_trace
from pytest_ftcheck.checks.loop.record import LoopCalls, LossCall
from pytest_ftcheck.checks.loss.loss_decreases import ALPHA, LEAST_DROP, RISE
from pytest_ftcheck.checks.loss.objective import MINUS
from pytest_ftcheck.checks.loss.record import SOUND, LossCurve, LossShape
from pytest_ftcheck.core.observations import Descent, Iteration, ProbeLoss, ProbeLossPoint

GOOD = example_trace()


def run(drop=0.0, *, first=0.7, down=0, still=0, up=0, trace=GOOD, reference=True, losses=None, middle=()):
    """A trace whose probe loss fell by ``drop`` (relative), and whose steps' own batches went down, stood still, went up."""
    last = first * (1 - drop)
    values = [first, *middle, last]
    points = tuple(ProbeLossPoint(10 * i, v, v if reference else None) for i, v in enumerate(values))
    descents = [Descent(i, 0.7, 0.7 + d) for i, d in enumerate([-0.01] * down + [0.0] * still + [0.01] * up)]
    flat = [0.7 + 0.01 * (-1) ** i for i in range(20)]
    return replace(
        trace,
        probe_loss=ProbeLoss(32, "the first 2 training batches", points, tuple(descents), prior_entropy=0.6931),
        iterations=tuple(Iteration(v, i, 1, True) for i, v in enumerate(losses or flat)),
    )


def status(*args, **kwargs):
    return check_loss_decreases(run(*args, **kwargs)).status


def rates(*values, **declared):
    """The same trace, learning nothing, with these learning rates."""
    trace = run(0.001, down=6, up=4)
    steps = tuple(replace(s, lrs=(v,)) for s, v in zip(trace.steps, values, strict=False))
    return check_loss_decreases(replace(trace, steps=steps, intent=Intent(**declared) if declared else None))


def test_a_run_that_ends_in_the_warm_up_says_so():
    verdict = rates(0.0, 1e-7, 2e-7, 3e-7)
    assert verdict.status == "inconclusive"
    assert verdict.headline.endswith("; the learning rate was still warming up at the last step, at 3.00e-07.")
    assert "warm-up" in verdict.remedy
    assert "at 3.00e-07 of the declared 5.00e-05" in rates(0.0, 1e-7, 2e-7, 3e-7, peak_lr=5e-5).headline


@pytest.mark.parametrize("values", [(1e-7, 2e-7, 2e-7), (0.0, 3e-7, 2e-7), (2e-7, 3e-7, 4e-7), (1e-7,) * 4])
def test_a_rate_that_is_not_only_rising_is_no_warm_up(values):
    assert "run longer" in rates(*values).remedy


# ------------------------------------------------------------------ by effect
def test_a_clear_fall():
    verdict = check_loss_decreases(GOOD)
    assert verdict.status == "pass"
    assert verdict.headline == (
        "The probe loss fell by 56 %, 0.7000 -> 0.3100; 12 of 12 steps lowered the loss of their own batch."
    )
    assert "dropout off, on 32 rows (the first 2 training batches)" in verdict.measured


@pytest.mark.parametrize(("drop", "expected"), [(LEAST_DROP * 1.01, "pass"), (LEAST_DROP * 0.99, "inconclusive")])
def test_the_least_drop(drop, expected):
    assert status(drop, down=6, up=4) == expected
    assert status(drop) == expected  # without descents too


def test_the_limit_is_the_callers():
    assert check_loss_decreases(run(0.08, down=6, up=4), min_drop=0.1).status == "inconclusive"
    assert check_loss_decreases(run(0.02, down=6, up=4), min_drop=0.01).status == "pass"


def test_a_small_drop_that_its_own_batches_speak_against_is_not_enough():
    assert status(1.5 * LEAST_DROP, down=4, up=6) == "inconclusive"
    assert status(1.5 * LEAST_DROP, down=5, up=5) == "pass"
    # twice the least drop is enough by itself, and so is a falling training loss beside a small one
    assert status(2.01 * LEAST_DROP, down=4, up=6) == "pass"
    assert status(1.5 * LEAST_DROP, down=4, up=6, losses=[1 - 0.01 * i for i in range(20)]) == "pass"


def test_the_last_training_loss_below_the_first_is_no_evidence():
    losses = [0.8, *[0.7] * 18, 0.6]
    assert status(0.0, down=5, up=5, losses=losses) == "inconclusive"


# ------------------------------------------------------------------ by the sign test
@pytest.mark.parametrize("total", [7, 12, 20])
def test_the_sign_test(total):
    need = next(k for k in range(total + 1) if binomtest(k, total, 0.5, alternative="greater").pvalue < ALPHA)
    need = max(need, math.ceil(0.75 * total))
    assert status(1e-4, down=need, up=total - need) == "pass"
    assert status(1e-4, down=need - 1, up=total - need + 1) == "inconclusive"


def test_the_sign_test_says_what_it_shows_and_what_it_does_not():
    verdict = check_loss_decreases(run(1e-4, down=19, up=1))
    assert (
        "The loss falls, slowly: 19 of 20 steps lowered the loss of their own batch (p = 2.00e-05)" in verdict.headline
    )
    assert "not yet that the labels are learnt" in verdict.notes[0]
    assert check_loss_decreases(run(1e-4, down=7), alpha=0.001).status == "inconclusive"


def test_own_batches_alone_are_not_enough_if_the_probe_did_not_fall():
    assert status(0.0, down=20) == "inconclusive"
    assert status(-0.01, down=20) == "inconclusive"


def test_steps_within_rounding_count_for_nothing():
    tiny = replace(GOOD.probe_loss, descents=tuple(Descent(i, 0.7, 0.7 - 5e-7) for i in range(12)))
    trace = replace(run(1e-4), probe_loss=replace(tiny, points=run(1e-4).probe_loss.points))
    verdict = check_loss_decreases(trace)
    assert verdict.status == "inconclusive"
    assert any(
        "12 of 12 steps changed the loss of their own batch by less than its rounding" in c for c in verdict.causes
    )
    small = replace(
        tiny, descents=tuple(Descent(i, 0.7, 0.7 - 1e-6) for i in range(12)), points=trace.probe_loss.points
    )
    assert check_loss_decreases(replace(trace, probe_loss=small)).status == "pass"
    # what float32 can tell, bfloat16 cannot
    coarse = replace(trace, probe_loss=small, environment={"dtype": "bfloat16, float32"})
    assert check_loss_decreases(coarse).status == "inconclusive"


def test_steps_without_a_learning_rate_are_not_counted():
    """A warm-up may begin at zero."""
    idle = tuple(replace(s, lrs=(0.0,)) if i < 10 else s for i, s in enumerate(GOOD.steps))
    trace = run(1e-4, still=10, down=0)
    later = tuple(Descent(10 + i, 0.7, 0.69) for i in range(8))
    trace = replace(
        trace, steps=idle, probe_loss=replace(trace.probe_loss, descents=(*trace.probe_loss.descents, *later))
    )
    verdict = check_loss_decreases(trace)
    assert verdict.status == "pass"
    assert "8 of 8 steps" in verdict.headline
    never = replace(trace, steps=tuple(replace(s, lrs=(0.0,)) for s in GOOD.steps))
    assert "of 18" in check_loss_decreases(never).headline


# ------------------------------------------------------------------ failures
def unmoved(*, moved=0.0, norm=0.0, which=slice(None)):
    """Tensors that did not move, or got no gradient."""

    def change(t):
        return replace(
            t,
            motion=replace(t.motion, share_changed=moved),
            gradients=replace(t.gradients, max_norm=norm, first_nonzero=None),
        )

    kept = list(GOOD.tensors)
    kept[which] = [change(t) for t in kept[which]]
    return replace(GOOD, tensors=tuple(kept))


@pytest.mark.parametrize("dead", [unmoved(norm=0.5), unmoved(moved=1.0)], ids=["unmoved", "no gradient"])
@pytest.mark.parametrize(
    ("still", "down", "expected"),
    [(1, 0, "fail"), (4, 0, "fail"), (20, 0, "fail"), (0, 0, "fail"), (19, 1, "inconclusive")],
)
def test_steps_that_change_nothing(dead, still, down, expected):
    verdict = check_loss_decreases(run(0.0, still=still, down=down, trace=dead))
    assert verdict.status == expected
    if expected == "fail":
        assert "The steps do not change the loss: it is exactly as it was before" in verdict.headline
        assert (f"the own batch of each of {still}" in verdict.headline) == (still > 0)
        assert "the weights do not move" in verdict.causes[0]
        assert "assert_weights_move" in verdict.remedy


def test_a_loss_that_stands_still_while_something_learns_is_no_proof():
    """It may be rounding: a large constant in the loss, a tiny learning rate."""
    assert status(0.0, still=20) == "inconclusive"
    alive = unmoved(which=slice(1, None))  # one tensor moves, by its gradient
    assert status(0.0, still=20, trace=alive) == "inconclusive"
    # a frozen tensor or an empty one is not meant to
    for fields in ({"trainable": False}, {"shape": (0,)}):
        rest = replace(alive, tensors=(replace(alive.tensors[0], **fields), *alive.tensors[1:]))
        assert status(0.0, still=20, trace=rest) == "fail"
    # exactly equal, on the probe too
    assert status(1e-9, still=20, trace=unmoved()) == "inconclusive"
    trace = run(0.0, still=20, trace=unmoved())
    nearly = (*trace.probe_loss.descents[:-1], Descent(19, 0.7, math.nextafter(0.7, 1)))
    assert (
        check_loss_decreases(replace(trace, probe_loss=replace(trace.probe_loss, descents=nearly))).status
        == "inconclusive"
    )


@pytest.mark.parametrize(
    ("down", "up", "expected"),
    [(2, 6, "fail"), (3, 5, "inconclusive"), (1, 6, "inconclusive"), (5, 15, "fail"), (6, 14, "inconclusive")],
)
def test_steps_that_raise_the_loss(down, up, expected):
    verdict = check_loss_decreases(run(-0.01, down=down, up=up))
    assert verdict.status == expected
    if expected == "fail":
        assert f"The steps raise the loss: only {down} of {down + up}" in verdict.headline
        assert "the sign is flipped" in verdict.causes[0]


def test_wording():
    assert str(check_loss_decreases(run(-0.01, down=2, up=6))) == (
        "loss_decreases: FAIL. The steps raise the loss: only 2 of 8 lowered the loss of their own batch; on the probe it rose "
        "by 1.0 %, 0.7000 -> 0.7070.\n"
        "  after steps  probe loss  standard loss\n"
        "            0  0.70000     0.70000\n"
        "           10  0.70700     0.70700\n"
        "  cause: the sign is flipped (loss negated, maximize=True, gradient ascent), or the learning rate is far too high\n"
        "  do: check the sign of the loss; try a tenth of the learning rate\n"
        "  limit: probe loss down by 5.0 %, or down at all with significantly many steps lowering their own batch's loss (sign "
        "test, p < 0.01)\n"
        "  measured: dropout off, on 32 rows (the first 2 training batches), and on the own batch of 8 steps"
    )


@pytest.mark.parametrize(("up", "expected"), [(7, "inconclusive"), (8, "fail")])
def test_only_steps_beyond_rounding_raise_the_loss(up, expected):
    assert status(-0.01, up=up, still=12) == expected


@pytest.mark.parametrize(("drop", "expected"), [(-LEAST_DROP * 1.01, "fail"), (-LEAST_DROP * 0.99, "inconclusive")])
def test_a_probe_loss_that_rises(drop, expected):
    verdict = check_loss_decreases(run(drop, down=5, up=5))
    assert verdict.status == expected
    if expected == "fail":
        assert "The probe loss rose by 5.0 %" in verdict.headline
        assert "learning rate is too high" in verdict.causes[0]
        assert verdict.evidence[0]["after steps"] == 0


@pytest.mark.parametrize(
    ("rise", "down", "up", "expected"),
    [
        (0.99 * RISE, 11, 9, "inconclusive"),
        (0.99 * RISE, 10, 10, "fail"),
        (1.01 * RISE, 20, 0, "fail"),
        (0.99 * RISE, 0, 0, "fail"),
    ],
)
def test_a_rise_is_inconclusive_while_most_steps_lower_the_loss_of_their_own_batch(rise, down, up, expected):
    """Adapters on 32 batches of 8: 6 % up after 32 steps, every held-out row right after 150."""
    verdict = check_loss_decreases(run(-rise, down=down, up=up))
    assert verdict.status == expected
    if expected == "inconclusive":
        assert "rose by 25 %, 0.7000 -> 0.8732, while 11 of 20 steps" in verdict.headline
        assert "run longer" in verdict.remedy


@pytest.mark.parametrize(("rise", "expected"), [(1.01, "fail"), (0.99, "pass")])
def test_a_loss_that_falls_while_the_standard_loss_rises(rise, expected):
    trace = run(0.5)
    points = (ProbeLossPoint(0, 0.7, 0.7), ProbeLossPoint(20, 0.35, 0.7 * (1 + rise * RISE)))
    verdict = check_loss_decreases(replace(trace, probe_loss=replace(trace.probe_loss, points=points)))
    assert verdict.status == expected
    if expected == "fail":
        assert "but the standard loss of the same logits rose, 0.7000 -> 0.8767" in verdict.headline
        assert "the minimised loss is not the task's" in verdict.causes[0]


@pytest.mark.parametrize(
    ("task", "p_value", "expected"),
    [("regression", ALPHA, "pass"), ("regression", 0.02, "fail"), ("single_label", ALPHA, "fail")],
)
def test_numbers_may_be_predicted_on_another_scale_than_that_of_the_labels(task, p_value, expected):
    """A sigmoid or an exponential in the loss, labels that it standardises: what is predicted goes with the labels all the same."""
    points = (ProbeLossPoint(0, 0.7, 0.7), ProbeLossPoint(20, 0.35, 4.0))
    trace = run(0.5)
    metric = replace(GOOD.metrics[0], name="r_squared", first=-5.0, last=-19.0, p_value=p_value)
    trace = replace(
        trace,
        probe_loss=replace(trace.probe_loss, points=points),
        reading=replace(trace.reading, task=task),
        metrics=(metric,),
    )
    assert check_loss_decreases(trace).status == expected


@pytest.mark.parametrize(("rise", "expected"), [(1.01, "fail"), (0.99, "pass")])
@pytest.mark.parametrize(("entropy", "scale"), [(1.2, 1.2), (None, math.log(2))])
def test_the_standard_loss_may_rise_by_a_share_of_the_class_prior_loss(entropy, scale, rise, expected):
    """A model that begins near zero, under smoothed labels or a teacher: its own first value is no yardstick."""
    points = (ProbeLossPoint(0, 0.7, 0.1), ProbeLossPoint(20, 0.35, 0.1 + rise * RISE * scale))
    trace = run(0.5)
    verdict = check_loss_decreases(
        replace(trace, probe_loss=replace(trace.probe_loss, points=points, prior_entropy=entropy))
    )
    assert verdict.status == expected


@pytest.mark.parametrize(("rise", "expected"), [(2e-6, "inconclusive"), (0.5e-6, "pass"), (-0.01, "pass")])
def test_a_slow_fall_against_the_standard_loss_is_inconclusive(rise, expected):
    trace = run(1e-3, down=20)
    points = (ProbeLossPoint(0, 0.7, 0.7), ProbeLossPoint(20, 0.6993, 0.7 * (1 + rise)))
    verdict = check_loss_decreases(replace(trace, probe_loss=replace(trace.probe_loss, points=points)))
    assert verdict.status == expected
    if expected == "inconclusive":
        assert "and the standard loss of the same logits rose, 0.700000 -> 0.700001" in verdict.headline
        assert "the minimised loss may not be the task's" in verdict.causes[0]


def test_without_logits_there_is_no_standard_loss_to_compare():
    assert status(0.5, reference=False) == "pass"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(value):
    losses = [0.7, 0.7, value, *[0.7] * 17]
    verdict = check_loss_decreases(run(0.5, losses=losses))
    assert verdict.status == "fail"
    assert verdict.headline == "The loss is not finite at iteration 2 alone."
    assert "assert_all_finite" in verdict.causes[0]
    trace = run(0.5)
    points = (*trace.probe_loss.points[:1], ProbeLossPoint(20, value, None))
    assert check_loss_decreases(replace(trace, probe_loss=replace(trace.probe_loss, points=points))).headline == (
        "The loss is not finite on the probe."
    )


def test_iterations_without_a_loss_are_counted():
    trace = run(0.5)
    silent = replace(
        trace, iterations=(Iteration(None, 0, 1, True), Iteration(None, 1, 1, True), Iteration(math.nan, 2, 1, True))
    )
    assert "from iteration 2 on" in check_loss_decreases(silent).headline


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_a_negative_cross_entropy(task):
    trace = run(0.0)
    points = (ProbeLossPoint(0, -0.5, 0.69), ProbeLossPoint(20, -3.0, 0.9))
    trace = replace(
        trace, probe_loss=replace(trace.probe_loss, points=points), reading=replace(trace.reading, task=task)
    )
    verdict = check_loss_decreases(trace)
    assert verdict.status == "fail"
    assert "The loss is negative (-0.5000 after 0 steps)" in verdict.headline
    assert "standard loss of the same logits is 0.6900" in verdict.headline
    assert "NLL on raw logits" in verdict.causes[0]


@pytest.mark.parametrize(("loss", "fault"), [(-0.69, "loss_negated"), (-0.63, "loss_negated"), (-0.6, ""), (-0.8, "")])
def test_minus_the_standard_loss_has_its_sign_flipped(loss, fault):
    trace = run(0.0)
    verdict = check_loss_decreases(
        replace(trace, probe_loss=replace(trace.probe_loss, points=(ProbeLossPoint(0, loss, 0.69),) * 2))
    )
    assert (verdict.status, verdict.fault) == ("fail", fault)


@pytest.mark.parametrize(("task", "reference"), [("regression", 0.69), (None, 0.69), ("single_label", None)])
def test_other_losses_may_be_negative(task, reference):
    trace = run(0.0)
    points = (ProbeLossPoint(0, -0.5, reference), ProbeLossPoint(20, -3.0, reference))
    trace = replace(
        trace, probe_loss=replace(trace.probe_loss, points=points), reading=replace(trace.reading, task=task)
    )
    verdict = check_loss_decreases(trace)
    assert verdict.status == "pass"
    assert "fell" in verdict.headline


# ------------------------------------------------------------------ undecided
def test_too_few_steps():
    verdict = check_loss_decreases(run(0.001, down=6, up=6))
    assert verdict.status == "inconclusive"
    assert "20 steps are too few to decide: the probe loss fell by 0.10 %" in verdict.headline
    assert "6 of 12" in verdict.headline
    assert "steps=100" in verdict.remedy
    long = run(0.001, down=6, up=6, trace=replace(GOOD, steps=GOOD.steps * 10))
    assert "steps=600" in check_loss_decreases(long).remedy
    assert any("shuffled labels" in c for c in verdict.causes)


def test_a_loss_of_zero_from_the_start_divides_by_nothing():
    trace = run(0.0, first=0.0)
    assert check_loss_decreases(trace).status == "inconclusive"


def test_above_the_entropy_of_the_labels_a_note_says_so():
    assert any("entropy of the labels (0.693)" in n for n in check_loss_decreases(run(0.5, first=2.0, down=10)).notes)
    assert check_loss_decreases(run(0.5, down=10)).notes == ()
    theirs = replace(run(0.5, first=2.0, down=10), reading=replace(GOOD.reading, loss="the user's loss_fn"))
    assert check_loss_decreases(theirs).notes == ()


# ------------------------------------------------------------------ without a probe
def watched(losses, probe_loss=None):
    return replace(
        GOOD, probe_loss=probe_loss, iterations=tuple(Iteration(v, i, 1, True) for i, v in enumerate(losses))
    )


def test_the_trend_of_the_training_losses():
    verdict = check_loss_decreases(watched([1 - 0.02 * i for i in range(20)]))
    assert verdict.status == "pass"
    assert verdict.headline == "The training loss falls: the first quarter's mean is 0.9600, the last quarter's 0.6600."
    assert "20 training losses" in verdict.notes[0]
    assert verdict.measured == "training losses only"


FALLING = [1.2 - 0.03 * i for i in range(20)]
SPIKE = [1.2, 1.2, *(4.0 - 0.1 * i for i in range(18))]


@pytest.mark.parametrize(
    ("source", "losses", "function", "status"),
    [
        ("watch", FALLING, "cross_entropy", "inconclusive"),  # a balanced probe batch beside unbalanced training rows
        ("watch", FALLING, "mse_loss", "fail"),
        ("watch", SPIKE, "cross_entropy", "fail"),
        ("watch", FALLING[::-1], "cross_entropy", "fail"),
        ("finetune", FALLING, "cross_entropy", "fail"),
    ],
)
def test_a_probe_loss_that_rises_while_the_training_loss_falls(source, losses, function, status):
    calls = {"loop": LoopCalls(losses=(LossCall(0, function, "output", 8),) * 3)}
    verdict = check_loss_decreases(replace(run(-0.2, losses=losses), source=source, measurements=calls))
    assert verdict.status == status
    assert ("training loss falls" in verdict.headline) == (status == "inconclusive")


@pytest.mark.parametrize(("reference", "status"), [(0.5, "inconclusive"), (0.69, "fail")])
def test_a_loss_that_rises_while_the_standard_loss_falls(reference, status):
    """A loss whose weight grows from call to call, as in a warm-up of one of its terms."""
    trace = run(-0.9, first=0.1)
    points = tuple(replace(p, reference=r) for p, r in zip(trace.probe_loss.points, (0.7, reference), strict=True))
    verdict = check_loss_decreases(replace(trace, probe_loss=replace(trace.probe_loss, points=points)))
    assert verdict.status == status
    assert ("from call to call" in "".join(verdict.causes)) == (status == "inconclusive")


def test_weights_that_are_replaced_after_the_last_step():
    """The worst of the kept states is loaded, because its loss is the greatest."""
    kept = tuple(replace(t, motion=replace(t.motion, between_steps=0.1)) for t in GOOD.tensors)
    verdict = check_loss_decreases(replace(run(0.01, losses=FALLING), tensors=kept))
    assert verdict.status == "inconclusive"
    assert "replaced after the last step" in verdict.headline
    assert "greater_is_better" in verdict.remedy
    assert "replaced" not in check_loss_decreases(run(0.01, losses=FALLING)).headline


def test_a_negative_loss_that_falls_gets_a_note():
    note = "which a cross-entropy cannot be"
    negative = check_loss_decreases(watched([0.1 - 0.02 * i for i in range(20)]))
    assert negative.status == "pass"
    assert any(note in n for n in negative.notes)
    assert not any(note in n for n in check_loss_decreases(watched([0.38 - 0.02 * i for i in range(20)])).notes)


def call(**fields):
    return LossCall(0, "cross_entropy", "output", 8, **fields)


@pytest.mark.parametrize(
    ("losses", "calls", "status"),
    [
        ([1 - 0.02 * i for i in range(20)], (call(),) * 3, "pass"),
        ([1 - 0.02 * i for i in range(20)], (call(chosen_by_model=True),) * 3, "inconclusive"),
        ([-0.5 - 0.02 * i for i in range(20)], (call(negated=True),) * 3, "inconclusive"),
        ([0.1 - 0.02 * i for i in range(20)], (call(),) * 3, "pass"),  # an entropy bonus
        ([0.1 - 0.02 * i for i in range(20)], (), "inconclusive"),
        ([1 - 0.02 * i for i in range(20)], (), "pass"),
    ],
)
def test_a_falling_loss_that_may_not_be_the_tasks_is_no_pass(losses, calls, status):
    loop = LoopCalls(recipe_loop=False, iterations=(0, 1, 2), losses=calls, outputs=3, backwards=3, reached=3)
    trace = watched(losses)
    found = check_loss_decreases(replace(trace, measurements={**trace.measurements, "loop": loop}))
    assert found.status == status
    assert ("That says nothing" in found.headline) == (status == "inconclusive")


def test_a_rising_trend():
    verdict = check_loss_decreases(watched([1 + 0.02 * i for i in range(20)]))
    assert verdict.status == "fail"
    assert "The training loss rises" in verdict.headline


def test_no_trend():
    verdict = check_loss_decreases(watched([0.7 + 0.01 * (-1) ** i for i in range(20)]))
    assert verdict.status == "inconclusive"
    assert "No trend in 20 training losses" in verdict.headline
    assert "probe_batch=" in verdict.remedy
    assert check_loss_decreases(watched([0.7] * 20)).status == "inconclusive"


def test_too_few_training_losses():
    verdict = check_loss_decreases(watched([1.0, 0.5, 0.1]))
    assert verdict.status == "inconclusive"
    assert "3 training losses are too few to decide" in verdict.headline
    assert check_loss_decreases(watched([1 - 0.1 * i for i in range(7)])).status == "inconclusive"
    assert check_loss_decreases(watched([1 - 0.1 * i for i in range(8)])).status == "pass"
    assert "0 training losses" in check_loss_decreases(watched([])).headline


def test_a_probe_that_was_skipped_is_explained():
    skipped = ProbeLoss(16, "probe_batch", (), skipped="RuntimeError: no eval")
    verdict = check_loss_decreases(watched([1.0], skipped))
    assert "the probe was skipped: RuntimeError: no eval" in verdict.headline
    assert "RuntimeError: no eval" in check_loss_decreases(watched([1 - 0.02 * i for i in range(20)], skipped)).notes[0]


def test_many_noisy_losses_that_fall():
    losses = [1 - 0.001 * i + 0.05 * math.sin(7 * i) for i in range(400)]
    assert check_loss_decreases(watched(losses)).status == "pass"


# ------------------------------------------------------------------ one bad step at the end
FALLING = [1.1 - 0.01 * i for i in range(60)]


def ended(probe, losses):
    """A run with these probe losses, the last one after the last step."""
    points = tuple(ProbeLossPoint(10 * i, v, v) for i, v in enumerate(probe))
    return check_loss_decreases(
        replace(watched(losses), probe_loss=replace(GOOD.probe_loss, points=points, descents=()))
    )


def test_one_bad_step_at_the_end_of_a_run_that_learns():
    verdict = ended([1.1, 0.9, 0.57, 1.5], FALLING)
    assert verdict.status == "pass"
    assert "down to 0.5700 after 20 steps, but 1.500 at the very end" in verdict.headline
    assert verdict.notes


def test_a_probe_loss_that_never_fell_is_no_bad_last_step():
    assert ended([1.1, 1.09, 1.2, 1.5], FALLING).status == "fail"


def test_a_bad_last_step_needs_training_losses_that_fall():
    assert ended([1.1, 0.9, 0.57, 1.5], [1.1] * 60).status == "fail"


# ------------------------------------------------------------------ no step, bad arguments
def test_no_step():
    cut = replace(GOOD, steps=(), iterations=(Iteration(None, None, 0, True, "no graph"),))
    verdict = check_loss_decreases(cut)
    assert (verdict.status, verdict.fault) == ("fail", "")
    assert "backward cannot run: no graph" in verdict.headline
    assert check_loss_decreases(replace(GOOD, steps=(), iterations=())).status == "fail"


def test_losses_without_a_watched_step_are_judged_by_themselves():
    """Somebody else's optimizer may have stepped: the losses say."""
    assert check_loss_decreases(replace(watched([1 - 0.02 * i for i in range(20)]), steps=())).status == "pass"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"min_drop": 0}, ValueError),
        ({"min_drop": 1}, ValueError),
        ({"min_drop": "5 %"}, TypeError),
        ({"alpha": 0}, ValueError),
        ({"alpha": 1.5}, ValueError),
        ({"alpha": None}, TypeError),
    ],
)
def test_bad_arguments(arguments, error):
    with pytest.raises(error, match=r"min_drop=|alpha="):
        check_loss_decreases(GOOD, **arguments)


# ------------------------------------------------------------------ a head of which a part is frozen
def partly_frozen(trace, *, learning=True, intent=None):
    """The trace with the first tensor of the head frozen, the others moving by their gradients or having none past a layer of zeros."""
    first = replace(trace.tensors[2], trainable=False, trainable_last=False, group=None)
    others = trace.tensors[:2] + trace.tensors[3:]
    if not learning:
        first = replace(first, first=replace(first.first, rms=0.0))
        others = tuple(
            replace(t, motion=replace(t.motion, share_changed=0.0), gradients=replace(t.gradients, max_norm=0.0))
            for t in others
        )
    return replace(trace, tensors=(*others[:2], first, *others[2:]), intent=intent)


@pytest.mark.parametrize(
    "trace",
    [
        partly_frozen(run(0.0, still=10), learning=False),
        partly_frozen(run(-0.3, down=9, up=1)),
        partly_frozen(watched([0.5 + 0.01 * i for i in range(40)])),
    ],
)
def test_a_run_that_does_not_learn_with_a_partly_frozen_head(trace):
    verdict = check_loss_decreases(trace)
    assert (verdict.status, verdict.fault) == ("fail", "head_partly_frozen")
    assert verdict.causes[0].startswith("classifier.weight keep")
    assert diagnose(trace).causes[0].fault == "head_partly_frozen"
    declared = check_loss_decreases(replace(trace, intent=Intent(frozen="classifier.weight")))
    assert (declared.status, declared.fault) == ("fail", "")


def test_a_partly_frozen_head_is_a_cause_of_what_is_undecided():
    verdict = check_loss_decreases(partly_frozen(run(0.001, down=6, up=4)))
    assert (verdict.status, verdict.fault) == ("inconclusive", "")
    assert "classifier.weight" in verdict.causes[0]


def test_a_partly_frozen_head_explains_nothing_else():
    assert check_loss_decreases(partly_frozen(GOOD)).status == "pass"
    assert check_loss_decreases(partly_frozen(run(-0.01, up=10))).fault == ""  # the steps raise the loss
    assert check_loss_decreases(partly_frozen(run(-0.3, down=1, up=3))).fault == ""
    flat = partly_frozen(run(0.0, still=10), learning=False)
    tensors = (
        *flat.tensors[:2],
        partly_frozen(GOOD).tensors[2],
        *flat.tensors[3:],
    )  # that is not at zero: the loss itself is flat
    assert check_loss_decreases(replace(flat, tensors=tensors)).fault == ""
    still = partly_frozen(run(0.0, still=10))
    unmoved_tensors = tuple(replace(t, motion=replace(t.motion, share_changed=0.0)) for t in still.tensors)
    assert check_loss_decreases(replace(still, tensors=unmoved_tensors)).fault == ""  # a learning rate of zero


@pytest.mark.parametrize(("agreement", "status"), [(1.0, "pass"), (0.9, "fail")])
def test_a_reweighted_loss_may_raise_the_standard_loss(agreement, status):
    shape = LossShape(rows=16, kind="single", outputs=2, uses_labels=True, agreement=agreement)
    points = (
        replace(GOOD.probe_loss.points[0], loss=0.93, reference=0.50),
        replace(GOOD.probe_loss.points[-1], loss=0.70, reference=0.70),
    )
    trace = replace(GOOD, probe_loss=replace(GOOD.probe_loss, points=points), measurements={"loss_shape": shape})
    assert check_loss_decreases(trace).status == status


# ------------------------------------------------------------------ outputs that are no logits
@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, "pass"), ({"cosine": SOUND}, "fail"), ({"cosine": -SOUND}, "fail"), ({"known": "bce"}, "fail")],
)
def test_a_likelihood_of_numbers_may_be_negative(changes, expected):
    no_logits = LossCurve((0.0, 1.0, 32.0), (0.2, 1.3, 9.0), (0.2, 0.0, 9.0))
    shape = replace(LossShape(kind="single", cosine=0.05, agreement=0.5, curve=no_logits), **changes)
    trace = of_probe(0.7, -0.9, measurements={"loss_shape": shape})
    points = tuple(replace(p, reference=r) for p, r in zip(trace.probe_loss.points, (0.7, 1.9), strict=True))
    trace = replace(trace, probe_loss=replace(trace.probe_loss, points=points))
    assert check_loss_decreases(trace).status == expected


# ------------------------------------------------------------------ a maximized objective
def maximizing(trace, *settings, other_steps=0):
    """The trace, of an optimizer with these settings for a group each."""
    groups = tuple(replace(trace.optimizer.groups[0], settings=s) for s in settings or ({"maximize": 1.0},))
    optimizer = replace(trace.optimizer, groups=groups, other_optimizer_steps=other_steps)
    return replace(trace, optimizer=optimizer)


def of_probe(first, last, *, losses=None, **changes):
    """A trace whose probe loss, and whose training loss, went from one number to another."""
    trace = run(losses=losses or [first + (last - first) * i / 19 for i in range(20)])
    points = tuple(replace(p, loss=v) for p, v in zip(trace.probe_loss.points, (first, last), strict=True))
    return replace(trace, probe_loss=replace(trace.probe_loss, points=points), **changes)


def test_a_maximized_log_likelihood_is_judged_by_its_rise():
    verdict = check_loss_decreases(maximizing(of_probe(-0.7, -0.1)))
    assert (verdict.status, verdict.notes[-1]) == ("pass", MINUS)
    assert verdict.headline.startswith("The probe loss fell by 86 %, 0.7000 -> 0.1000")
    assert check_loss_decreases(maximizing(of_probe(-0.7, -1.4))).status == "fail"


def test_a_maximized_log_likelihood_without_a_probe():
    trace = replace(of_probe(-0.7, -0.1), probe_loss=None)
    assert check_loss_decreases(maximizing(trace)).status == "pass"
    assert check_loss_decreases(trace).status == "fail"


@pytest.mark.parametrize("settings", [({"maximize": 1.0}, {}), ({},)])
def test_groups_that_do_not_all_maximize_are_judged_by_the_fall(settings):
    assert check_loss_decreases(maximizing(of_probe(-0.7, -0.1), *settings)).status == "fail"
    assert check_loss_decreases(maximizing(of_probe(-0.7, -0.1), other_steps=3)).status == "fail"


def test_a_plain_loss_that_is_maximized_rises():
    assert check_loss_decreases(maximizing(of_probe(0.7, 2.1))).status == "fail"
    shape = {"loss_shape": LossShape(kind="single", cosine=0.9)}  # below zero, and yet a loss: minus a margin
    assert check_loss_decreases(maximizing(of_probe(-0.7, -0.1, measurements=shape))).status == "fail"


def test_a_loop_that_returns_the_loss_and_maximizes_minus_it():
    falling = [0.7 - 0.03 * i for i in range(20)]
    shape = LossShape(kind="single", cosine=-1.0, of_minus=LossShape(kind="single", cosine=1.0))
    trace = of_probe(-0.7, -0.1, losses=falling, measurements={"loss_shape": shape})
    assert check_loss_decreases(maximizing(trace)).status == "pass"
