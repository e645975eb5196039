"""Toys of ours under a default device that the user has set: batches are on the CPU, and the same."""

from __future__ import annotations

import pytest
import torch

from pytest_ftcheck import tiny_distilbert, toy_batches, toy_features
from pytest_ftcheck.instruments.batches import tensors_in
from pytest_ftcheck.instruments.tiny_architectures import tiny
from pytest_ftcheck.instruments.tiny_tasks import TASKS, batches_for
from pytest_ftcheck.instruments.token_batches import TokenBatches

KINDS = {"image-classification": "vit", "seq2seq": "t5", "causal-lm": "gpt2"}


@pytest.fixture
def on_meta():
    """As on a GPU: a generator of the CPU is refused there, and what is made by mistake has no values."""

    def run(make):
        torch.set_default_device("meta")
        try:
            return make()
        finally:
            torch.set_default_device(None)

    return run


@pytest.mark.parametrize(
    "make",
    [toy_batches, lambda: list(TokenBatches(padding="left", majority=0.7)), lambda: vars(toy_features(16, held_out=8))],
)
def test_batches_are_the_same(on_meta, make):
    here, there = list(tensors_in(make())), list(tensors_in(on_meta(make)))
    assert here
    assert len(here) == len(there)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_batches_of_a_task_are_the_same(on_meta, task):
    model = tiny(KINDS.get(task, "bert"), task)
    here, there = list(tensors_in(batches_for(model))), list(tensors_in(on_meta(lambda: batches_for(model))))
    assert here
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_a_model_of_a_seed_is_the_same_and_the_random_states_of_gpus_stay(on_meta, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    here, there = tiny_distilbert(seed=3), on_meta(lambda: tiny_distilbert(seed=3))
    assert all(torch.equal(a, b) for a, b in zip(here.parameters(), there.parameters(), strict=True))
    assert seeded == []
