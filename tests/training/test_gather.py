"""w.gather(): the traces of all ranks, and who is told what where they cannot be had."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from gathering import net, run, watched
from torch import distributed

from pytest_ftcheck import Trace, check_ranks_agree, example_trace
from pytest_ftcheck.checks.ranks.record import Rank, Ranks, RankWeights
from pytest_ftcheck.training.gather import gather
from pytest_ftcheck.training.merge_ranks import merge_ranks, own_record
from pytest_ftcheck.training.merge_shards import merge_shards

needs_gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="torch was built without gloo"
)


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """Name of a function in `gathering` -> what it returned on each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    context = torch.multiprocessing.start_processes(run, (str(folder),), 2, join=False, start_method="spawn")
    try:
        while not context.join(timeout=60.0):
            pass
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()
    found = [json.loads((folder / f"result{rank}").read_text(encoding="utf-8")) for rank in (0, 1)]
    return {name: [of_rank[name] for of_rank in found] for name in found[0]}


@needs_gloo
@pytest.mark.trains
def test_every_rank_gets_the_same_trace(on_two_ranks):
    (same, text), (also_same, other) = on_two_ranks["gathered"]
    assert same
    assert also_same
    assert text == other
    merged = Trace.from_json(text)
    assert [rank.rank for rank in merged.measured(Ranks).ranks] == [0, 1]
    assert merged.notes[-1] == "gathered from 2 ranks"
    assert check_ranks_agree(merged).fault == "ranks_train_alone"


@needs_gloo
@pytest.mark.trains
def test_a_rank_that_does_not_come_is_an_error_in_time(on_two_ranks):
    error, _ = on_two_ranks["one_rank_does_not_come"]
    assert "not all ranks called it within 2 s" in error
    assert "every rank" in error


@needs_gloo
@pytest.mark.trains
def test_a_block_that_began_before_the_group(on_two_ranks):
    for error in on_two_ranks["before_the_group"]:
        assert "rank 0 has no record" in error
        assert "init_process_group" in error


@needs_gloo
@pytest.mark.trains
def test_a_group_of_one_rank(on_two_ranks):
    assert on_two_ranks["of_a_group"] == ["gathered from 1 rank"] * 2


@needs_gloo
@pytest.mark.trains
def test_shards_are_merged_to_the_whole_tensors(on_two_ranks):
    assert on_two_ranks["sharded"] == [[], []]


# ---------------------------------------------------------------------- one process
def test_one_process_gets_its_own_trace():
    w = watched(net())
    merged = w.gather()
    assert replace(merged, notes=w.trace.notes) == w.trace
    assert merged.notes[-1] == "one process trained: there are no ranks to gather"


def test_without_a_group_where_there_are_others(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RuntimeError, match=r"not initialized, and WORLD_SIZE is 4"):
        gather(example_trace())


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), 1e9, "60", None])
def test_timeouts_that_are_none(timeout):
    with pytest.raises((ValueError, TypeError), match="timeout"):
        gather(example_trace(), timeout=timeout)


def test_gathered_before_the_end():
    from pytest_ftcheck import watch

    with watch(net()) as w, pytest.raises(RuntimeError, match="after the with block"):
        w.gather()


# ---------------------------------------------------------------------- merging by itself
def of_rank(number, **changes):
    record = Rank(rank=number, **changes)
    return example_trace(measurements={"ranks": Ranks(2, (record,))})


def test_order_does_not_matter():
    one, other = of_rank(0), replace(of_rank(1), notes=("the other",))
    assert merge_ranks([other, one]) == merge_ranks([one, other])
    assert merge_ranks([other, one]).notes == ("gathered from 2 ranks",)


def test_what_is_merged_is_not_gathered_again():
    merged = merge_ranks([of_rank(0), of_rank(1)])
    assert gather(merged) is merged


def test_what_the_trace_says_is_in_the_record():
    run = own_record(of_rank(0)).run
    assert (run.steps, run.iterations, run.first_nonfinite_loss) == (20, 20, None)
    assert run.lrs[0] == example_trace().steps[0].lrs
    diverged = tuple(replace(i, loss=float("nan")) if i.step == 3 else i for i in example_trace().iterations)
    assert own_record(replace(of_rank(0), iterations=diverged)).run.first_nonfinite_loss == 3


def test_what_cannot_be_merged():
    merged = merge_ranks([of_rank(0), of_rank(1)])
    for traces, words in (
        ([], "traces is empty"),
        ([of_rank(0), of_rank(0)], "come twice"),
        ([of_rank(0), example_trace()], r"traces\[1\] has no record of its rank"),
        ([merged, of_rank(1)], r"traces\[0\] is merged already"),
    ):
        with pytest.raises(ValueError, match=words):
            merge_ranks(traces)


def test_an_empty_shard_counts_for_nothing():
    t = example_trace().tensors[0]
    assert merge_shards([t, replace(t, grad_norms=())], [8, 0]).grad_norms == t.grad_norms


def test_a_gradient_that_one_shard_has():
    t = example_trace().tensors[0]
    none = replace(
        t, grad_norms=(-1.0,) * 20, gradients=replace(t.gradients, none=20, first_nonzero=None, max_norm=0.0)
    )
    found = merge_shards([none, t], [8, 8])
    assert found.grad_norms == pytest.approx(t.grad_norms, rel=1e-3)
    assert found.gradients.none == 0
    assert found.gradients.max_norm == max(found.grad_norms)


def test_only_sharded_tensors_are_merged():
    name = example_trace().tensors[0].name
    halves = [(RankWeights(name, (64, 64), 2048, sharded=True, part=(i,)),) for i in (0, 1)]
    doubled = merge_ranks([of_rank(i, weights=halves[i]) for i in (0, 1)])
    tensors = example_trace().tensors
    assert doubled.tensors[0].grad_norms[3] == pytest.approx(2**0.5 * tensors[0].grad_norms[3], rel=1e-3)
    assert doubled.tensors[1:] == tensors[1:]
    copies = merge_ranks([of_rank(i, weights=halves[0]) for i in (0, 1)])
    assert copies.tensors[0].grad_norms == tensors[0].grad_norms
