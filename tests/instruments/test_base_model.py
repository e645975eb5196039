"""The base inside a model: found, its calls recorded, its weights rounded; effects between outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_ftcheck import tiny_distilbert
from pytest_ftcheck.instruments.base_model import effect, find_base_models, output_types, recorded_calls, rounded

IDS = torch.tensor([[2, 50, 51, 3], [2, 60, 3, 0], [2, 70, 71, 3]])
MASK = (IDS != 0).long()


def test_the_base_is_the_outermost_that_takes_ids_and_mask():
    model = tiny_distilbert(seed=0)
    assert [i.name for i in find_base_models(model)] == ["base_model"]
    assert find_base_models(model)[0].library
    assert find_base_models(nn.Linear(2, 2)) == []


def test_hooks_are_removed_after_an_exception():
    model = tiny_distilbert(seed=0)
    base = find_base_models(model)[0]
    with pytest.raises(IndexError), recorded_calls(base, IDS) as calls, output_types(model) as types:
        model.classifier(model.base_model(IDS, attention_mask=MASK)[0][:, 9])
    assert calls[0].hidden.shape == (3, 4, 64)
    assert types == {torch.float32}
    assert not any(m._forward_hooks for m in model.modules())


def test_effect():
    found = effect(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [5.0]]))
    assert (found.change, found.spread, found.scale) == (3.0, 1.0, 5.0)
    assert found.relative == 3.0
    assert effect(torch.tensor([[float("nan")]]), torch.tensor([[1.0]])) is None
    assert effect(torch.zeros(2, 1), torch.zeros(3, 1)) is None


def test_rounded_moves_every_weight_by_one_rounding_and_puts_it_back():
    model = tiny_distilbert(seed=0)
    model.register_parameter("coarse", nn.Parameter(torch.ones(8, dtype=torch.float16)))
    before = [p.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    again = []

    def interrupted():
        with rounded(model, 2.0**-23):
            again.extend(p.detach().clone() for p in model.parameters())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(again.pop(0), model.coarse)  # one rounding of a float32 is nothing there
    for now, was in zip(again, before[1:], strict=True):
        step = ((now - was).abs() / was.abs())[was != 0]
        assert ((step > 2.0**-24) & (step < 2.0**-22)).all()
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    with rounded(model, 2.0**-23):
        assert all(torch.equal(p, was) for p, was in zip(list(model.parameters())[1:], again, strict=True))
