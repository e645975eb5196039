"""``watch(model)``: whatever trains the model, its optimizers are adopted, its losses seen, and no bit of the training changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import optimizer as optim_module

from pytest_ftcheck import check_optimizer_covers_model, check_weights_move, diagnose, watch
from pytest_ftcheck.instruments import loop_calls


class Net(nn.Module):
    def __init__(self, inside=8):
        super().__init__()
        self.body = nn.Linear(6, inside)
        self.drop = nn.Dropout(0.2)
        self.classifier = nn.Linear(inside, 2)

    def forward(self, x):
        return self.classifier(self.drop(torch.relu(self.body(x))))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


def adamw(model, lr=1e-2):
    return torch.optim.AdamW(model.parameters(), lr=lr)


def plain(call, model, rows):
    optimizer = adamw(model)
    for x, y in rows:
        optimizer.zero_grad()
        F.cross_entropy(call(x), y).backward()
        optimizer.step()


def accumulating(call, model, rows):
    optimizer = adamw(model)
    for i, (x, y) in enumerate(rows):
        (F.cross_entropy(call(x), y) / 2).backward()
        if i % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()


def two_optimizers(call, model, rows):
    body, head = torch.optim.SGD(model.body.parameters(), lr=0.1, momentum=0.9, dampening=0.5), adamw(model.classifier)
    for x, y in rows:
        body.zero_grad(), head.zero_grad()
        F.cross_entropy(call(x), y).backward()
        body.step(), head.step()


def one_optimizer_a_parameter(call, model, rows):
    optimizers = [torch.optim.AdamW([p], lr=1e-2) for p in model.parameters()]
    for x, y in rows:
        F.cross_entropy(call(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def scaled(call, model, rows):
    optimizer, scaler = adamw(model), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for x, y in rows:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(call(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


def with_lbfgs(call, model, rows):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.05, max_iter=4)
    for x, y in rows:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(call(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def schedule_free(call, model, rows):
    schedulefree = pytest.importorskip("schedulefree")
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-2, warmup_steps=2)
    optimizer.train()
    for i, (x, y) in enumerate(rows):
        optimizer.zero_grad()
        F.cross_entropy(call(x), y).backward()
        optimizer.step()
        if i % 3 == 0:  # an evaluation
            optimizer.eval()
            optimizer.train()


def schedule_free_wrapper(call, model, rows):
    schedulefree = pytest.importorskip("schedulefree")
    optimizer = schedulefree.ScheduleFreeWrapper(torch.optim.SGD(model.parameters(), lr=0.1), momentum=0.9)
    optimizer.train()
    for x, y in rows:
        optimizer.zero_grad()
        F.cross_entropy(call(x), y).backward()
        optimizer.step()
    optimizer.eval()


def by_autograd(call, model, rows):
    optimizer = adamw(model)
    for x, y in rows:
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(call(x), y))
        optimizer.step()


LOOPS = [
    plain,
    accumulating,
    two_optimizers,
    one_optimizer_a_parameter,
    scaled,
    with_lbfgs,
    schedule_free,
    schedule_free_wrapper,
    by_autograd,
]


# ------------------------------------------------------------------ every kind of loop
@pytest.mark.parametrize("with_batch", [False, True])
@pytest.mark.parametrize("loop", LOOPS)
def test_no_bit_of_the_training_changes(loop, with_batch, model, rows):
    alone = copy.deepcopy(model)
    torch.manual_seed(1)
    loop(alone, alone, rows)
    after = torch.rand(3)
    torch.manual_seed(1)
    with watch(model, probe_batch=rows[0] if with_batch else None):
        loop(model, model, rows)
    assert torch.equal(torch.rand(3), after)
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("loop", LOOPS)
def test_a_healthy_loop_is_silent(loop, model, rows):
    torch.manual_seed(1)
    with watch(model, probe_batch=rows[0]) as w:
        loop(model, model, rows * 4)
    assert [c.fault for c in diagnose(w.trace).causes] == []
    assert check_optimizer_covers_model(w.trace).status == "pass"
    assert check_weights_move(w.trace).status == "pass"


@pytest.mark.parametrize("loop", [plain, by_autograd, scaled, with_lbfgs, two_optimizers])
def test_the_losses_are_those_that_backward_is_called_on(loop, rows):
    """One of each iteration, also of a closure that is called several times, and without a GradScaler's factor."""
    torch.manual_seed(0)
    model = Net()
    model.drop.p = 0.0
    with watch(model) as w:
        loop(model, model, rows)
    assert len(w.trace.losses) == len(rows)
    assert 0.5 < w.trace.losses[0] < 1.0
    assert max(w.trace.losses) < 2.0
    assert {s.iteration for s in w.trace.steps} == set(range(len(rows)))


def test_schedule_free_weights_are_evaluated_as_their_optimizer_asks(model, rows):
    """The average is evaluated; then the weights to train are there again, bit for bit."""
    schedulefree = pytest.importorskip("schedulefree")
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=5e-2)
    with watch(model, optimizer, probe_batch=rows[0]) as w:
        optimizer.train()
        for x, y in rows:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        trained = copy.deepcopy(model.state_dict())
        states = {p: set(s) for p, s in optimizer.state.items()}
    assert all(torch.equal(v, trained[n]) for n, v in model.state_dict().items())
    assert optimizer.param_groups[0]["train_mode"]
    assert {p: set(s) for p, s in optimizer.state.items()} == states
    model.eval()
    of_trained = float(F.cross_entropy(model(rows[0][0]), rows[0][1]))
    optimizer.eval()
    averaged = float(F.cross_entropy(model(rows[0][0]), rows[0][1]))
    assert w.trace.probe.points[-1].loss == pytest.approx(averaged, rel=1e-5)
    assert abs(averaged - of_trained) > 1e-4


def hooks_and_modes():
    return (
        len(optim_module._global_optimizer_pre_hooks),
        len(optim_module._global_optimizer_post_hooks),
        torch._C._len_torch_function_stack(),
        loop_calls._calls,
    )
