"""Which verdicts raise, at each level."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from pytest_ftcheck import CheckFailed, Verdict, assert_healthy, example_trace
from pytest_ftcheck.checks import diagnosis
from pytest_ftcheck.checks.assertions import enforce
from pytest_ftcheck.core import fail_level
from pytest_ftcheck.core.events import listening


@pytest.fixture
def level():
    """Sets a level, and puts the one before back."""
    undo = []

    def level(name):
        undo.append(fail_level.fail_on(name))

    yield level
    for back in reversed(undo):
        back()


def raised(status):
    try:
        with listening(None):  # else this very test were one that could not be decided
            enforce(Verdict("loss_decreases", status, "it is so"))
    except CheckFailed:
        return True
    return False


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fail", "fail"), ("inconclusive", "fail inconclusive"), ("advice", "fail inconclusive advice")],
)
def test_each_level_raises_what_it_says(level, name, expected):
    level(name)
    assert " ".join(s for s in ("fail", "inconclusive", "advice", "pass", "skipped") if raised(s)) == expected


def test_the_default_is_inconclusive():
    assert fail_level.level() == "inconclusive"
    assert raised("inconclusive")
    assert not raised("advice")


def test_a_thread_gates_like_the_test_it_belongs_to(level):
    level("fail")
    found = []
    thread = threading.Thread(target=lambda: found.append(raised("inconclusive")))
    thread.start()
    thread.join()
    assert found == [False]


def test_advice_that_raises_says_why(level):
    level("advice")
    with pytest.raises(CheckFailed, match=r"--ftcheck-fail-on=advice") as caught:
        enforce(Verdict("head_needed", "advice", "the head could go"))
    assert caught.value.verdict.status == "advice"


def test_an_unknown_level_is_named():
    with pytest.raises(ValueError, match=r"fail_on='warn': expected one of fail, inconclusive, advice"):
        fail_level.fail_on("warn")


class TestTheOneLineGate:
    @pytest.fixture
    def one(self, monkeypatch):
        """Makes the only check give a verdict of the status."""

        def one(status):
            verdict = Verdict("head_needed", status, "it is so")
            monkeypatch.setattr(diagnosis, "SPECS", {"head_needed": SimpleNamespace(judge=lambda trace: verdict)})

        return one

    def test_lets_undecided_runs_through_at_fail(self, level, one):
        one("inconclusive")
        with pytest.raises(CheckFailed):
            assert_healthy(example_trace())
        level("fail")
        with listening(None):  # else this very test were one that could not be decided
            assert assert_healthy(example_trace()).status == "undecided"

    def test_raises_on_advice_at_advice_unless_it_is_allowed(self, level, one):
        one("advice")
        assert assert_healthy(example_trace()).status == "healthy"
        level("advice")
        with pytest.raises(CheckFailed, match="head_needed"):
            assert_healthy(example_trace())
        one("fail")
        assert assert_healthy(example_trace(), allow={"head_needed": "we keep it"}).status == "healthy"
