"""Faults of the loop itself are the first cause, in every way of running; `benchmarks/loop_faults.py` does it over 20 seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from loop_faults import FAULTS, WAYS, trace_of

from pytest_ftcheck import assert_loss_matches_task, assert_padding_ignored, diagnose
from pytest_ftcheck.checks.loss.loss_in_loop import judge_loss_in_loop


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", FAULTS)
def test_first_cause(fault, way):
    diagnosis = diagnose(trace_of(fault, way, seed=1))
    if fault == "healthy":
        assert diagnosis.status == "healthy", diagnosis
    else:
        assert diagnosis.causes[0].fault in FAULTS[fault], diagnosis


@pytest.mark.parametrize("way", ["step", "watch"])
def test_our_own_call_would_pass(way):
    """Without what was seen of the loop, mask and loss are those of our own calls: that was a false pass."""
    for fault, check in (("mask forgotten", assert_padding_ignored), ("softmax twice", assert_loss_matches_task)):
        trace = trace_of(fault, way, seed=0)
        trace.measurements.pop("loop")
        assert check(trace).status == "pass"


def test_wording():
    trace = trace_of("softmax twice", "watch", seed=0)
    verdict = judge_loss_in_loop(trace, "loss_matches_task")
    assert verdict.headline == (
        "The loop computes cross_entropy(softmax(logits), labels) in all 7 observed calls: "
        "the softmax is applied before a loss that expects logits."
    )
