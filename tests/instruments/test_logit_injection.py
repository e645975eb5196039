"""Chosen logits in place of a module's: what stands before them, and the module itself, is computed once."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck.instruments.logit_injection import Injector
from pytest_ftcheck.instruments.reader import Reader

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
BATCH = (X, torch.arange(6) % 3)


class Net(nn.Module):
    """A base and a head that count their passes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.classifier = nn.Linear(5, 8), nn.Linear(8, 3)
        self.passes = []
        for layer in (self.body, self.classifier):
            forward = layer.forward
            layer.forward = lambda x, layer=layer, forward=forward: (self.passes.append(layer), forward(x))[1]

    def forward(self, x):
        return self.classifier(torch.tanh(self.body(x)))


def test_a_layer_whose_output_is_replaced_is_computed_once():
    model = Net().eval()
    own = [vars(layer)["forward"] for layer in (model.body, model.classifier)]
    reader = Reader(model, BATCH)
    injector = Injector(model, reader, BATCH, model.classifier)
    model.passes.clear()
    for seed in range(4):
        z = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
        value, gradient = injector.gradient(z)
        assert value == float(F.cross_entropy(z, BATCH[1]))
        expected = (torch.softmax(z, 1) - F.one_hot(BATCH[1], 3)) / 6
        assert gradient is not None
        assert torch.allclose(gradient, expected, atol=1e-6)
    assert model.passes == [model.body, model.classifier]
    assert [vars(layer)["forward"] for layer in (model.body, model.classifier)] == own


def test_a_layer_that_is_called_twice_is_replaced_twice():
    class Twice(Net):
        def forward(self, x):
            return self.classifier(torch.tanh(self.body(x))) + self.classifier(torch.tanh(self.body(x)))

    model = Twice().eval()
    injector = Injector(model, Reader(model, BATCH), BATCH, model.classifier)
    for seed in range(3):
        z = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(injector.loss(z), F.cross_entropy(2 * z, BATCH[1]))
