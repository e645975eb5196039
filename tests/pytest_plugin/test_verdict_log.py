"""Repeated verdicts of a check in one test become one line, and what crosses processes does not grow with their number."""

from __future__ import annotations

import json

import pytest

from pytest_ftcheck import Verdict, example_trace
from pytest_ftcheck.core.serialization import encode
from pytest_ftcheck.pytest_plugin.phase_report import PhaseReport
from pytest_ftcheck.pytest_plugin.verdict_log import TRACES_KEPT, Phase, Record


def verdict(status="pass", headline="moved", margin=None, check="weights_move"):
    return Verdict(check, status, headline, margin=margin)


def reported(*verdicts):
    phase = Phase()
    for v in verdicts:
        phase.judged(v)
    (verdict,) = PhaseReport.made_of(phase, "call").verdicts
    return verdict


class TestWhichIsShown:
    def test_one_verdict_is_its_headline(self):
        assert reported(verdict()).summary == "moved"

    def test_the_worst_status_wins_whatever_the_order(self):
        for order in (("pass", "fail", "skipped"), ("fail", "skipped", "pass")):
            line = reported(*(verdict(status, status) for status in order))
            assert (line.status, line.headline) == ("fail", "fail")
            assert line.summary == "3 times, 1 fail, 1 pass, 1 skipped; the last: fail"

    def test_the_smallest_margin_wins_among_equals(self):
        line = reported(verdict(margin=2.0), verdict(headline="hardly moved", margin=0.1), verdict(margin=3.0))
        assert line.summary == "3 times, all pass; the closest: hardly moved"

    def test_the_furthest_beyond_the_limit_wins_among_failures(self):
        line = reported(verdict("fail", "asleep", -2.0), verdict("fail", "nearly", -0.1))
        assert line.summary == "2 times, all fail; the worst: asleep"

    def test_without_margins_it_is_the_first_that_passed_or_the_last_that_failed(self):
        assert reported(verdict(headline="a"), verdict(headline="b")).summary == "2 times, all pass; the first: a"
        assert reported(verdict("fail", "a"), verdict("fail", "b")).summary == "2 times, all fail; the last: b"

    def test_checks_are_kept_apart(self):
        phase = Phase()
        for check in ("weights_move", "loss_decreases", "weights_move"):
            phase.judged(verdict(check=check))
        assert [v.check for v in PhaseReport.made_of(phase, "call").verdicts] == ["weights_move", "loss_decreases"]


def test_the_report_does_not_grow_with_the_examples():
    sizes = []
    for examples in (100, 10_000):
        phase, trace = Phase(), example_trace()
        for i in range(examples):
            phase.judged(verdict("fail" if i % 7 == 0 else "pass", f"example {i:,}", margin=(i % 7) - 0.5))
            phase.measured(trace)
        report = PhaseReport.made_of(phase, "call")
        sizes.append(len(json.dumps(encode(report))))
        assert len(report.runs) == 2 * TRACES_KEPT
        assert report.runs_left_out == examples - 2 * TRACES_KEPT
        assert len(phase.traces) == 2 * TRACES_KEPT
    assert sizes[1] < sizes[0] + 20
    assert sizes[1] < 6_000


def test_a_record_counts_over_phases():
    record = Record()
    record.current.judged(verdict())
    assert record.close()
    record.current.judged(verdict("fail"))
    record.current.judged(verdict("fail"))
    record.current.measured(example_trace())
    assert record.close()
    assert not record.close()
    assert record.counts == {"pass": 1, "fail": 2}
    assert [v.status for v in record.verdicts] == ["pass", "fail"]
    assert len(record.traces) == 1


LOOP = """
from judging import judge, trace

def test_loop():
    for i in range(500):
        trace()
        judge("pass", f"row {i}")
    judge("fail", "row 500")
"""

GIVEN = """
import pytest
from hypothesis import given, settings, strategies as st
from judging import CheckFailed, judge

@settings(database=None, derandomize=True, max_examples=50)
@given(n=st.integers(0, 1000))
def test_all_fine(n):
    judge("pass", f"{n} moved")

@settings(database=None, derandomize=True, max_examples=50)
@given(n=st.integers(0, 1000))
def test_large_ones_break(n):
    judge("fail" if n > 17 else "pass", f"{n} moved")

@settings(database=None, derandomize=True, max_examples=50)
@given(n=st.integers(0, 1000))
def test_expects_it(n):
    with pytest.raises(CheckFailed):
        judge("fail", f"{n} moved")
"""


def section(result) -> list[str]:
    lines = result.outlines
    start = next(i for i, line in enumerate(lines) if line.strip("= ") == "ftcheck")
    end = next(i for i in range(start + 1, len(lines)) if lines[i].startswith("==="))
    return lines[start + 1 : end]


def test_a_loop_is_one_line(pytester, run):
    pytester.makepyfile(test_it=LOOP)
    assert section(run()) == [
        "fail weights_move: 501 times, 1 fail, 500 pass; the last: row 500 - test_it.py::test_loop",
        "1 of 501 verdicts; -v shows all of them, with limits and notes",
    ]
    lines = section(run("-v"))
    assert [line for line in lines if " - " in line and line.startswith("fail ")] == [
        "fail weights_move: 501 times, 1 fail, 500 pass; the last: row 500 - test_it.py::test_loop"
    ]
    assert sum("0.700 -> 0.320" in line and "█" in line for line in lines) == 1  # 500 times the same
    assert any(line.strip() == f"... and {500 - 2 * TRACES_KEPT} more runs" for line in lines)


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["one process", "xdist"])
def test_examples_are_one_line_a_check(pytester, run, monkeypatch, workers):
    monkeypatch.setenv("COLUMNS", "200")
    if workers:
        pytest.importorskip("xdist")
    pytester.makepyfile(test_it=GIVEN)
    result = run("-v", *workers, subprocess=True)
    lines = [line for line in section(result) if " - " in line]
    fine, broken, expected = sorted(lines, key=lambda line: ("all_fine" not in line, "large" not in line))
    assert fine.startswith("pass weights_move: 50 times, all pass; the first: ")
    # the one that hypothesis reports, and pytest's own failure has in full
    assert broken.startswith("fail weights_move: ")
    assert broken.endswith("the simplest: 18 moved - test_it.py::test_large_ones_break")
    assert " times, " in broken
    assert "(expected) weights_move: 50 times, all fail; the last: " in expected
    assert result.stdout.str().count("THE-REMEDY") == 1


def test_a_failing_property_is_one_line_without_v(pytester, run):
    pytester.makepyfile(test_it=GIVEN)
    lines = section(run(subprocess=True))
    assert len(lines) == 3  # the property's is wrapped
    assert lines[0].startswith("fail weights_move: ")
    assert lines[1] == "     test_it.py::test_large_ones_break"
