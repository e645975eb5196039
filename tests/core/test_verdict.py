"""The message of a verdict, and its way between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from pytest_ftcheck.core.verdict import ROWS_SHOWN, STATUSES, CheckFailed, Verdict

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
def test_a_passed_verdict_is_short(status):
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


def rows_of(blocks, leaves, why="no gradient reached it", **columns):
    return tuple(
        {"tensor": f"base.layer.{i}.{leaf}", "why": why, **columns} for i in range(blocks) for leaf in range(leaves)
    )


def test_many_rows_of_one_block_are_folded():
    rows = rows_of(3, 4, moved="0 %")
    rows = tuple({**row, "by decay": 0.5 + i} for i, row in enumerate(rows))
    verdict = Verdict("weights_move", "fail", "Many.", evidence=rows)
    lines = str(verdict).splitlines()
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "tensor why moved",  # the numbers that differ within a block are left out, not made up
        *(f"base.layer.{i} (4 tensors) no gradient reached it 0 %" for i in range(3)),
    ]
    assert verdict.evidence == rows


def test_a_row_that_differs_is_not_folded_away():
    other = {"tensor": "base.layer.0.k", "why": "learning rate 0", "moved": "0 %"}
    alone = {"tensor": "classifier.weight", "why": "learning rate 0", "moved": "7 %"}
    text = str(Verdict("x", "fail", "Many.", evidence=(alone, *rows_of(3, 4, moved="0 %"), other)))
    assert len(text.splitlines()) == 1 + 1 + 5
    for words in ("classifier.weight ", "base.layer.0 (4 tensors)", "base.layer.0.k ", "7 %"):
        assert words in text


def test_few_rows_are_not_folded():
    rows = rows_of(3, 3)  # as many as are shown without a line "... and 1 more"
    assert len(rows) == ROWS_SHOWN + 1
    text = str(Verdict("x", "fail", "Few.", evidence=rows))
    assert all(row["tensor"] in text for row in rows)
    assert "tensors)" not in text


def test_folded_rows_are_cut_too():
    text = str(Verdict("x", "fail", "Many.", evidence=rows_of(50, 2)))
    assert len(text.splitlines()) == 1 + 1 + ROWS_SHOWN + 1
    assert "base.layer.0 (2 tensors)" in text
    assert "... and 42 more" in text


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


def test_a_headline_is_one_line_whatever_a_layer_is_called():
    assert Verdict("weights_move", "fail", "a\nb.weight did  not move").headline == "a b.weight did not move"
    assert Verdict("weights_move", "fail", "two  spaces").headline == "two  spaces"
