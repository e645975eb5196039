"""The traces that the ranks of one test share through a folder: none is a collective, and nobody waits for what cannot come."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from pytest_ftcheck import example_trace
from pytest_ftcheck.checks.ranks.record import Rank, Ranks
from pytest_ftcheck.pytest_plugin.ranks.shared_traces import SharedTraces
from pytest_ftcheck.training.merge_ranks import merge_ranks


def trace(rank, note=""):
    measured = {Ranks.probe: Ranks(2, (Rank(rank),))}
    return replace(example_trace(), measurements=measured, notes=(note,), skipped={})


@pytest.fixture
def ranks(tmp_path):
    return [SharedTraces(tmp_path, rank, 2) for rank in (0, 1)]


def test_both_ranks_see_the_same_merged_trace(ranks):
    own = [trace(rank) for rank in (0, 1)]
    assert all(shared.publish(one) for shared, one in zip(ranks, own, strict=True))
    assert ranks[0].merged(own[0]) == ranks[1].merged(own[1]) == merge_ranks(own)


def test_loops_are_matched_by_their_number(ranks):
    own = [[trace(rank, f"loop {i}") for i in (0, 1)] for rank in (0, 1)]
    for shared, traces in zip(ranks, own, strict=True):
        for one in traces:
            shared.publish(one)
    assert "loop 1" in ranks[1].merged(own[1][1]).notes
    assert "loop 0" in ranks[1].merged(own[1][0]).notes


def test_it_waits_for_a_rank_that_is_still_training(ranks):
    own, found = [trace(rank) for rank in (0, 1)], []
    ranks[0].publish(own[0])
    waiting = threading.Thread(target=lambda: found.append(ranks[0].merged(own[0])), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert not found
    ranks[1].publish(own[1])
    waiting.join(60)
    assert found == [merge_ranks(own)]


def test_a_rank_whose_body_is_over_is_not_waited_for(ranks):
    own = trace(0)
    ranks[0].publish(own)
    ranks[1].body_over()
    found = ranks[0].merged(own)
    assert not found.measured(Ranks).gathered
    assert found.notes[-1] == "not merged over the ranks: rank 1 has left no such watch block"
    assert ranks[0].merged(found) is found


def test_what_is_not_of_several_ranks_stays_as_it_is(ranks):
    alone, merged = example_trace(), merge_ranks([trace(rank) for rank in (0, 1)])
    assert not ranks[0].publish(alone)
    assert not ranks[0].publish(merged)
    assert ranks[0].merged(alone) is alone
    assert ranks[0].merged(merged) is merged
