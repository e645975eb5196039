"""A loop body of the user's own, ``step=``."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from finetuned import FAST, Net, healthy
from torch.nn import functional as F

from pytest_ftcheck import (
    finetune,
)


# ------------------------------------------------------------------ step=
def test_a_loop_body_of_ones_own(rows):
    def step(model, batch, optimizer, scheduler):
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss

    trace = healthy(finetune(Net(), rows, step=step, steps=4, lr=1e-2), steps=4)
    assert [s.lrs[0] for s in trace.steps] == pytest.approx([trace.recipe.lr_at(i) for i in range(4)])
    assert all(i.training for i in trace.iterations)


def test_the_users_step_is_not_touched(rows):
    """No train(), no zero_grad(), no scheduler step, no clipping of ours: gradients pile up and eval mode stays."""
    model = Net().eval()

    def step(model, batch, optimizer, scheduler):
        assert not model.training
        loss = 1e3 * F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss.item()

    trace = finetune(model, rows[:1], step=step, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1e-9), steps=3)
    norms = trace.tensor("classifier.weight").grad_norms
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-2)
    assert norms[2] == pytest.approx(3 * norms[0], rel=1e-2)
    assert trace.steps[0].grad_norm > 1
    assert not any(s.training for s in trace.steps)


def test_accumulation_shows_iterations_without_a_step(rows):
    count = iter(range(100))

    def step(model, batch, optimizer, scheduler):
        loss = F.cross_entropy(model(batch[0]), batch[1]) / 4
        loss.backward()
        if next(count) % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
        return loss * 4

    trace = finetune(Net(), rows, step=step, steps=8, lr=1e-2)
    assert [i.step for i in trace.iterations] == [None, None, None, 0, None, None, None, 1]
    assert [s.iteration for s in trace.steps] == [3, 7]
    assert len(trace.probe_loss.descents) == 2
    assert len(trace.losses) == 8


def test_a_gradient_scaler_in_ones_own_step(rows):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    def step(model, batch, optimizer, scheduler):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    plain = finetune(lambda: Net(), rows, max_grad_norm=None, schedule="constant", warmup=0, **FAST)
    scaled = finetune(lambda: Net(), rows, step=step, **FAST, schedule="constant", warmup=0)
    assert scaled.tensor("body.weight").grad_norms == pytest.approx(plain.tensor("body.weight").grad_norms, rel=1e-3)


@pytest.mark.parametrize("returned", [None, "a string"])
def test_a_step_may_return_no_loss(rows, returned):
    def step(model, batch, optimizer, scheduler):
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        return returned

    trace = finetune(Net(), rows, step=step, **FAST)
    assert trace.losses == ()
    assert len(trace.steps) == 3


def test_several_optimizer_steps_in_one_iteration(rows):
    def step(model, batch, optimizer, scheduler):
        for _ in range(3):
            loss = F.cross_entropy(model(batch[0]), batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss

    trace = finetune(Net(), rows, step=step, steps=2, lr=1e-2)
    assert [(i.step, i.steps) for i in trace.iterations] == [(2, 3), (5, 3)]


def test_batches_that_only_the_step_can_read(rows):
    def step(model, batch, optimizer, scheduler):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch.x), batch.y)
        loss.backward()
        optimizer.step()
        return loss

    @dataclasses.dataclass
    class Batch:
        x: torch.Tensor
        y: torch.Tensor

    trace = healthy(finetune(Net(), [Batch(*r) for r in rows], step=step, **FAST))
    assert trace.probe_loss is None
    assert any("no probes" in note for note in trace.notes)
