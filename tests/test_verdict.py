"""What a verdict says, and that it travels."""

from __future__ import annotations

import copy
import pickle

import pytest

from pytest_ftcheck.verdict import ROWS_SHOWN, STATUSES, CheckFailed, Verdict

FULL = {
    "check": "weights_move",
    "headline": "1 of 2 head tensors did not move.",
    "evidence": ({"name": "classifier.bias", "moved": 0.0},),
    "limit": "every element moves",
    "causes": ("not in the optimizer", "frozen"),
    "remedy": "hand it to the optimizer",
    "measured": "elementwise",
    "notes": ("key biases are exempt",),
}


def test_a_failure_says_all():
    assert str(Verdict(status="fail", **FULL)).splitlines() == [
        "weights_move: FAIL. 1 of 2 head tensors did not move.",
        "  name             moved",
        "  classifier.bias      0",
        "  cause: not in the optimizer",
        "  cause: frozen",
        "  do: hand it to the optimizer",
        "  limit: every element moves",
        "  measured: elementwise",
        "  note: key biases are exempt",
    ]


def test_inconclusive_says_what_would_settle_it():
    text = str(Verdict(status="inconclusive", **FULL))
    assert text.startswith("weights_move: INCONCLUSIVE. ")
    assert "  what would settle it: hand it to the optimizer" in text
    assert "  do:" not in text


@pytest.mark.parametrize("status", ["pass", "skipped"])
def test_what_is_well_is_short(status):
    text = str(Verdict(status=status, **FULL))
    assert text.startswith(f"weights_move: {status}. ")
    assert "cause" not in text
    assert "limit" not in text
    assert "note: key biases are exempt" in text


def test_advice_says_what_to_do():
    text = str(Verdict(status="advice", **FULL))
    assert text.startswith("weights_move: advice. ")
    assert "  do: hand it to the optimizer" in text


def test_empty_parts_leave_no_lines():
    assert str(Verdict("x", "fail", "It broke.")) == "x: FAIL. It broke."


def test_long_evidence_is_cut_in_the_message_only():
    verdict = Verdict("x", "fail", "Many.", evidence=tuple({"n": i} for i in range(50)))
    assert len(str(verdict).splitlines()) == 1 + 1 + ROWS_SHOWN + 1
    assert "... and 42 more" in str(verdict)
    assert len(verdict.evidence) == 50


def test_ok():
    assert {s: Verdict("x", s, "").ok for s in STATUSES} == {
        "pass": True,
        "fail": False,
        "inconclusive": False,
        "skipped": True,
        "advice": True,
    }


@pytest.mark.parametrize("status", ["failed", "PASS", "", None])
def test_unknown_status(status):
    with pytest.raises(ValueError, match="expected one of pass, fail, inconclusive, skipped, advice"):
        Verdict("x", status, "")


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_the_error_travels_between_processes(clone):
    error = clone(CheckFailed(Verdict(status="fail", **FULL)))
    assert type(error) is CheckFailed
    assert error.verdict == Verdict(status="fail", **FULL)
    assert str(error) == str(error.verdict)


def test_the_error_is_an_assertion_error_under_its_public_name():
    assert issubclass(CheckFailed, AssertionError)
    assert CheckFailed.__module__ == "pytest_ftcheck"


def test_a_verdict_is_frozen():
    with pytest.raises(AttributeError):
        Verdict("x", "pass", "").status = "fail"
