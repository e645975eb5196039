"""A default device that the user has set: what we make is on its device, whatever the default one is, and it stays set."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pytest_ftcheck import finetune, watch


def trains_there():
    """Whether torch's own AdamW steps beside such a default device: 2.4 makes the counter of its steps there."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.AdamW([weight])
    try:
        with torch.device("meta"):
            optimizer.step()
    except RuntimeError:
        return False
    return True


pytestmark = [
    pytest.mark.trains,
    pytest.mark.skipif(not trains_there(), reason="this torch's AdamW has its counter on the default device"),
]
X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
BATCHES = [(X[i : i + 8], (X[i : i + 8, 0] > 0).long()) for i in range(0, 32, 8)]


class Net(nn.Module):
    """Tensors that are sampled, and small ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.classifier = nn.Linear(8, 300), nn.Linear(300, 2)

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x)))


@pytest.fixture
def on_meta():
    """As ``torch.set_default_device("cuda")`` for a model on the CPU: what is made there by mistake has no values."""

    def run(measure):
        model = Net()
        torch.set_default_device("meta")
        try:
            return measure(model), str(torch.get_default_device())
        finally:
            torch.set_default_device(None)

    return run


def measured(trace):
    """All but the seconds."""
    return str(dataclasses.replace(trace, seconds=0.0, training_seconds=0.0, environment={}, remeasure=None))


@pytest.mark.parametrize("probes", [None, ["overfit", "permuted", "accumulation", "autocast", "resume"]])
def test_a_default_device_changes_no_number(on_meta, probes):
    def measure(model):
        return finetune(model, BATCHES, steps=6, lr=1e-2, probes=probes, eval_batches=BATCHES[:2])

    before = measure(Net())
    trace, device = on_meta(measure)
    assert device == "meta"
    assert {n: why for n, why in trace.skipped.items() if "raised" in why} == {}
    assert measured(trace) == measured(before)


def test_a_default_device_under_watch(on_meta):
    def measure(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with watch(model, optimizer, probe_batch=BATCHES[0]) as run:
            for x, y in BATCHES:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                run.loss(loss)
        return run.trace

    trace, device = on_meta(measure)
    assert device == "meta"
    assert measured(trace) == measured(measure(Net()))
