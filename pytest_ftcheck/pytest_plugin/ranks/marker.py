"""What ``@pytest.mark.ftcheck(ranks=2, timeout=60)`` declares."""

from __future__ import annotations

import difflib
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from ...core.formatting import describe_type, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

MARKER = "ftcheck"
#: Most ranks of a test. Each is a process that imports torch: about 0.3 GB, and seconds of a core. More belong on more than one machine.
MOST_RANKS = 16
#: Seconds that the ranks have to start, import the test's module and join the process group. Two take about 5 on two idle cores, and took
#: 15 on busy ones.
TO_START = 120.0
#: Seconds that a test of several ranks may take from the moment when all have joined: that of torch's own tests of several processes
#: (torch.testing._internal.common_distributed). A short fine-tune takes seconds; minutes were seen where ten processes shared two cores.
TIMEOUT = 300.0
#: The marker's line in ``pytest --markers``.
HELP = (
    "ftcheck(ranks=None, timeout=300): a test that fine-tunes a model; added to every test that uses a fixture or a suite of "
    f"pytest-ftcheck. With ranks=N (1 to {MOST_RANKS}) its body runs in N processes of one gloo group on this machine, for at most "
    "timeout seconds."
)
#: Name of the plugin that a rank's own session has.
RANK_PLUGIN = "ftcheck-rank"
_ARGUMENTS = ("ranks", "timeout")


@dataclass(frozen=True)
class Declared:
    """The marker's arguments."""

    #: Number of processes.
    ranks: int
    #: Seconds that fixtures and body may take, from the moment when all processes have joined.
    timeout: float = TIMEOUT


def is_rank(config: pytest.Config) -> bool:
    """Whether this session is a rank of a test, which the session that started it reports."""
    return config.pluginmanager.hasplugin(RANK_PLUGIN)


def declared_by_all(items: Sequence[pytest.Item]) -> dict[pytest.Item, Declared]:
    """The tests of several ranks, and what they declare.

    :raises pytest.UsageError: see `declared`. A worker of pytest-xdist cannot end the session: there the test fails in its setup.
    """
    found = {}
    for item in items:
        try:
            if isinstance(item, pytest.Item) and (one := declared(item)) is not None:
                found[item] = one
        except pytest.UsageError as error:
            if not hasattr(item.config, "workerinput"):
                raise
            item.setup = functools.partial(_raise, error)  # type: ignore[method-assign]
    return found


def _raise(error: Exception) -> None:
    __tracebackhide__ = True
    raise error


def declared(item: pytest.Item) -> Declared | None:
    """What the markers of a test, its class and its module declare, the nearest first; None: it runs in this process.

    :raises pytest.UsageError: an unknown or invalid argument, or a test that cannot run on several ranks.
    """
    given: dict[str, Any] = {}
    for mark in reversed([*item.iter_markers(MARKER)]):
        if mark.args:
            raise _refused(item, f"({_shown(mark.args[0])})", f"expected keywords: {' or '.join(_ARGUMENTS)}")
        for name in mark.kwargs:
            if name not in _ARGUMENTS:
                near = difflib.get_close_matches(name, _ARGUMENTS, 1)
                hint = f"; did you mean {near[0]}?" if near else f": expected {' or '.join(_ARGUMENTS)}"
                raise _refused(item, "", f"it has no argument {name}{hint}")
        given |= mark.kwargs
    ranks, timeout = given.get("ranks"), given.get("timeout", TIMEOUT)
    if ranks is None:
        if "timeout" in given:
            raise _refused(item, f"(timeout={_shown(timeout)})", "timeout is given without ranks")
        return None
    if isinstance(ranks, bool) or not isinstance(ranks, int) or not 1 <= ranks <= MOST_RANKS:
        raise _refused(item, f"(ranks={_shown(ranks)})", f"expected a whole number from 1 to {MOST_RANKS}")
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not math.isfinite(timeout) or timeout <= 0:
        raise _refused(item, f"(timeout={_shown(timeout)})", "expected a number of seconds > 0")
    _check_test(item, f"(ranks={ranks})")
    return Declared(ranks, float(timeout))


def _check_test(item: pytest.Item, given: str) -> None:
    """Only functions and methods that every rank runs alike."""
    if not isinstance(item, pytest.Function):
        raise _refused(item, given, f"{describe_type(item)} cannot run on several ranks: expected a test function")
    if getattr(item.obj, "is_hypothesis_test", False):
        raise _refused(item, given, "@given draws other examples on every rank: use @pytest.mark.parametrize")
    from ..suite import SUITE  # lazily: every start of pytest pays for imports

    if SUITE in item.fixturenames:
        raise _refused(item, given, "a suite of checks trains in one process: watch the training in a test of its own")


def _shown(value: Any) -> str:
    return one_line(repr(value), 100)


def _refused(item: pytest.Item, given: str, reason: str) -> pytest.UsageError:
    return pytest.UsageError(one_line(f"{item.nodeid}: @pytest.mark.{MARKER}{given}: {reason}", 600))
