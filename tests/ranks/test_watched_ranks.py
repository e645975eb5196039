"""``watch`` on two real ranks: DDP and ``fully_shard``, watched by all ranks or by one. All cases run in one start of the processes."""

from __future__ import annotations

import pytest
from ranks_watched import ALL, CASES, ONE, STEPS, UNWATCHED
from started_ranks import RANKS, results

pytestmark = pytest.mark.trains
OF_FSDP = [name for name in CASES if name.startswith("fsdp")]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return results("ranks_watched.py", tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_watching_changes_no_bit_whether_all_ranks_watch_or_one(ranks, case):
    for rank in range(RANKS):
        bits = ranks[rank][case]["bits"]
        assert bits[UNWATCHED] == bits[ALL] == bits[ONE]


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_seen_and_nothing_healthy_fails(ranks, case):
    for found in (ranks[0][case][ALL], ranks[1][case][ALL], ranks[0][case][ONE]):
        assert found["steps"] == (STEPS // 4 if "accumulating" in case else STEPS)
        assert found["losses"] == STEPS
        assert found["replaced"] == []
        assert found["failed"] == {}


@pytest.mark.parametrize("case", ["ddp", "fsdp"])
def test_names_are_those_that_the_model_gave(ranks, case):
    assert ranks[0][case][ALL]["names"][:2] == ["positions.weight", "base.weight"]


@pytest.mark.parametrize("case", ["ddp", "ddp, accumulating, loss_fn calls the wrapper", "parts in ddp"])
def test_rows_are_measured_in_the_module_inside_the_wrapper(ranks, case):
    assert ranks[0][case][ALL]["points"] == ranks[0][case][ONE]["points"] == 2


@pytest.mark.parametrize("case", ["ddp, loss_fn gathers", *OF_FSDP])
def test_rows_that_take_the_other_ranks_are_not_measured_and_the_reason_is_said(ranks, case):
    found = ranks[0][case][ONE]
    reason = (
        "a collective that" if case in OF_FSDP else "calls allgather, a collective that the other ranks do not call"
    )
    assert found["points"] == 0
    assert reason in found["skipped"]["loss"]
    assert reason in found["skipped"]["modes"]
    assert any("nothing was measured on rows" in note for note in found["notes"])


@pytest.mark.parametrize("case", OF_FSDP)
@pytest.mark.parametrize("check", ["head_init", "dropout_active"])
def test_what_cannot_be_measured_on_shards_is_no_pass_when_it_is_asked_for(ranks, case, check):
    status, headline, remedy = ranks[0][case][ALL]["asked"][check]
    assert status == "inconclusive"
    assert "sharded over the ranks" in headline
    assert "in one process" in remedy


def test_a_loss_that_gathers_can_be_replaced(ranks):
    status, headline, remedy = ranks[0]["ddp, loss_fn gathers"][ALL]["asked"]["dropout_active"]
    assert (status, "allgather" in headline, "loss_fn=" in remedy) == ("inconclusive", True, True)


def test_the_numbers_of_a_rank_are_those_of_its_shard(ranks):
    for rank in range(RANKS):
        found = ranks[rank]["fsdp"][ALL]
        assert found["shards"]["base.weight"] == [8, 6]
        assert found["shards"]["classifier.weight"] == [[2, 16], [1, 16]][rank]
        assert any("sharded: their numbers are those of this rank's shard" in note for note in found["notes"])
    assert ranks[1]["fsdp"][ALL]["shards"]["scale.bias"] == [0]


def test_gathered_shards_have_the_statistics_of_the_whole_tensor(ranks):
    gathered, whole = ranks[0]["fsdp"]["gathered"], ranks[0]["whole"]
    assert set(gathered["shards"].values()) == {None}
    for name, numbers in whole.items():
        assert gathered["first"][name] == pytest.approx(numbers, rel=1e-4, abs=1e-6)


def test_flat_parameters_are_refused_by_name(ranks):
    for rank in range(RANKS):
        assert "the model itself is a FullyShardedDataParallel (FSDP1)" in ranks[rank]["fsdp1"]
        assert "fully_shard" in ranks[rank]["fsdp1"]
