"""What is concluded from the shards of one rank: what a shard lacks fails nothing, and a verdict says whose numbers these are."""

from __future__ import annotations

import dataclasses

import pytest

from pytest_ftcheck import check_grads_nonzero, check_weights_move, diagnose, example_trace
from pytest_ftcheck.core.example_trace import tensor
from pytest_ftcheck.core.observations import Gradients
from pytest_ftcheck.core.trace import Trace

STEPS = 20
#: 20 steps, each with a gradient of exactly zero; and none with one.
ZERO = Gradients(STEPS, 0, STEPS, 0, None, None, 0.0, 0.0, 0.0)
NONE = Gradients(STEPS, STEPS, 0, 0, None, None, 0.0, 0.0, 0.0)
CHECKS = (check_grads_nonzero, check_weights_move)


def still(name, part, gradients, **changes):
    """It had these gradients, and did not move."""
    whole = tensor(name, part, **changes)
    motion = dataclasses.replace(
        whole.motion,
        share_changed=0.0,
        share_with_gradient=0.0,
        rms=0.0,
        largest=0.0,
        relative=0.0,
        by_gradient=0.0,
        by_decay=0.0,
        max_update=0.0,
    )
    return dataclasses.replace(whole, gradients=gradients, motion=motion, last=whole.first)


def with_head(shard, *, gradients=ZERO, base_gradients=None):
    base = tensor("base.weight", "base", shard=None if shard is None else (32, 64))
    if base_gradients is not None:
        base = still("base.weight", "base", base_gradients, shard=base.shard)
    return example_trace(tensors=(base, still("classifier.weight", "head", gradients, shape=(2, 64), shard=shard)))


@pytest.mark.parametrize("check", CHECKS)
def test_a_whole_tensor_without_gradient_fails(check):
    assert check(with_head(None)).status == "fail"


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("shard", [(1, 64), (0, 64)], ids=["rows of zero gradient", "no rows"])
def test_a_shard_without_gradient_is_inconclusive_and_says_what_settles_it(check, shard):
    verdict = check(with_head(shard, gradients=ZERO if shard[0] else NONE))
    assert (verdict.status, verdict.fault, verdict.causes) == ("inconclusive", "", ())
    assert verdict.headline.startswith("This rank's shards do not decide it: 1 of 2")
    assert "w.gather()" in verdict.remedy


def test_it_is_no_fault_in_a_diagnosis():
    assert not [v for v in diagnose(with_head((1, 64))).verdicts if v.status == "fail"]


@pytest.mark.parametrize("check", CHECKS)
def test_a_part_that_is_left_with_no_shard_to_judge_is_inconclusive(check):
    assert check(with_head((1, 64)), "head").status == "inconclusive"


@pytest.mark.parametrize("check", CHECKS)
def test_where_no_shard_has_a_gradient_the_run_fails(check):
    assert check(with_head((1, 64), base_gradients=ZERO)).status == "fail"


@pytest.mark.parametrize("check", CHECKS)
def test_a_shard_that_the_graph_does_not_reach_fails(check):
    """``.grad`` is None on this rank: that is no question of its rows."""
    assert check(with_head((1, 64), gradients=NONE)).status == "fail"


@pytest.mark.parametrize("check", CHECKS)
def test_another_tensor_that_fails_is_named_alone(check):
    trace = with_head((1, 64))
    broken = still("score.weight", "head", NONE, shape=(2, 64), shard=(1, 64))
    verdict = check(dataclasses.replace(trace, tensors=(*trace.tensors, broken)))
    assert verdict.status == "fail"
    assert [row["tensor"] for row in verdict.evidence] == ["score.weight"]


@pytest.mark.parametrize("check", CHECKS)
def test_a_pass_says_that_it_is_that_of_shards(check):
    healthy = example_trace(tensors=(tensor("base.weight", "base", shard=(32, 64)), tensor("head.weight", "head")))
    verdict = check(healthy)
    assert verdict.status == "pass"
    assert "1 of 2 tensors are sharded: what is said of them is said of this rank's shards" in verdict.notes
    assert not any("sharded" in note for note in check(example_trace()).notes)


def test_a_shard_is_kept_in_a_file():
    trace = with_head((1, 64))
    assert Trace.from_json(trace.to_json()).tensors == trace.tensors
