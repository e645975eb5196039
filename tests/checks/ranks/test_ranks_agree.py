"""ranks_agree: records of two ranks, written by hand; each fault is named, and its healthy twin is not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck import Trace, assert_ranks_agree, check_ranks_agree, diagnose, example_trace
from pytest_ftcheck.checks.ranks.record import (
    BARE,
    NO_SYNC,
    WRAPPED,
    Rank,
    RankGroup,
    RankRun,
    Ranks,
    RankScheduler,
    RankStep,
    RankWeights,
)

N = 12
START, MOVE = (1.0, -2.0), (0.1, 0.05)


def moved(i, start=START):
    """The weights after i steps."""
    return tuple(a + i * b for a, b in zip(start, MOVE, strict=True))


def own_gradient(rank, i):
    """What a rank computes at step i: on other rows another one."""
    return (math.sin(i + 7 * rank), math.cos(3 * i + rank), 0.3 * rank + 0.1, 1.0 - 0.5 * rank)


def mean_gradient(i, factor=1.0):
    return tuple(factor * (a + b) / 2 for a, b in zip(own_gradient(0, i), own_gradient(1, i), strict=True))


def step(rank, i, **changes):
    made = RankStep(
        i, weights=moved(i), local=own_gradient(rank, i), gradients=mean_gradient(i), call=WRAPPED, loss_weight=1.0
    )
    return replace(made, **changes)


def rank(number, *, weights=None, run=None, each_step=None, **changes):
    run = {
        "steps": N,
        "groups": (RankGroup(0.01, {"eps": 1e-8}),),
        "lrs_at": tuple(range(N)),
        "lrs": tuple((1e-3,) for _ in range(N)),
        "iterations": N,
        **(run or {}),
    }
    made = Rank(
        rank=number,
        weights=(
            RankWeights("body.weight", (4, 4), 16, START, moved(N)),
            RankWeights("head.weight", (2, 4), 8, (3.0, 1.0), (3.5, 1.5)),
        ),
        sampled=("body.weight", "head.weight"),
        steps=tuple(step(number, i, **((each_step or (lambda _: {}))(i))) for i in range(N)),
        rows=tuple(100 * number + i for i in range(N)),
        rows_in_order=tuple(500 + 100 * number + i for i in range(N)),
        calls=N,
        wrapped=True,
        run=RankRun(**run),
    )
    if weights is not None:
        changes["weights"] = (made.weights[0], replace(made.weights[1], **weights))
    return replace(made, **changes)


def trace(*ranks, gathered=True) -> Trace:
    return example_trace(measurements={"ranks": Ranks(2, tuple(ranks), gathered=gathered)})


def verdict(one, other):
    return check_ranks_agree(trace(one, other))


def alone(i):
    """Gradients that stay on their rank."""
    return lambda r: {"gradients": own_gradient(r, i)}


# ---------------------------------------------------------------------- what is no fault
def test_ranks_that_agree_pass():
    found = verdict(rank(0), rank(1))
    assert (found.status, found.fault) == ("pass", "")
    assert "2 ranks agree over 12 steps: 2 tensors" in found.headline


def test_one_process_is_skipped_as_not_applicable():
    found = check_ranks_agree(example_trace())
    assert (found.status, found.unmeasured) == ("skipped", "")
    assert "one process trained" in found.headline


def test_without_gather_it_is_not_measured_and_says_how():
    found = next(v for v in diagnose(trace(rank(1), gathered=False)).not_measured if v.check == "ranks_agree")
    assert (found.status, found.unmeasured) == ("skipped", "ranks")
    assert "rank 1 of 2" in found.headline
    assert "w.gather()" in found.remedy
    with pytest.raises(AssertionError, match=r"w\.gather\(\)"):
        assert_ranks_agree(trace(rank(1), gathered=False))


def test_a_probe_that_raised_is_not_measured():
    found = check_ranks_agree(example_trace(skipped={"ranks": "it raised RuntimeError"}))
    assert found.status == "inconclusive"
    assert "RuntimeError" in found.headline


def test_a_gathered_trace_survives_json():
    merged = trace(rank(0), rank(1))
    assert Trace.from_json(merged.to_json()) == merged


def test_three_ranks():
    def third(i):
        return {"gradients": mean_gradient(i)}

    found = check_ranks_agree(trace(rank(0), rank(1), rank(2, each_step=third)))
    assert found.status == "pass"
    apart = rank(2, each_step=lambda i: {**third(i), **drifting(i)}, weights={"last": (9.0, 9.0)})
    found = check_ranks_agree(trace(rank(0), rank(1), apart))
    assert found.fault == "ranks_drift_apart"
    assert found.evidence[0]["ranks"] == "0 and 2"


# ---------------------------------------------------------------------- weights
def test_start_weights():
    other = verdict(rank(0), rank(1, weights={"first": (3.3, 0.2)}))
    assert other.fault == "start_weights_differ"
    assert "1 of 2 tensors" in other.headline
    assert "head.weight" in other.headline
    rounded = verdict(rank(0), rank(1, weights={"first": (3.0 * (1 + 1e-7), 1.0)}))
    assert rounded.status == "pass"


def drifting(i):
    """Weights that another write moved at step 6."""
    return {"weights": moved(i + (i > 5))}


def test_end_weights():
    moved_far = math.dist((3.0, 1.0), (3.5, 1.5))
    for share, fault in ((0.02, "ranks_drift_apart"), (0.005, "")):
        last = {"last": (3.5 + share * moved_far, 1.5)}
        assert verdict(rank(0), rank(1, weights=last, each_step=drifting)).fault == fault
    found = verdict(rank(0), rank(1, weights={"last": (4.5, 1.5)}, each_step=drifting))
    assert "from step 6 on" in found.headline


def test_weights_of_a_rank_that_never_moved():
    frozen = {"first": (3.0, 1.0), "last": (3.0, 1.0)}
    written = {"first": (3.0, 1.0), "last": (3.1, 1.0)}
    found = verdict(rank(0, weights=frozen), rank(1, weights=written, each_step=drifting))
    assert found.fault == "ranks_drift_apart"


def test_weights_written_after_the_last_step():
    """An average that one rank evaluates: the training is over."""
    last = {"last": (9.0, 9.0)}
    found = verdict(rank(0), rank(1, weights=last))
    assert found.status == "pass"
    assert "written after it" in found.notes[0]
    unfollowed = [replace(r, sampled=("body.weight",)) for r in (rank(0), rank(1, weights=last))]
    assert verdict(*unfollowed).fault == "ranks_drift_apart"


def test_shards_are_not_compared():
    def shards(number):
        held = tuple(RankWeights(n, (4, 4), 8, sharded=True) for n in ("a", "b"))
        bare = [replace(s, weights=(), local=(), gradients=()) for s in rank(number).steps]
        return replace(rank(number), weights=held, sampled=(), steps=tuple(bare), sharded=True)

    found = verdict(shards(0), shards(1))
    assert found.status == "pass"
    assert "2 tensors of 2 are sharded" in found.notes[0]
    same = verdict(shards(0), replace(shards(1), rows=shards(0).rows))
    assert same.fault == "same_rows_on_all_ranks"


def test_ranks_with_other_tensors_are_not_judged():
    found = verdict(rank(0), replace(rank(1), weights=rank(1).weights[:1]))
    assert found.status == "inconclusive"
    assert "group=" in found.remedy


# ---------------------------------------------------------------------- gradients
APART = {"last": (5.0, 2.0)}


@pytest.mark.parametrize(
    ("call", "wrapped", "fault"),
    [
        (BARE, False, "ranks_train_alone"),
        (BARE, True, "wrapper_bypassed"),
        (NO_SYNC, True, "no_sync_left_on"),
        (WRAPPED, True, "rank_gradients_differ"),
        ("", True, "rank_gradients_differ"),
    ],
)
def test_gradients_that_stay_on_their_rank(call, wrapped, fault):
    def of(number):
        return lambda i: {"gradients": own_gradient(number, i), "call": call}

    found = verdict(rank(0, each_step=of(0), wrapped=wrapped), rank(1, each_step=of(1), wrapped=wrapped, weights=APART))
    assert found.fault == fault
    assert "at 12 of 12 recorded steps, from step 0 on" in found.headline


def test_gradients_that_differ_after_averaging_are_not_blamed_on_the_wrapper():
    found = verdict(
        rank(0, wrapped=False, each_step=lambda i: {"call": BARE}),
        rank(1, wrapped=False, weights=APART, each_step=lambda i: {"call": BARE, "gradients": mean_gradient(i + 1)}),
    )
    assert found.fault == "rank_gradients_differ"


def test_weights_that_are_averaged_now_and_then():
    """Local SGD: gradients differ, weights are the same again after each round."""

    def of(number):
        return lambda i: {
            "gradients": own_gradient(number, i),
            "call": BARE,
            "weights": moved(i + 0.3 * number * (i % 3)),
        }

    def pair(**last):
        return rank(0, each_step=of(0), wrapped=False), rank(1, each_step=of(1), wrapped=False, **last)

    assert verdict(*pair()).status == "pass"
    assert verdict(*pair(weights=APART)).status == "pass"  # the run ended between two rounds


@pytest.mark.parametrize(("factor", "fault"), [(2.0, "rank_gradients_summed"), (0.5, "rank_gradients_averaged_twice")])
def test_factor_of_the_ranks(factor, fault):
    def of(**changes):
        return lambda i: {"gradients": mean_gradient(i, factor), **changes}

    def both(**changes):
        return verdict(rank(0, each_step=of(**changes)), rank(1, each_step=of(**changes)))

    found = both()
    assert found.fault == fault
    assert ("2.00" if factor == 2 else "0.500") in found.headline
    # the loss makes up for it: it is a mean over the rows of all ranks
    assert both(loss_weight=1 / factor).status == "pass"
    # clipping did it
    assert both(clipped=factor).status == "pass"
    unknown = both(loss_weight=None)
    assert (unknown.status, unknown.fault) == ("inconclusive", "")
    assert "not known" in unknown.headline


def test_other_factors_are_no_business_of_the_ranks():
    for factor in (0.3, 1.0, 1.2, 65536.0, 3.0):
        scaled = [rank(r, each_step=lambda i, f=factor: {"gradients": mean_gradient(i, f)}) for r in (0, 1)]
        assert verdict(*scaled).status == "pass"


def test_a_factor_must_be_there_at_each_step():
    def now_and_then(i):
        return {"gradients": mean_gradient(i, 0.5 if i % 2 else 0.9)}

    assert verdict(rank(0, each_step=now_and_then), rank(1, each_step=now_and_then)).status == "pass"


def test_gradients_changed_by_the_user_are_no_fault():
    """Clipped by value, normalised, projected: no multiple of the mean, and the same on all ranks."""

    def clipped(i):
        return {"gradients": tuple(max(-0.2, min(0.2, g)) for g in mean_gradient(i))}

    assert verdict(rank(0, each_step=clipped), rank(1, each_step=clipped)).status == "pass"


# ---------------------------------------------------------------------- settings and steps
def test_settings():
    for changes, words in (
        (
            {"groups": (RankGroup(0.3, {"eps": 1e-8}),)},
            "Group 0: weight_decay is 0.0100 on rank 0, and 0.300 on rank 1",
        ),
        ({"groups": (RankGroup(0.01, {"eps": 1e-6}),)}, "Group 0: eps is"),
        ({"groups": ()}, "number of parameter groups is 1 on rank 0, and 0 on rank 1"),
        ({"lrs": tuple((1e-3 if i < 5 else 5e-4,) for i in range(N))}, "Group 0: the learning rate at step 5 is"),
    ):
        found = verdict(rank(0), rank(1, run=changes))
        assert found.fault == "rank_settings_differ"
        assert words in found.headline
    rounded = {"lrs": tuple((1e-3 * (1 + 1e-9),) for _ in range(N))}
    assert verdict(rank(0), rank(1, run=rounded)).status == "pass"


def test_numbers_of_steps():
    assert verdict(rank(0), rank(1, run={"steps": N + 3}, weights=APART)).fault == "rank_steps_differ"
    joined = verdict(rank(0), rank(1, run={"steps": N + 3}))  # DDP's join(): the weights are sent to all at the end
    assert joined.status == "pass"


def test_a_step_more_is_not_blamed_on_the_gradients():
    late = rank(1, run={"steps": N + 1}, weights=APART, each_step=lambda i: {"gradients": mean_gradient(max(0, i - 1))})
    found = verdict(rank(0), late)
    assert found.fault == "rank_steps_differ"
    assert any("gradients" in cause for cause in found.causes[1:])


def test_the_first_nonfinite_loss_is_told_from_its_rank():
    found = verdict(rank(0, run={"first_nonfinite_loss": 7}), rank(1, run={"first_nonfinite_loss": 5}))
    assert found.fault == "nonfinite_on_one_rank"
    assert "Rank 1 begins in iteration 5" in found.headline
    assert "rank 1" in found.remedy
    only = verdict(rank(0), rank(1, run={"first_nonfinite_loss": 5}))
    assert only.fault == "nonfinite_on_one_rank"
    at_once = verdict(rank(0, run={"first_nonfinite_loss": 5}), rank(1, run={"first_nonfinite_loss": 5}))
    assert at_once.status == "pass"


def test_a_nonfinite_gradient_is_told_where_losses_are_finite():
    found = verdict(rank(0), rank(1, first_nonfinite_local=3))
    assert found.fault == "nonfinite_on_one_rank"
    assert "step 3, whose gradient" in found.headline
    assert verdict(rank(0, first_nonfinite_local=3), rank(1, first_nonfinite_local=3)).status == "pass"


def test_nan_everywhere_is_the_same_everywhere():
    nan = {"gradients": (math.nan,) * 4, "local": (math.nan,) * 4}
    both = [rank(r, each_step=lambda i: nan if i > 5 else {}, weights={"last": (math.nan, math.nan)}) for r in (0, 1)]
    assert verdict(*both).status == "pass"


# ---------------------------------------------------------------------- rows
def test_the_same_rows_on_all_ranks():
    one = rank(0)
    assert verdict(one, rank(1, rows=one.rows)).fault == "same_rows_on_all_ranks"
    some = (*one.rows[:6], *rank(1).rows[6:])
    assert verdict(one, rank(1, rows=some)).status == "pass"
    assert verdict(rank(0, rows=()), rank(1, rows=())).status == "pass"
    again = tuple(one.rows[0] for _ in one.rows)  # one batch is to be overfitted
    assert verdict(rank(0, rows=again), rank(1, rows=again)).status == "pass"
    tensor_parallel = [rank(r, rows=one.rows, sharded_otherwise=True) for r in (0, 1)]
    assert verdict(*tensor_parallel).status == "pass"


def test_epochs_in_the_same_order():
    epoch = (5, 6, 7, 8)

    def found(order, never_set=True):
        return verdict(*(rank(r, rows_in_order=order, epoch_never_set=never_set) for r in (0, 1))).fault

    assert found(epoch * 3) == "epochs_in_same_order"
    assert found((*epoch, *epoch)) == "epochs_in_same_order"
    assert found(epoch * 3, never_set=False) == ""  # no sampler that shuffles: the order is meant
    assert found((*epoch, 6, 5, 8, 7, *epoch)) == ""
    assert found(epoch) == ""
    assert found((*epoch, *epoch[:3])) == ""  # the second epoch is not over
    assert found((5,) * 12) == ""  # one batch


# ---------------------------------------------------------------------- the schedule
def scheduled(idle, pace, steps=40):
    """Rates that fall to zero, which they are for the last ``idle`` steps."""
    rates = tuple((1e-3 * max(0.0, 1 - i / (steps - idle)),) for i in range(steps))
    run = {"steps": steps, "lrs": rates, "lrs_at": tuple(range(steps))}
    return [rank(r, run=run, schedulers=(RankScheduler("LambdaLR", pace),)) for r in (0, 1)]


def test_a_schedule_stepped_once_a_rank():
    found = verdict(*scheduled(idle=20, pace=2.0))
    assert found.fault == "schedule_stepped_once_a_rank"
    assert "LambdaLR steps 2.00 times" in found.headline
    assert "50 %" in found.headline


def test_a_schedule_of_accelerate_that_ends_with_the_run():
    assert verdict(*scheduled(idle=0, pace=2.0)).status == "pass"
    assert verdict(*scheduled(idle=1, pace=2.0)).status == "pass"


def test_a_schedule_that_ends_early_for_another_reason():
    assert verdict(*scheduled(idle=20, pace=1.0)).status == "pass"
    assert verdict(*scheduled(idle=10, pace=2.0)).status == "pass"


# ---------------------------------------------------------------------- several at once
def test_the_most_fundamental_comes_first_and_the_others_are_named():
    one = rank(0, rows=rank(1).rows)
    found = verdict(one, rank(1, weights={"first": (0.0, 9.0), "last": (5.0, 2.0)}))
    assert found.fault == "start_weights_differ"
    assert any("same rows" in cause for cause in found.causes)
