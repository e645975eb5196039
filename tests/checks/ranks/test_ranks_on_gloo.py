"""Two gloo processes train faults and their healthy twins, and every rank names them; `benchmarks/ranks.py` does it over ten seeds.

By default a third of the cases, chosen by name, as in the fault matrix; ``FTCHECK_MATRIX=all`` runs all of them.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import pytest
from a_third import chosen

torch = pytest.importorskip("torch")
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("torch was built without gloo", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
from ranks import FAULTS, HEALTHY, judged  # noqa: E402

#: Of the frameworks' own runs each takes seconds to import; the benchmark has them.
SLOW = ("Trainer",)
CASES = [case for case in (*FAULTS, *HEALTHY) if case not in SLOW and chosen(case)]


@pytest.fixture(autouse=True, scope="module")
def before():
    """Processes of other tests, which may have yet to end."""
    return multiprocessing.active_children()


def started_since(before):
    return [process for process in multiprocessing.active_children() if process not in before]


@pytest.fixture(scope="module")
def found(before):
    """Case -> status, fault, headline, causes, whether the unwatched run was the same."""
    return {row[0]: row[2:] for row in judged(CASES, [0], seconds=540.0)}


@pytest.mark.trains
@pytest.mark.parametrize("case", [case for case in CASES if case in FAULTS])
def test_each_fault_is_named(found, case):
    status, fault, *_ = found[case]
    assert (status, fault) == ("fail", FAULTS[case])


@pytest.mark.trains
@pytest.mark.parametrize("case", [case for case in CASES if case in HEALTHY])
def test_healthy_twins_pass_and_are_the_unwatched_run_to_the_bit(found, case):
    status, fault, headline, _, same = found[case]
    assert (status, fault, same) == ("pass", "", True), headline


@pytest.mark.trains
def test_no_process_is_left(found, before):
    assert found
    assert started_since(before) == []


@pytest.mark.trains
def test_processes_are_ended_when_one_fails(before):
    with pytest.raises(Exception, match="no such case"):
        judged(["no such case"], [0], seconds=120.0)
    assert started_since(before) == []
