"""A training that stops in the middle of the run, and trainings that only look as if they did."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_ftcheck import check_training_continues, example_trace
from pytest_ftcheck.core.example_trace import tensor
from pytest_ftcheck.core.observations import Iteration, Step
from pytest_ftcheck.core.recipe import Recipe

N = 30
NAMES = (("base_model.lin.weight", "base"), ("base_model.lin.bias", "base"), ("classifier.weight", "head"))


def run(*, iterations=None, grads=None, updates=None, lrs=None, losses=None, **more):
    """A trace of `N` steps; ``grads`` and ``updates``: part -> series."""
    steps = tuple(Step(i, ((lrs or [1e-3] * N)[i],), 0.9, None, True) for i in range(N))
    series = {
        part: {
            "grad_norms": tuple((grads or {}).get(part, [0.4] * N)),
            "updates": tuple((updates or {}).get(part, [1e-3] * N)),
        }
        for part in ("base", "head")
    }
    changed = more.pop("changed", {})
    tensors = tuple(tensor(name, part, steps=N, **series[part], **changed.get(name, {})) for name, part in NAMES)
    values = [0.5] * N if losses is None else losses
    usual = tuple(Iteration(loss, i, 1, True) for i, loss in enumerate(values))
    return example_trace(
        recipe=Recipe(steps=N),
        steps=steps,
        recorded=tuple(range(N)),
        tensors=tensors,
        iterations=usual if iterations is None else iterations,
        **more,
    )


def stepping(*at, count=60, training=lambda i: True):
    """Iterations that take a step at some of their numbers."""
    return tuple(Iteration(0.5, at.index(i) if i in at else None, int(i in at), training(i)) for i in range(count))


def judge(trace):
    verdict = check_training_continues(trace)
    return verdict.status, verdict.fault


PASSED, SKIPPED = ("pass", ""), ("skipped", "")


# ---------------------------------------------------------------------- steps
@pytest.mark.parametrize(
    ("iterations", "expected"),
    [
        (stepping(*range(12)), ("fail", "steps_stop")),
        (stepping(*range(39)), ("fail", "steps_stop")),  # 21 of 60 without a step
        (stepping(*range(40)), PASSED),  # 20: a third
        (stepping(*range(60)), PASSED),
        (stepping(*range(7, 60, 8)), PASSED),  # accumulation
        (stepping(*range(7, 24, 8)), ("fail", "steps_stop")),
        (stepping(11, 23, 35), PASSED),  # a gap of 24 is twice that of 12
        (stepping(10, 21, 32), ("fail", "steps_stop")),
        (stepping(*range(30), training=lambda i: i < 30), PASSED),  # an evaluation at the end
        (stepping(*range(12), count=12), PASSED),  # the user stops early
        (stepping(0, count=3), PASSED),
        ((), PASSED),  # iterations that are not known
    ],
)
def test_steps(iterations, expected):
    assert judge(run(iterations=iterations)) == expected


def test_the_message_names_the_iteration_and_the_condition():
    verdict = check_training_continues(run(iterations=stepping(*range(12))))
    assert "No optimizer step follows iteration 11 of 60" in verdict.headline
    assert "under a condition" in verdict.causes[0]


# ---------------------------------------------------------------------- gradients
UNTIL = {k: [0.4] * k + [-1.0] * (N - k) for k in (12, 19, 20)}


@pytest.mark.parametrize(
    ("grads", "expected"),
    [
        ({"base": UNTIL[12], "head": UNTIL[12]}, ("fail", "grads_stop")),
        ({"head": UNTIL[12]}, ("fail", "grads_stop")),
        ({"base": UNTIL[19]}, ("fail", "grads_stop")),
        ({"base": UNTIL[20]}, PASSED),  # missing for a third
        ({"base": [-1.0] * 15 + [0.4] * 15}, PASSED),  # layer-wise unfreezing
        ({"base": [0.4, -1.0] * 15}, PASSED),  # alternating
        ({"base": [-1.0] * 5 + [0.4] * 5 + [-1.0] * 5 + [0.4] * 3 + [-1.0] * 12}, PASSED),  # by turns
        ({"base": [0.4] + [-1.0] * 29}, PASSED),  # once
        ({"base": [-1.0] * N}, PASSED),  # never had one: grads_nonzero
        ({"base": [0.4] * 12 + [0.0] * 18}, PASSED),  # dead units
        ({"base": [0.4] * 12 + [0.0] * 18, "head": [0.4] * 12 + [0.0] * 18}, ("fail", "grads_stop")),
        ({"base": [0.4] * 12 + [float("nan")] * 18, "head": [0.4] * 12 + [float("nan")] * 18}, PASSED),  # all_finite
    ],
)
def test_gradients(grads, expected):
    assert judge(run(grads=grads)) == expected


def test_a_loss_that_has_reached_zero_has_no_gradient():
    grads = {part: [0.4] * 12 + [0.0] * 18 for part in ("base", "head")}
    assert judge(run(grads=grads, losses=[0.5] * 12 + [0.0] * 18)) == PASSED
    assert judge(run(grads=grads, losses=[None] * N)) == PASSED


def test_one_tensor_of_several_may_stop():
    """An expert that no token is sent to any more."""
    changed = {"base_model.lin.bias": {"grad_norms": tuple(UNTIL[12])}}
    parts = dict(NAMES)
    found = run()
    tensors = tuple(dataclasses.replace(t, **changed.get(t.name, {})) for t in found.tensors)
    assert parts
    assert judge(dataclasses.replace(found, tensors=tensors)) == PASSED


def test_what_is_frozen_again_is_another_fault():
    found = run(grads={"head": UNTIL[12]})
    frozen = tuple(dataclasses.replace(t, trainable_last=t.part != "head") for t in found.tensors)
    assert judge(dataclasses.replace(found, tensors=frozen)) == PASSED


def test_the_message_names_the_step_and_the_part():
    verdict = check_training_continues(run(grads={"head": UNTIL[12]}))
    assert "From step 12 of 30 on the whole head (1 tensor) has no gradient (.grad is None)" in verdict.headline


# ---------------------------------------------------------------------- motion
STILL = [1e-3] * 12 + [0.0] * 18


def test_weights_that_stop_though_gradients_arrive():
    assert judge(run(updates={"head": STILL})) == ("fail", "updates_stop")
    assert judge(run(updates={"base": STILL, "head": STILL})) == ("fail", "updates_stop")
    assert judge(run(updates={"head": [1e-3] * 21 + [0.0] * 9})) == PASSED


def test_a_rate_of_zero_is_the_schedules_fault():
    assert judge(run(updates={"base": STILL, "head": STILL}, lrs=[1e-3] * 12 + [0.0] * 18)) == PASSED


def test_a_linear_decay_to_zero_moves_until_the_last_step():
    lrs = [1e-3 * (N - 1 - i) / N for i in range(N)]
    updates = dict.fromkeys(("base", "head"), lrs)
    assert judge(run(updates=updates, lrs=lrs)) == PASSED


def test_updates_that_bfloat16_rounds_away_are_another_fault():
    found = run(updates={"base": STILL, "head": STILL})
    short = tuple(dataclasses.replace(t, dtype="bfloat16") for t in found.tensors)
    assert judge(dataclasses.replace(found, tensors=short)) == PASSED


# ---------------------------------------------------------------------- not judged
def test_short_runs_and_runs_that_ended_early_are_not_judged():
    assert judge(example_trace(stopped="max_seconds=1 reached")) == SKIPPED
    assert judge(example_trace(steps=())) == SKIPPED
    assert judge(example_trace(recorded=tuple(range(9)), iterations=())) == SKIPPED


def test_steps_of_another_optimizer_leave_the_parts_unjudged():
    other = dataclasses.replace(example_trace().optimizer, other_optimizer_steps=10)
    assert judge(run(grads={"head": UNTIL[12]}, optimizer=other)) == PASSED
