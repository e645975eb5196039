"""Tests of several ranks in the session that was started: their three phases are those of the ranks' processes."""

from __future__ import annotations

from collections.abc import Generator, Mapping

import pytest

from .launch import Launch
from .marker import Declared
from .outcome import of_phase, printed, where_in_words

_LAUNCH: pytest.StashKey[Launch] = pytest.StashKey()


class RankTests:
    """Hooks; registered where a test declares ranks.

    :param declared: the tests, and what each declares.
    """

    def __init__(self, declared: Mapping[pytest.Item, Declared]) -> None:
        for item, what in declared.items():
            _replace_phases(item, what)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Outside of pytest's own wrappers: expected failures have been judged on the ranks."""
        report = yield
        launch = item.stash.get(_LAUNCH, None)
        if launch is None:
            return report
        root = item.config.rootpath
        if call.excinfo is None:
            report = of_phase(report, launch, root)
            if report.failed and item.config.getoption("usepdb"):
                report.sections.append(("--pdb", "ignored: the processes of a test of several ranks have no terminal"))
        else:
            for rank in launch.ranks:
                report.sections += [(f"rank {rank.number}", where_in_words(rank, root)), *printed(rank, call.when)]
        if call.when == "teardown":
            launch.remove_files()
            del item.stash[_LAUNCH]
        return report


def _replace_phases(item: pytest.Item, declared: Declared) -> None:
    """Fixtures and the body run on the ranks, not here."""

    def setup() -> None:
        __tracebackhide__ = True
        item.stash[_LAUNCH] = launch = Launch(item, declared)
        launch.set_up()

    def runtest() -> None:
        __tracebackhide__ = True
        item.stash[_LAUNCH].call()

    def teardown() -> None:
        __tracebackhide__ = True
        if _LAUNCH in item.stash:
            item.stash[_LAUNCH].tear_down()

    item.setup, item.runtest, item.teardown = setup, runtest, teardown  # type: ignore[method-assign]
