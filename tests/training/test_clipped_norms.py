"""Norms of large gradients: as the loop's own clipping took them, where that is what the optimizer finds."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import watch

MAX_NORM = 0.01


def large_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 4000, bias=False), nn.Linear(4000, 2))


def clip(model):
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)


def train(model, between=clip, steps=3):
    """The norms of the first tensor's gradient as its optimizer finds it."""
    optimizer, data = torch.optim.AdamW(model.parameters(), lr=1e-3), torch.Generator().manual_seed(1)
    true = []
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(16, 300, generator=data)), torch.arange(16) % 2).backward()
        between(model)
        true.append(float(model[0].weight.grad.norm()))
        optimizer.step()
    return true


def exact(t, true):
    return (t.gradients.last_norm, t.gradients.max_norm) == pytest.approx((true[-1], max(true)), rel=1e-5)


def watched(between=clip):
    model = large_model()
    with watch(model, head="1") as w:
        true = train(model, between)
    return w.trace.tensor("0.weight"), true


def test_the_norm_that_clipping_took_is_the_one_recorded():
    t, true = watched()
    assert exact(t, true)
    assert t.gradients.stride == 1  # all of it counts


def test_without_clipping_it_is_estimated():
    t, true = watched(lambda _: None)
    assert t.grad_norms == pytest.approx(true, rel=0.1)
    assert not exact(t, true)
    assert t.gradients.stride > 1


def halved(model):
    clip(model)
    model[0].weight.grad.mul_(0.5)


def halved_unseen_by_autograd(model):
    clip(model)
    model[0].weight.grad.data.mul_(0.5)


def replaced(model):
    clip(model)
    model[0].weight.grad = model[0].weight.grad * 0.5


def accumulated(model):
    clip(model)
    model(torch.ones(2, 300)).square().mean().backward()


def measured_only(model):
    torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
    model[0].weight.grad.mul_(0.25)


def by_the_largest_element(model):
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM, norm_type=float("inf"))


@pytest.mark.parametrize(
    "between",
    [halved, halved_unseen_by_autograd, replaced, accumulated, measured_only, by_the_largest_element],
    ids=lambda f: f.__name__,
)
def test_what_happens_to_it_after_clipping_counts(between):
    t, true = watched(between)
    assert t.grad_norms == pytest.approx(true, rel=0.1)
    assert t.gradients.stride > 1


def test_clipping_twice():
    def twice(model):
        clip(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM / 4)

    t, true = watched(twice)
    assert exact(t, true)
    assert t.gradients.stride == 1


def test_each_part_clipped_alone():
    def alone(model):
        for layer in model:
            torch.nn.utils.clip_grad_norm_(layer.parameters(), MAX_NORM)

    t, true = watched(alone)
    assert exact(t, true)


def test_one_step_without_clipping_makes_it_an_estimate():
    calls = []

    def every_second(model):
        calls.append(1)
        if len(calls) % 2:
            clip(model)

    t, true = watched(every_second)
    assert t.grad_norms == pytest.approx(true, rel=0.1)
    assert t.gradients.stride > 1


def test_a_gradient_that_is_not_finite():
    def broken(model):
        model[0].weight.grad[5] = float("nan")
        clip(model)

    t, _ = watched(broken)
    assert t.gradients.nonfinite == 3
    assert t.gradients.first_nonfinite == 0


def test_no_gradient_is_kept_and_no_bit_of_the_training_changes():
    alone, model = large_model(), large_model()
    train(alone)
    with watch(model, head="1"):
        train(model)
        clip(model)
        gradient = weakref.ref(model[0].weight.grad)
        model.zero_grad()
        assert gradient() is None
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), model.parameters(), strict=True))


def test_elements_whose_first_gradient_comes_late_are_counted():
    """Which tensors are complete is looked up at steps that are powers of two; a row's first gradient may come at any."""
    model = nn.Sequential(nn.Embedding(12, 8), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model) as w:
        for row in (0, 1, 2, 3, 4, 5, 6, 7):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.tensor([[row]])), torch.tensor([1])).backward()
            optimizer.step()
    assert w.trace.tensor("0.weight").motion.share_with_gradient == pytest.approx(8 / 12)
    assert w.trace.tensor("2.weight").motion.share_with_gradient == 1
