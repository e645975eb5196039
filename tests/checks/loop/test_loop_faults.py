"""Faults of the loop itself are the first cause, in every way of running; `benchmarks/loop_faults.py` does it over 20 seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from loop_faults import FAULTS, WAYS, trace_of

from pytest_ftcheck import (
    assert_loss_matches_task,
    assert_padding_ignored,
    check_loss_matches_task,
    diagnose,
    finetune,
    tiny_distilbert,
    toy_batches,
)
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


def test_a_loss_by_hand_is_not_seen():
    """What we measured is the cross-entropy that we chose; the loop's own loss may be anything."""
    model, batches = tiny_distilbert(seed=0), toy_batches(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(model, batch, optimizer, scheduler):
        inputs, labels = batch
        optimizer.zero_grad()
        loss = -model(inputs).log_softmax(-1)[range(len(labels)), labels].mean()
        loss.backward()
        optimizer.step()
        return loss

    trace = finetune(model, batches, optimizer=optimizer, step=step, steps=20)
    diagnosis = diagnose(trace)
    assert diagnosis.status == "healthy"
    (verdict,) = [v for v in diagnosis.verdicts if v.check == "loss_matches_task"]
    assert (verdict.status, verdict.unmeasured) == ("skipped", "loop")
    asked = check_loss_matches_task(trace)
    assert asked.status == "inconclusive"
    assert "loss_fn=" in asked.remedy


def test_wording():
    trace = trace_of("softmax twice", "watch", seed=0)
    verdict = judge_loss_in_loop(trace, "loss_matches_task")
    assert verdict.headline == (
        "The loop computes cross_entropy(softmax(logits), labels) in all 7 observed calls: "
        "the softmax is applied before a loss that expects logits."
    )
