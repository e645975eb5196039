"""An inconclusive check of a run that may be extended: twice and four times the steps, within a budget of seconds."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_ftcheck import (
    CheckFailed,
    Verdict,
    assert_healthy,
    assert_loss_decreases,
    check_loss_decreases,
    diagnose,
    example_trace,
    finetune,
    tiny_distilbert,
    toy_batches,
)
from pytest_ftcheck.checks.longer_runs import BudgetedRuns, judged_longer

NAME = "loss_decreases"


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Training:
    """A fine-tune that takes ``each`` seconds a step."""

    def __init__(self, each=0.05, budget=30.0, **changes):
        self.clock, self.each, self.asked, self.changes = Clock(), each, [], changes
        self.runs = BudgetedRuns(budget, self.clock)

    def trace(self, count, *, max_seconds=None, **fields):
        recipe = dataclasses.replace(example_trace().recipe, steps=count, max_seconds=max_seconds)
        seconds = self.each * count
        return example_trace(recipe=recipe, seconds=seconds, lengthen=self, longer_runs=self.runs, **fields)

    def __call__(self, steps, seconds):
        self.asked.append((steps, seconds))
        needed = self.each * steps * self.changes.get("slower", 1)
        self.clock.now += min(needed, seconds)
        cut = f"max_seconds={seconds:g} reached" if needed > seconds else None
        return self.trace(steps, stopped=cut, **self.changes.get("fields", {}))


def judging(**at_least):
    """A check by the number of steps: the status with the most steps that are reached, else inconclusive."""

    def judge(trace):
        steps = trace.recipe.steps
        found = [status for status, least in at_least.items() if steps >= least]
        return Verdict(NAME, found[-1] if found else "inconclusive", f"Judged at {steps}.")

    return judge


def extended(trace, judge):
    return judged_longer(judge, trace, judge(trace))


def test_it_stops_at_the_first_run_that_decides():
    training = Training()
    verdict = extended(training.trace(10), judging(**{"pass": 40}))
    assert verdict.status == "pass"
    assert verdict.headline == "Extended, 10 -> 20 -> 40 steps: Judged at 40."
    assert verdict.extended == (10, 20, 40)
    assert verdict.notes == (
        "after 10 steps: inconclusive. Judged at 10.",
        "2 longer runs took 3.00 s of the 30.0 s of --ftcheck-extend-seconds",
    )
    verdict = extended(training.trace(10), judging(**{"pass": 20}))
    assert verdict.extended == (10, 20)
    assert len(training.asked) == 2  # the runs are kept


def test_a_longer_run_may_fail():
    assert extended(Training().trace(10), judging(fail=20)).status == "fail"


def test_what_stays_inconclusive_says_so():
    verdict = extended(Training().trace(10), judging())
    assert verdict.status == "inconclusive"
    assert verdict.headline == "Extended, 10 -> 20 -> 40 steps: Judged at 40."
    assert verdict.notes[-1] == "not extended further: 2 longer runs are the most"


@pytest.mark.parametrize("status", ["fail", "pass", "skipped", "advice"])
def test_a_decided_run_is_not_extended(status):
    training = Training()
    assert extended(training.trace(10), judging(**{status: 1})) == Verdict(NAME, status, "Judged at 10.")
    assert training.asked == []


def test_what_was_not_measured_is_not_extended():
    training = Training()
    verdict = Verdict(NAME, "inconclusive", "Not measured.", unmeasured="loss")
    assert judged_longer(judging(), training.trace(10), verdict) is verdict
    assert training.asked == []


def test_a_run_that_ended_early_is_not_extended():
    training = Training()
    assert not extended(training.trace(10, stopped="max_seconds=1 reached"), judging()).extended
    assert training.asked == []


def test_a_run_without_a_budget_or_a_model_is_not_extended():
    trace = example_trace()
    assert not extended(trace, judging()).extended
    assert not extended(dataclasses.replace(trace, longer_runs=BudgetedRuns(30)), judging()).extended


def test_no_run_starts_that_would_not_fit():
    training = Training(each=1.0, budget=30)
    verdict = extended(training.trace(10), judging(**{"pass": 40}))
    assert verdict.extended == (10, 20)
    assert [steps for steps, _ in training.asked] == [20]
    assert (
        verdict.notes[-1] == "not extended further: 40 steps would take about 40.0 s, and 10.0 s of the budget are left"
    )
    training = Training(each=1.0, budget=19.9)
    verdict = extended(training.trace(10), judging(**{"pass": 20}))
    assert (verdict.status, verdict.headline, training.asked) == ("inconclusive", "Judged at 10.", [])
    assert verdict.extended == (10,)
    assert verdict.notes[-1].startswith("not extended: 20 steps would take about 20.0 s")


def test_a_run_that_takes_longer_than_thought_is_ended_and_not_judged():
    training = Training(each=1.0, budget=30, slower=5)
    verdict = extended(training.trace(10), judging(**{"pass": 20}))
    assert training.clock.now == 30
    assert verdict.status == "inconclusive"
    assert verdict.notes == ("not extended: a run of 20 steps was not complete after 30 s",)


def test_max_seconds_limits_the_first_run_and_the_longer_ones_together():
    training = Training(each=0.1)
    verdict = extended(training.trace(10, max_seconds=4.0), judging(**{"pass": 40}))
    assert training.asked == [(20, 3.0)]
    assert verdict.notes[-1].endswith("40 steps would take about 4.00 s, and 1.00 s of the budget are left")


def test_a_run_that_does_not_start_alike_is_not_judged():
    trace = example_trace()
    other = dataclasses.replace(trace.iterations[0], loss=0.71)
    for fields in ({"iterations": (other, *trace.iterations[1:])}, {"tensors": trace.tensors[1:]}):
        verdict = extended(Training(fields=fields).trace(10), judging(**{"pass": 20}))
        assert verdict.status == "inconclusive"
        assert "does not start as the first did" in verdict.notes[-1]


def test_learning_rates_of_the_users_own_have_to_go_on_as_they_were():
    """A scheduler inside of a loop body goes on where it was, instead of starting anew."""
    steps = tuple(dataclasses.replace(s, lrs=(0.0,)) for s in example_trace().steps)
    for own, status in ((("optimizer",), "inconclusive"), ((), "pass")):
        training = Training(fields={"steps": steps, "own_arguments": own})
        verdict = extended(training.trace(10, own_arguments=own), judging(**{"pass": 20}))
        assert verdict.status == status
        assert any("learning rates differ" in note for note in verdict.notes) == (status == "inconclusive")


def test_an_error_of_the_users_code_ends_it():
    def lengthen(steps, seconds):
        raise RuntimeError("the file is gone")

    trace = example_trace(lengthen=lengthen, longer_runs=BudgetedRuns(30))
    verdict = extended(trace, judging())
    assert verdict.status == "inconclusive"
    assert verdict.notes == ("not extended: a run of 40 steps raised RuntimeError",)


def test_a_longer_run_that_judges_nothing_changes_nothing():
    verdict = extended(Training().trace(10), judging(skipped=20))
    assert (verdict.status, verdict.headline) == ("inconclusive", "Judged at 10.")
    assert verdict.notes == ("not extended: the longer run judged nothing",)


def test_examples_of_hypothesis_keep_their_steps():
    from hypothesis import given, settings
    from hypothesis import strategies as st

    training = Training()

    @settings(max_examples=2, database=None)
    @given(st.integers(5, 10))
    def judged(steps):
        assert not extended(training.trace(steps), judging()).extended

    judged()
    assert training.asked == []


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_budget_is_a_finite_number(seconds):
    with pytest.raises(ValueError, match="extend_seconds="):
        BudgetedRuns(seconds)


# ---------------------------------------------------------------------- real runs
@pytest.fixture(scope="module")
def short():
    """Five steps are too few for the sign test; ten are not."""
    return finetune(tiny_distilbert, toy_batches(), lr=1e-3, steps=5, probes=["loss", "descent"])


def with_budget(trace, seconds=1e6):
    return dataclasses.replace(trace, longer_runs=BudgetedRuns(seconds))


@pytest.mark.trains
def test_it_is_the_same_recipe_with_more_steps(short):
    again = short.lengthen(10, 100.0)
    assert dataclasses.replace(again.recipe, steps=5, max_seconds=None) == short.recipe
    assert again.recipe.lr_sum() == pytest.approx(sum(step.lrs[0] for step in again.steps))
    assert again.losses[0] == short.losses[0]
    assert again.lengthen is None
    assert again.remeasure is None


@pytest.mark.trains
def test_an_assertion_extends_and_a_diagnosis_does_not(short):
    trace = with_budget(short)
    assert check_loss_decreases(short).status == "inconclusive"
    verdict = assert_loss_decreases(trace)
    assert verdict.status == "pass"
    assert verdict.extended == (5, 10)
    assert diagnose(trace).having("inconclusive")


@pytest.mark.trains
def test_assert_healthy_extends_what_is_inconclusive(short):
    ignore = [v.check for v in diagnose(short).having("inconclusive") if v.check != NAME]
    with pytest.raises(CheckFailed, match="do not re-run"):
        assert_healthy(short, ignore=ignore)
    diagnosis = assert_healthy(with_budget(short), ignore=ignore)
    assert ", 1 of them in a longer run (up to 10 steps)" in diagnosis.headline
    assert "extended:\n   loss_decreases: Extended, 5 -> 10 steps" in str(diagnosis)
    with pytest.raises(CheckFailed) as error:  # it depends on the machine's speed
        assert_healthy(with_budget(short, seconds=1e-6), ignore=ignore)
    assert "do not re-run" not in str(error.value)


@pytest.mark.trains
def test_an_unhealthy_run_is_not_extended():
    trace = with_budget(finetune(tiny_distilbert, toy_batches(), lr=0.0, steps=5, probes=["loss", "descent"]))
    with pytest.raises(CheckFailed) as error:
        assert_healthy(trace)
    assert trace.longer_runs.after(dataclasses.replace(trace, lengthen=None), 0) is None
    assert error.value.verdict.fault == "lr_zero"


@pytest.mark.trains
def test_only_what_can_be_had_again_is_extended():
    import torch

    model = tiny_distilbert()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=3)
    arguments = {"steps": 3, "probes": ["loss"]}
    assert finetune(model, toy_batches(), optimizer=optimizer, **arguments).lengthen is not None
    assert finetune(model, toy_batches(), optimizer=optimizer, scheduler=scheduler, **arguments).lengthen is None
    assert finetune(model, iter(toy_batches()), **arguments).lengthen is None


@pytest.mark.trains
def test_only_a_few_traces_keep_their_model():
    model, batches = tiny_distilbert(), toy_batches()
    first = finetune(model, batches, steps=1, probes=[])
    for probe in ("inputs", "modes", "data", "head_state", "loop"):
        first.remeasure(probe)
    first.lengthen(2, 100.0)
    assert first.lengthen is not None  # its own repetitions are not counted
    for _ in range(4):
        finetune(model, batches, steps=1, probes=[])
    assert first.lengthen is None
