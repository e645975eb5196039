"""Optimizers that keep the weights to evaluate apart, and schedulers passed as a class, in ``finetune``."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from pytest_ftcheck import diagnose, finetune, tiny_distilbert, toy_batches

pytestmark = pytest.mark.trains
BATCHES = toy_batches()


def test_the_averaged_weights_are_evaluated_and_all_is_as_before():
    schedulefree = pytest.importorskip("schedulefree")
    model = tiny_distilbert(seed=0)
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=3e-3)
    before = copy.deepcopy(model.state_dict())
    modes = []

    def evaluate(model):
        modes.append(optimizer.param_groups[0]["train_mode"])
        with torch.no_grad():
            losses = [cross_entropy(model.eval()(x), y) for x, y in BATCHES[:2]]
        return float(sum(losses) / 2)

    trace = finetune(model, BATCHES, optimizer=optimizer, evaluate=evaluate, steps=20)
    assert len(modes) >= 2
    assert not any(modes)  # before train() was called, and with the average in place
    last = next(m.last for m in trace.metrics if m.name == "evaluate")
    assert trace.probe_loss.points[-1].loss == pytest.approx(last, rel=1e-4)
    assert len(trace.steps) == 20
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert not optimizer.param_groups[0]["train_mode"]
    assert not optimizer.state


def test_a_healthy_one_is_healthy():
    schedulefree = pytest.importorskip("schedulefree")
    model = tiny_distilbert(seed=0)
    found = diagnose(
        finetune(model, BATCHES, optimizer=lambda m: schedulefree.AdamWScheduleFree(m.parameters(), lr=3e-3), steps=40)
    )
    assert found.status == "healthy", found


def test_a_scheduler_class_that_needs_the_optimizer_alone_is_one():
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    optimizer = {"optimizer": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3)}
    assert (
        len(finetune(tiny_distilbert(seed=0), BATCHES, scheduler=plateau, steps=3, probes=["loss"], **optimizer).steps)
        == 3
    )
