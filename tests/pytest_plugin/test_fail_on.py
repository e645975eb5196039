"""--ftcheck-fail-on: what raises, and how a tolerated verdict is shown."""

from __future__ import annotations

import pytest

from pytest_ftcheck.reports.session_result import SessionResult

TESTS = """
from judging import judge

def test_fails():
    judge("fail")

def test_undecided():
    judge("inconclusive", "20 steps are too few")

def test_advised():
    judge("advice")

def test_passes():
    judge("pass")
"""


@pytest.fixture(autouse=True)
def project(pytester):
    """One test a status."""
    pytester.makepyfile(test_it=TESTS)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (None, {"failed": 2, "passed": 2}),
        ("inconclusive", {"failed": 2, "passed": 2}),
        ("fail", {"failed": 1, "passed": 2, "inconclusive": 1}),
        ("advice", {"failed": 3, "passed": 1}),
    ],
)
@pytest.mark.parametrize("how", ["flag", "ini", "workers"])
def test_each_level(pytester, run, level, expected, how):
    if how == "workers":
        pytest.importorskip("xdist")
    if how == "ini" and level:
        pytester.makeini(f"[pytest]\nftcheck_fail_on = {level}")
    flag = [f"--ftcheck-fail-on={level}"] if level and how != "ini" else []
    result = run(*flag, *(["-n1"] if how == "workers" else []), subprocess=how == "workers")
    assert result.parseoutcomes() == expected
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_tolerated_verdict_is_shown_and_is_no_pass(run, pytester):
    result = run("--ftcheck-fail-on=fail", "--ftcheck-json=ft.json", "-k", "undecided or passes")
    assert result.ret == pytest.ExitCode.OK
    assert result.parseoutcomes() == {"passed": 1, "inconclusive": 1, "deselected": 2}
    result.stdout.fnmatch_lines(
        [
            "ftcheck: fail_on=fail",
            "test_it.py i.*",
            "inconclusive (tolerated) weights_move: 20 steps are too few - test_it.py::test_undecided",
            "1 of 2 verdicts; -v shows all of them, with limits and notes",
        ]
    )
    cases = {c.nodeid: c.outcome for c in SessionResult.load(pytester.path / "ft.json").tests}
    assert cases["test_it.py::test_undecided"] == "inconclusive"


def test_is_counted_even_in_a_quiet_session(run):
    assert run("-q", "--ftcheck-fail-on=fail", "-k", "undecided").parseoutcomes()["inconclusive"] == 1


def test_is_a_warning_to_github(run, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    lines = run("--ftcheck-fail-on=fail").outlines
    assert [line.partition(" ")[0] for line in lines if line.startswith("::")] == ["::error", "::warning", "::notice"]


def test_advice_that_fails_is_shown_with_its_message_and_why(run):
    text = run("--ftcheck-fail-on=advice", "-k", "advised").stdout.str()
    assert "note: advice fails because of --ftcheck-fail-on=advice" in text
    assert "advice weights_move: " in text


def test_the_level_ends_with_the_session(run):
    from pytest_ftcheck.core import fail_level

    run("--ftcheck-fail-on=advice")
    assert fail_level.level() == "inconclusive"
