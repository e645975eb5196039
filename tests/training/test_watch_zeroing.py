"""A gradient of the step before that is never zeroed, under `watch`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from watched import Net

from pytest_ftcheck import check_grads_match_reference, watch


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def looped(model, optimizer, zero, *, clip=False, micro=1, steps=8, **given):
    rows = [(torch.randn(4, 6), torch.randint(0, 2, (4,))) for _ in range(steps * micro)]
    with watch(model, optimizer, probe_batch=rows[0], **given) as w:
        for i, (x, y) in enumerate(rows):
            if i % micro == 0:
                zero(optimizer)
            w.loss(F.cross_entropy(model(x), y) / micro).backward()
            if i % micro == micro - 1:
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
    return check_grads_match_reference(w.trace)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("make", [sgd, adam])
def test_gradients_that_are_never_zeroed_are_found(model, make, micro, clip):
    verdict = looped(model, make(model), lambda _: None, clip=clip, micro=micro)
    assert (verdict.status, verdict.fault) == ("fail", "grads_never_zeroed"), str(verdict)
    assert not any(p._backward_hooks for p in model.parameters())


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("to_none", [False, True])
def test_gradients_that_are_zeroed_are_fine(model, to_none, micro, clip):
    verdict = looped(model, adam(model), lambda o: o.zero_grad(set_to_none=to_none), clip=clip, micro=micro)
    assert verdict.status == "pass", str(verdict)
    assert "5 steps of the watched loop" in verdict.headline


def test_a_gradient_that_another_loss_left_is_zeroed_before_the_next(model):
    """As in a GAN: backward of one network's loss reaches the other, which is zeroed before its own turn."""
    optimizer = adam(model)
    x, y = torch.randn(8, 6), torch.randint(0, 2, (8,))
    with watch(model, optimizer, probe_batch=(x, y)) as w:
        for _ in range(8):
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.zero_grad()
            w.loss(F.cross_entropy(model(x), y)).backward()
            optimizer.step()
    assert check_grads_match_reference(w.trace).status == "pass"


def test_a_closure_that_zeroes_is_fine(model):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    x, y = torch.randn(8, 6), torch.randint(0, 2, (8,))
    with watch(model, optimizer, probe_batch=(x, y)) as w:
        for _ in range(8):

            def closure():
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert check_grads_match_reference(w.trace).status == "pass"
