"""A run without an optimizer step gets one verdict, whichever check asks."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from pytest_ftcheck import diagnose, watch
from pytest_ftcheck.checks.no_step import backward_fault, no_step_verdict
from pytest_ftcheck.core.example_trace import example_trace
from pytest_ftcheck.core.observations import Iteration

IDLE = Iteration(0.7, None, 0, True)


def broken(error):
    return example_trace(steps=(), iterations=(Iteration(None, None, 0, True, error),))


def test_steps_were_taken():
    assert no_step_verdict("weights_move", example_trace()) is None


def test_no_step_was_taken():
    verdict = no_step_verdict("weights_move", example_trace(steps=(), iterations=(IDLE,) * 1200), "elementwise")
    assert (verdict.check, verdict.status, verdict.fault) == ("weights_move", "fail", "no_step_taken")
    assert verdict.headline == "No optimizer step was taken in 1,200 iterations."
    assert "GradScaler" in verdict.causes[0]
    assert "AdamW.step()" in verdict.remedy
    assert verdict.measured == "elementwise"


def test_no_iteration_was_seen():
    verdict = no_step_verdict("weights_move", example_trace(steps=(), iterations=()))
    assert verdict.headline == "No optimizer step was taken, and no loss had its gradient computed."
    assert "resumed from a checkpoint" in verdict.causes[0]


def test_backward_cannot_run():
    verdict = no_step_verdict("weights_move", broken("the loss has no graph"))
    assert verdict.fault == "loss_cut_off"
    assert "the loss has no graph" in verdict.headline
    assert verdict.causes == ("the loss has no graph",)
    assert backward_fault(broken("gradients are switched off: no_grad()")).name == "gradients_switched_off"


@pytest.mark.trains
@pytest.mark.parametrize("rate", [0.3, 0.0])
def test_weights_that_the_loop_updates_by_hand(rows, rate):
    model = torch.nn.Linear(6, 2)
    with watch(model) as w:
        for x, y in rows * 3:
            cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= rate * p.grad
                    p.grad = None
    diagnosis = diagnose(w.trace)
    found = {verdict.check: verdict for verdict in diagnosis.verdicts}
    if rate:
        assert diagnosis.status == "undecided"
        assert found["weights_move"].headline == (
            "No step of a torch optimizer was seen, and 2 of 2 trainable tensors changed all the same."
        )
        assert found["loss_decreases"].status == "pass"
    else:
        assert found["weights_move"].fault == "no_step_taken"


@pytest.mark.trains
@pytest.mark.parametrize("written_back", [True, False])
def test_master_weights_that_the_loop_writes_back(rows, written_back):
    model = torch.nn.Linear(6, 2).bfloat16()
    masters = [p.detach().float().clone().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=2e-2)
    with watch(model) as w:
        for x, y in rows * 3:
            model.zero_grad()
            cross_entropy(model(x.bfloat16()).float(), y).backward()
            for master, p in zip(masters, model.parameters(), strict=True):
                master.grad = p.grad.float()
            optimizer.step()
            if written_back:
                with torch.no_grad():
                    for master, p in zip(masters, model.parameters(), strict=True):
                        p.copy_(master)
    diagnosis = diagnose(w.trace)
    found = {verdict.check: verdict for verdict in diagnosis.verdicts}
    if written_back:
        assert diagnosis.status == "undecided"
        assert found["optimizer_covers_model"].status == found["weights_move"].status == "inconclusive"
        assert found["weights_move"].headline == (
            "AdamW holds 2 tensors outside this model (master weights?), and 2 of 2 trainable tensors changed all the same."
        )
    else:
        assert found["weights_move"].fault == found["optimizer_covers_model"].fault == "stale_optimizer"
