"""Tasks x faults: the cause first, and no alarm; a third of the cells by default, all by ``FTCHECK_MATRIX=all``."""

from __future__ import annotations

import pytest
from a_third import chosen
from task_cells import CELLS, MISSED, is_right, verdict_of


def _param(cell):
    missed = [pytest.mark.xfail(reason=MISSED[cell], strict=True)] if cell in MISSED else []
    return pytest.param(*cell, marks=missed, id=": ".join(cell))


@pytest.mark.trains
@pytest.mark.parametrize(("task", "fault"), [_param(cell) for cell in CELLS if chosen(": ".join(cell))])
def test_the_cause_comes_first(task, fault):
    found = verdict_of(task, fault, seed=0)
    assert is_right(fault, found), found
