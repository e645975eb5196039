"""``--dist loadgroup`` of pytest-xdist: the items of one subject go to one worker, which fine-tunes it once.

The items have xdist's own mark ``xdist_group``. Its controller reads groups from node ids alone, and pytest 9.2 no longer accepts what
xdist 3.8 appends to them. Our node ids contain the subject, so the group is read from them.
"""

from __future__ import annotations

import re
from typing import Any

from ..checks.catalogue import CHECKS

_CHECK = re.compile(rf"(::|-)check_(?:{'|'.join(CHECKS)})(?=[\]@-]|$)")


def scope_of(nodeid: str) -> str | None:
    """The part of a node id that all checks of one subject share; None: the test is not of a suite.

    >>> scope_of("test_models.py::test_it[mine-check_weights_move]")
    'test_models.py::test_it[mine]'
    >>> scope_of("ftcheck::tiny:bert::check_weights_move")
    'ftcheck::tiny:bert'
    >>> scope_of("test_models.py::test_check_weights_move") is None
    True
    """
    found = _CHECK.search(nodeid)
    if found is None or (found[1] == "::" and not nodeid.startswith("ftcheck::")):
        return None
    return nodeid[: found.start()] + nodeid[found.end() :]


def scheduler(config: Any, log: Any) -> Any:
    """xdist's group scheduler, with a group for each of our subjects."""
    from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]

    class SubjectScheduling(LoadGroupScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            group: str = super()._split_scope(nodeid)
            return (scope_of(nodeid) or group) if group == nodeid else group

    return SubjectScheduling(config, log)
