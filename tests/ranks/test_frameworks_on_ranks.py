"""``watch(trainer)`` and ``FtcheckCallback`` on two real ranks: ``transformers.Trainer``, Lightning's ``strategy="ddp"``, Accelerate."""

from __future__ import annotations

import socket

import pytest
from ranks_watched import ALL, ONE, UNWATCHED
from started_ranks import RANKS, results

pytestmark = pytest.mark.trains
STEPS = 8
FRAMEWORKS = ("Trainer", "Lightning", "Accelerate")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    pytest.importorskip("lightning")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def as_torchrun(rank):
        each = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "GROUP_RANK": 0}
        store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "ranks"}
        return {name: str(value) for name, value in {**each, **store}.items()}

    return results("ranks_of_frameworks.py", tmp_path_factory.mktemp("frameworks"), environment=as_torchrun)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_watching_changes_no_bit_whether_all_ranks_watch_or_one(ranks, framework):
    for rank in range(RANKS):
        bits = ranks[rank][framework]["bits"]
        assert bits[UNWATCHED] == bits[ALL] == bits[ONE]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_run_is_seen_under_the_names_of_the_module(ranks, framework):
    for found in (ranks[0][framework][ALL], ranks[1][framework][ALL], ranks[0][framework][ONE]):
        assert found["steps"] == STEPS
        assert found["points"] == 2
        assert not any(name.startswith("module.") for name in found["names"])
        assert found["failed"] == {}
