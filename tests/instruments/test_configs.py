"""A property ``config`` or ``module`` that raises is read as that of a model without one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pytest_ftcheck import assert_init_sane, diagnose, finetune, watch
from pytest_ftcheck.instruments.token_batches import TokenBatches

pytestmark = pytest.mark.trains
BATCHES = TokenBatches(batches=4, rows=8, shortest=3, longest=6, layout="mapping")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.classifier = nn.Embedding(200, 16, padding_idx=0), nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask):
        shown = attention_mask[..., None].float()
        return self.classifier((self.words(input_ids) * shown).sum(1) / shown.sum(1))


class NotLoaded(Net):
    @property
    def config(self):
        raise RuntimeError("not loaded yet")

    module = config  # as a wrapper names the model inside


def measured(trace):
    """All but the seconds."""
    return str(dataclasses.replace(trace, seconds=0.0, training_seconds=0.0, environment={}, remeasure=None))


def watched(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(model, optimizer, probe_batch=BATCHES[0]) as run:
        for batch in BATCHES:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])
            loss.backward()
            optimizer.step()
            run.loss(loss)
    return run.trace


@pytest.mark.parametrize("train", [watched, lambda model: finetune(model, BATCHES, steps=4, lr=1e-2)])
def test_a_run_is_that_of_a_model_without_a_config(train):
    trace, plain = train(NotLoaded()), train(Net())
    assert trace.skipped == plain.skipped
    assert measured(trace).replace("NotLoaded", "Net") == measured(plain)
    assert [v.status for v in diagnose(trace).verdicts] == [v.status for v in diagnose(plain).verdicts]


def test_the_start_is_judged_without_it():
    assert_init_sane(NotLoaded(), BATCHES)
