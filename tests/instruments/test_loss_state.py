"""What a loss function keeps between calls is not changed by probes, and is by the training."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.instruments.loss_state import LossState
from pytest_ftcheck.instruments.reader import Reader

STEPS = 6


class Counting:
    """Of each call it keeps the number, the loss, and a weight for each row of the batch."""

    def __init__(self):
        self.calls, self.seen, self.weights = 0, [], torch.ones(2)

    def __call__(self, model, batch):
        self.calls += 1
        self.weights = torch.ones(len(batch[1]))
        value = (F.cross_entropy(model(batch[0]), batch[1], reduction="none") * self.weights).mean()
        self.seen.append(float(value))
        return value


class Scaled(nn.Module):
    """A module with a running mean of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, model, batch):
        self.calls += 1
        return F.cross_entropy(model(batch[0]), batch[1])


def closure():
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        return F.cross_entropy(model(batch[0]), batch[1])

    return loss, lambda: calls


def made(kind):
    """The loss function, and what counts its calls."""
    if kind == "closure":
        return closure()
    counting = Scaled() if kind == "module" else Counting()
    function = {
        "object": counting,
        "module": counting,
        "lambda": lambda m, b: counting(m, b),
        "partial": functools.partial(lambda counted, m, b: counted(m, b), counting),
        "method": counting.__call__,
    }[kind]
    return function, lambda: int(counting.calls)


@pytest.mark.parametrize("kind", ["object", "module", "lambda", "partial", "method", "closure"])
def test_only_the_training_calls_count(kind):
    loss, calls = made(kind)
    trace = finetune(
        tiny_distilbert(seed=0), toy_batches(STEPS), loss_fn=loss, lr=1e-3, steps=STEPS, probes=("loss", "loss_shape")
    )
    assert len(trace.steps) == STEPS
    assert calls() <= STEPS + 2  # the first batch is read before the run


def test_what_it_does_not_keep_is_left_alone():
    model = nn.Linear(2, 2)
    counting = Counting()
    with LossState(lambda m, b: (counting, model), model).kept():
        counting.calls = 5
        model.mark = 1
    assert counting.calls == 0
    assert model.mark == 1


# ------------------------------------------------------------------ losses that compute gradients themselves
class Numbers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.classifier = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x)))


def with_penalty(model, batch):
    """Cross-entropy and a penalty on the gradient at the inputs."""
    x = batch[0].clone().requires_grad_()
    z = model(x)
    (gradient,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    return F.cross_entropy(z, batch[1]) + 0.01 * gradient.pow(2).mean()


def test_a_gradient_penalty_is_evaluated_where_gradients_are_off():
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    batch, model = (x, (x[:, 0] > 0).long()), Numbers()
    trace = finetune(model, [batch], loss_fn=with_penalty, lr=1e-2, steps=2, probes=["loss", "loss_shape"])
    assert trace.probe_loss.points[0].loss == pytest.approx(float(with_penalty(model, batch).detach()))
    with torch.no_grad():
        value, _ = Reader(model, batch, loss_fn=with_penalty).loss(batch)
        assert not value.requires_grad
        assert not torch.is_grad_enabled()


def test_another_error_of_a_loss_is_raised_as_it_is():
    calls = []

    def broken(model, batch):
        calls.append(1)
        raise RuntimeError("no such table")

    with torch.no_grad(), pytest.raises(RuntimeError, match="no such table"):
        Reader(Numbers(), (torch.zeros(4, 6), torch.zeros(4, dtype=torch.long)), loss_fn=broken)
    assert len(calls) == 1
