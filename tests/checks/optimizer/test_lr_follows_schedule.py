"""lr_follows_schedule: the rates of each step against the declared ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_ftcheck import Intent, check_lr_follows_schedule, example_trace
from pytest_ftcheck.core.observations import Group, Step
from pytest_ftcheck.core.recipe import Recipe

GOOD = example_trace()
PLAN = Intent(peak_lr=1e-3, schedule="linear", warmup_steps=6, total_steps=60)
N = 60


def run(*groups, intent=PLAN, **optimizer):
    """A run whose groups have these rates, one a step."""
    steps = tuple(Step(i, rates, 0.9, None, True) for i, rates in enumerate(zip(*groups, strict=True)))
    held = tuple(Group(g, r[0], max(r), sum(r), 0.01, {}, 4, 0) for g, r in enumerate(groups))
    return replace(GOOD, steps=steps, intent=intent, optimizer=replace(GOOD.optimizer, groups=held, **optimizer))


def fault(*groups, intent=PLAN, **optimizer):
    verdict = check_lr_follows_schedule(run(*groups, intent=intent, **optimizer))
    assert verdict.status in ("pass", "fail")
    assert bool(verdict.fault) == (verdict.status == "fail")
    return verdict.fault


def planned(n=N, plan=PLAN, pace=1.0, shift=0):
    return [plan.lr_at(int(i * pace) + shift) for i in range(n)]


def test_as_declared():
    assert fault(planned()) == ""
    assert fault(planned(20)) == ""  # the first part of it
    assert "as declared" in check_lr_follows_schedule(run(planned())).headline


def test_both_ways_of_counting_steps():
    from_one = [1e-3 * (i + 1) / 6 if i < 6 else PLAN.lr_at(i) for i in range(N)]
    assert fault(from_one) == ""
    assert fault(planned(shift=1)) == ""
    to_zero = [1e-3 * min(i / 5, (59 - i) / 54) for i in range(N)]
    assert fault(to_zero) == ""


def test_a_recipe_of_our_own_follows_itself():
    intent = Intent().filled(GOOD.recipe)
    assert check_lr_follows_schedule(replace(GOOD, intent=intent)).status == "pass"


def test_another_peak():
    tenth = [r / 10 for r in planned()]
    verdict = check_lr_follows_schedule(run(tenth))
    assert verdict.fault == "peak_lr_differs"
    assert "1.00e-04" in verdict.headline
    assert fault([1e-4] * N, intent=Intent(peak_lr=1e-3, schedule="constant")) == "peak_lr_differs"
    assert fault([1e-2] * N, intent=Intent(peak_lr=1e-3)) == "peak_lr_differs"
    assert fault([1e-4] * N, intent=Intent(peak_lr=1e-3)) == "peak_lr_differs"
    assert fault([1e-6 * i for i in range(N)], intent=Intent(peak_lr=1e-3)) == ""  # it may still rise
    assert fault([1.04e-3] * N, intent=Intent(peak_lr=1e-3)) == ""


def test_wording():
    assert str(check_lr_follows_schedule(run([r / 10 for r in planned()]))).splitlines() == [
        "lr_follows_schedule: FAIL. Declared: a peak LR of 0.00100; it reached 1.00e-04 in 60 steps.",
        "  step        LR  declared",
        "     0         0         0",
        "     1  1.67e-05  1.67e-04",
        "    15  8.33e-05  8.33e-04",
        "    30  5.56e-05  5.56e-04",
        "    45  2.78e-05  2.78e-04",
        "    59  1.85e-06  1.85e-05",
        "  cause: the optimizer was built with another rate (0.100 times the declared one)",
        "  do: pass lr=0.001; check what overrides it later (a default, a config, a scheduler that sets its own)",
        "  limit: within 5.0 % of the declared peak, one step earlier or later",
        "  measured: learning rates in force at 60 steps",
    ]


def test_constant_where_a_schedule_was_declared():
    assert fault([1e-3] * N) == "lr_constant"
    assert fault([0.0] * N) == "lr_zero"
    assert fault([1e-3] * N, intent=Intent(peak_lr=1e-3, schedule="constant")) == ""


def test_steps_that_a_scaler_skipped_may_count_for_the_schedule():
    trace = run(planned(40, shift=12))
    assert check_lr_follows_schedule(trace).status == "fail"
    late = replace(trace, steps=tuple(replace(s, iteration=s.iteration + 12) for s in trace.steps))
    assert check_lr_follows_schedule(late).status == "pass"
    # or not: HF's Trainer leaves the scheduler where it is
    waits = run(planned(40))
    waits = replace(waits, steps=tuple(replace(s, iteration=s.iteration + 12) for s in waits.steps))
    assert check_lr_follows_schedule(waits).status == "pass"


def test_accumulation_is_no_skipping():
    plan = replace(PLAN, accumulation=4)
    steps = run(planned(40), intent=plan)
    spread = replace(steps, steps=tuple(replace(s, iteration=4 * s.iteration + 3) for s in steps.steps))
    assert check_lr_follows_schedule(spread).status == "pass"
    often = run(planned(40, pace=4), intent=plan)
    often = replace(often, steps=tuple(replace(s, iteration=4 * s.iteration + 3) for s in often.steps))
    assert check_lr_follows_schedule(often).fault == "scheduler_too_often"
    undeclared = replace(often, intent=PLAN)
    assert check_lr_follows_schedule(undeclared).fault == "scheduler_too_often"


def test_zeros_at_the_end_as_declared():
    plan = replace(PLAN, total_steps=30)
    assert fault(planned(plan=plan), intent=plan) == ""


def test_stepped_once_an_epoch():
    per_epoch = [PLAN.lr_at(i // 10) for i in range(N)]
    verdict = check_lr_follows_schedule(run(per_epoch))
    assert verdict.fault == "scheduler_too_seldom"
    assert "every 10 steps" in verdict.headline


@pytest.mark.parametrize("pace", [2, 4, 8])
def test_stepped_too_often(pace):
    verdict = check_lr_follows_schedule(run(planned(pace=pace), intent=replace(PLAN, accumulation=pace)))
    assert verdict.fault == "scheduler_too_often"
    assert f"{pace} times as fast" in verdict.headline
    assert f"accumulation is {pace}" in verdict.causes[0]


def test_a_warm_up_that_is_longer_than_the_run():
    verdict = check_lr_follows_schedule(run([1e-3 * i / 2000 for i in range(N)]))
    assert verdict.fault == "warmup_differs"
    assert "2,000 steps" in verdict.headline


def test_a_schedule_that_is_over_too_early():
    short = replace(PLAN, total_steps=30)
    assert fault(planned(plan=short)) == "decays_too_early"
    assert fault(planned(plan=short), intent=None) == "decays_too_early"


def test_a_schedule_of_another_length():
    verdict = check_lr_follows_schedule(run(planned(plan=replace(PLAN, total_steps=600))))
    assert verdict.fault == "schedule_differs"
    assert verdict.evidence[-1]["declared"] == pytest.approx(PLAN.lr_at(59))


@pytest.mark.parametrize(
    "rates",
    [
        [1e-3] * N,
        [1e-3 * (i % 10) / 10 for i in range(N)],  # cyclic, back to zero
        [1e-3 * 0.5 ** (i // 20) for i in range(N)],
        [1e-3 * i / 1000 for i in range(N)],  # a long warm-up
        [1e-3] * (N - 4) + [0.0] * 4,
        [0.0],
    ],
)
def test_nothing_declared_is_nothing_judged(rates):
    assert fault(rates, intent=None) == ""


def test_zero_throughout_needs_no_declaration():
    assert fault([0.0] * 5, intent=None) == "lr_zero"
    assert fault([0.0] * 5, [1e-3] * 5, intent=None) == ""


def test_groups_with_rates_of_their_own():
    assert fault([r / 10 for r in planned()], planned()) == ""
    assert fault(planned(), [10 * r for r in planned()]) == ""
    verdict = check_lr_follows_schedule(run(planned(), [1e-3] * N))
    assert verdict.fault == "group_not_scheduled"
    assert "1 parameter group of 2" in verdict.headline
    assert "0.00100" in verdict.headline
    assert fault(planned(), [0.0] * N) == ""
    assert fault(planned(), [1e-3] * N, intent=replace(PLAN, thaw_step=30)) == ""


def test_structure_needs_no_declaration():
    assert (
        fault([1e-3] * N, intent=None, scheduler="LambdaLR", scheduler_of_other_optimizer=True)
        == "scheduler_on_another_optimizer"
    )
    assert (
        fault(planned(shift=1), intent=None, scheduler="LambdaLR", scheduler_stepped_first=60)
        == "scheduler_before_optimizer"
    )
    # once, and not at the first iteration: a step that a GradScaler skipped
    later = run(planned(), intent=None, scheduler="LambdaLR", scheduler_stepped_first=1)
    later = replace(later, steps=tuple(replace(s, iteration=s.iteration + 1) for s in later.steps))
    assert check_lr_follows_schedule(later).status == "pass"


def test_only_the_watched_optimizers_steps_count():
    trace = run(planned())
    other = tuple(x for s in trace.steps for x in (s, replace(s, by_watched_optimizer=False, lrs=(0.5,))))
    assert check_lr_follows_schedule(replace(trace, steps=other)).status == "pass"


def test_the_declared_peak_may_be_that_of_another_optimizer():
    trace = run([1e-4] * N, intent=Intent(peak_lr=1e-3, schedule="constant"))
    assert check_lr_follows_schedule(trace).fault == "peak_lr_differs"

    def beside(lr):
        return replace(
            trace, steps=tuple(x for s in trace.steps for x in (s, replace(s, by_watched_optimizer=False, lrs=(lr,))))
        )

    assert check_lr_follows_schedule(beside(1e-3)).status == "pass"
    assert check_lr_follows_schedule(beside(1e-2)).fault == "peak_lr_differs"
    assert check_lr_follows_schedule(replace(beside(1e-3), steps=beside(1e-3).steps[:-5])).fault == "peak_lr_differs"


def test_no_step_or_no_rate_is_nothing_to_judge():
    assert check_lr_follows_schedule(replace(GOOD, steps=())).status == "skipped"
    assert check_lr_follows_schedule(run([float("nan")] * 5)).status == "skipped"


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([1e-3 * 0.5**i for i in range(40)], "decays_too_early"),
        ([1e-3 * 0.95**i for i in range(40)], ""),
        ([1e-3 * 0.1 ** (i // 10) for i in range(40)], ""),  # three drops to a tenth
        ([1e-3 * (1 - i / 40) ** 4 for i in range(40)], ""),
        ([1e-3] * 30 + [1.1e-7] * 10, ""),
        ([1e-3] * 30 + [0.9e-7] * 10, "decays_too_early"),
        ([1e-3] * 31 + [0.9e-7] * 9, ""),
    ],
)
def test_a_rate_that_falls_to_nearly_zero(rates, expected):
    assert fault(rates, intent=None) == expected


def test_the_headline_has_the_rate_that_is_left():
    headline = check_lr_follows_schedule(run([1e-3 * 0.5**i for i in range(40)], intent=None)).headline
    assert "is at most" in headline
    assert "of its highest" in headline


@pytest.mark.parametrize(
    ("rate", "plan", "status"),
    [
        (1e-3 / 6, PLAN, "pass"),  # a warm-up that counts from 1: the run ended after its first step
        (1e-3, Intent(peak_lr=1e-3, schedule="linear", warmup_steps=1, total_steps=1), "pass"),
        (1e-3, Intent(peak_lr=1e-3, schedule="constant", warmup_steps=1), "pass"),
        (0.0, PLAN, "pass"),
        (5e-4, PLAN, "inconclusive"),
        (1e-4, Intent(peak_lr=1e-3, schedule="constant"), "inconclusive"),
        (1e-4, Intent(peak_lr=1e-3), "inconclusive"),
        (1e-2, PLAN, "fail"),
        (1e-2, Intent(peak_lr=1e-3), "fail"),
    ],
)
def test_one_step_decides_a_rate_above_the_peak_alone(rate, plan, status):
    verdict = check_lr_follows_schedule(run([rate], intent=plan))
    assert verdict.status == status
    assert verdict.fault == ("peak_lr_differs" if status == "fail" else "")
    assert ("may be the first of a warm-up" in verdict.headline) is (status == "inconclusive")


@pytest.mark.parametrize("warmup", [0.0, 0.1, 1, 3])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_recipe_of_our_own_follows_itself_for_one_step(warmup, schedule):
    recipe = Recipe(steps=1 if warmup == 1 else 10, warmup=warmup, schedule=schedule)
    rates = [recipe.lr_at(0)]
    assert fault(rates, intent=Intent().filled(recipe)) == ""
