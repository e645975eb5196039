"""Gradients are clipped by the recipe, and with an optimizer of the user's own only where that is asked for."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import Recipe, finetune

ROWS = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(i)), torch.arange(8) % 2) for i in range(4)]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def sgd(module, lr=0.01):
    return torch.optim.SGD(module.parameters(), lr=lr)


def trained(recipe=None, **arguments):
    return finetune(
        model,
        ROWS,
        recipe or Recipe(steps=3),
        loss_fn=lambda m, b: 100 * F.cross_entropy(m(b[0]), b[1]),
        head="2",
        probes=[],
        **arguments,
    )


def is_clipped(trace, norm=1.0):
    return all(abs(s.grad_norm - norm) < 1e-3 and s.grad_norm_unclipped > 2 * norm for s in trace.steps)


def test_the_recipes_own_optimizer_is_clipped():
    trace = trained()
    assert is_clipped(trace)
    assert trace.recipe.max_grad_norm == 1.0
    assert is_clipped(trained(optimizer="sgd"))


def test_an_optimizer_of_the_users_own_is_not():
    for recipe in (None, Recipe(steps=3), dataclasses.replace(Recipe(), steps=3)):
        trace = trained(recipe, optimizer=sgd)
        assert trace.recipe.max_grad_norm is None
        assert all(s.grad_norm > 2 and s.grad_norm_unclipped is None for s in trace.steps)


@pytest.mark.parametrize("norm", [1.0, 0.5])
def test_unless_it_is_asked_for(norm):
    assert is_clipped(trained(optimizer=sgd, max_grad_norm=norm), norm)
    asked = Recipe(steps=3, max_grad_norm=norm)
    assert is_clipped(trained(asked, optimizer=sgd), norm)
    assert is_clipped(trained(dataclasses.replace(asked, seed=1), optimizer=sgd), norm)


def test_none_stays_none():
    assert trained(optimizer=sgd, max_grad_norm=None).recipe.max_grad_norm is None
    assert trained(max_grad_norm=None).recipe.max_grad_norm is None


def test_what_was_measured_again_was_clipped_alike():
    trace = trained(optimizer=sgd)
    again = trace.remeasure("data")
    assert [s.grad_norm for s in again.steps] == [s.grad_norm for s in trace.steps]
    asked = trained(optimizer=sgd, max_grad_norm=1.0)
    assert is_clipped(asked.remeasure("data"))


def test_a_recipe_is_equal_to_itself_after_a_journey():
    assert pickle.loads(pickle.dumps(Recipe())) == Recipe() == Recipe(max_grad_norm=1.0)


def test_divergence_is_no_longer_hidden():
    """The user's loop does not clip: with clipping of ours the weights would move by 1 a step at most."""
    trace = trained(Recipe(steps=8), optimizer=lambda m: sgd(m, lr=10.0))
    clipped = trained(Recipe(steps=8, max_grad_norm=1.0), optimizer=lambda m: sgd(m, lr=10.0))
    assert max(trace.losses, default=0) > 10 * max(clipped.losses)
