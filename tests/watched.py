"""A small model, its loop, and what `watch` should have recorded of it, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, out=2, inside=8):
        super().__init__()
        self.body = nn.Linear(6, inside)
        self.classifier = nn.Linear(inside, out)

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x)))


def weights(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def rms(x):
    return float(x.double().square().mean().sqrt())


def agrees_with(trace, before, model):
    """Displacements are what an elementwise comparison by hand gives."""
    for name, p in model.named_parameters():
        delta = p.detach() - before[name]
        t = trace.tensor(name)
        if t.part == "base" and p.numel() > 1024:
            continue  # a sample
        assert t.motion.elements == p.numel()
        assert t.motion.share_changed == pytest.approx(float((delta != 0).float().mean()))
        assert t.motion.rms == pytest.approx(rms(delta), rel=1e-5, abs=1e-12)
        assert t.motion.largest == pytest.approx(float(delta.abs().max()), rel=1e-5)
        if float(before[name].norm()) > 0:
            assert t.motion.relative == pytest.approx(float(delta.norm() / before[name].norm()), rel=1e-5)
        assert t.first.std == pytest.approx(float(before[name].std(unbiased=False)), rel=1e-5, abs=1e-9)
        assert t.last.rms == pytest.approx(rms(p.detach()), rel=1e-5)


def train(model, optimizer, rows, w=None, steps=4):
    for x, y in (rows * 9)[:steps]:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (w.loss(loss) if w is not None else loss).backward()
        optimizer.step()
