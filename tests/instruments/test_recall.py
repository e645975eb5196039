"""What stands before the head is computed once: the same numbers, and never where a value could take another way."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.instruments.reader import Reader
from pytest_ftcheck.instruments.recall import Recall, modules_before
from pytest_ftcheck.instruments.undisturbed import perturbed, quiet

ROWS, WIDTH = 6, 5
X = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
BATCH = (X, torch.arange(ROWS) % 2)
#: Rows of each pass of the base; no attribute of the model, for those are restored.
PASSES: list[int] = []


class Net(nn.Module):
    """A base that counts its passes, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU())
        self.classifier = nn.Linear(8, 2)
        self.body[0].register_forward_hook(lambda _m, args, _out: PASSES.append(len(args[0])))

    def forward(self, x):
        return self.classifier(self.body(x))


class Kept(Net):
    """The head reads what a hook has kept of the base."""

    def __init__(self):
        super().__init__()
        kept = {}
        self.kept = lambda: kept["value"]
        self.body[0].register_forward_hook(lambda _m, _args, out: kept.update(value=out))

    def forward(self, x):
        self.body(x)
        return self.classifier(torch.relu(self.kept()))


class KeptInside(Kept):
    """The same, kept by a module."""

    def __init__(self):
        super().__init__()
        self.body[0].register_forward_hook(lambda m, _args, out: setattr(m, "value", out))
        self.kept = lambda: self.body[0].value


class Tied(nn.Module):
    """The base's weights are the head's."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(WIDTH, WIDTH, bias=False)
        self.classifier = nn.Linear(WIDTH, WIDTH, bias=False)
        self.classifier.weight = self.body.weight

    def forward(self, x):
        return self.classifier(torch.tanh(self.body(x)))


class Draws(Net):
    """The base draws numbers, also in evaluation mode, and so does what follows."""

    def __init__(self):
        super().__init__()
        self.body[1].register_forward_hook(lambda _m, _args, out: out + torch.rand(()))

    def forward(self, x):
        return self.classifier(self.body(x) + torch.rand(()))


def begun(model, head=("classifier",), batch=BATCH):
    """A recall that has been through a pass of the batch and its check."""
    recall = Recall(model, Reader(model, batch), head)
    recall.begin()
    with quiet(model), recall.recalling():
        loss, logits = recall.reader.loss(batch)
    recall.check(batch, loss, logits)
    return recall


def logits(recall, batch=BATCH):
    with quiet(recall.model), recall.recalling():
        return recall.reader.logits(batch)


def test_the_base_is_computed_once_and_the_numbers_are_the_same():
    model = Net()
    with torch.no_grad():
        expected = model.eval()(X)
    recall = begun(model)
    assert recall.works
    PASSES.clear()
    assert torch.equal(logits(recall), expected)
    assert PASSES == []
    with perturbed(model.classifier.parameters()), torch.no_grad():
        model.classifier.weight.fill_(1.0)
        head_changed = logits(recall)
        assert torch.equal(head_changed, model.eval()(X))
    assert not torch.equal(head_changed, expected)


def test_other_rows_are_computed():
    model = Net()
    recall = begun(model)
    PASSES.clear()
    with torch.no_grad():
        expected = model.eval()(X[:3] + 1)
    assert torch.equal(logits(recall, (X[:3] + 1, BATCH[1][:3])), expected)
    assert PASSES == [3, 3]


def test_what_is_written_into_the_values_is_not_remembered():
    model = Net()
    model.classifier.register_forward_pre_hook(lambda _m, args: args[0].add_(1))
    recall = begun(model)
    first = logits(recall)
    assert recall.works
    assert torch.equal(first, logits(recall))


@pytest.mark.parametrize("when", ["training mode", "gradients", "autocast", "after forget", "outside"])
def test_it_is_computed_again(when):
    model = Net()
    recall = begun(model)
    model.eval()
    PASSES.clear()
    if when == "outside":
        model(X)
    elif when == "gradients":
        with quiet(model, grad=True), recall.recalling():
            assert model(X).requires_grad
    elif when == "training mode":
        with torch.no_grad(), recall.recalling():
            model.train()(X)
    elif when == "autocast":
        with quiet(model), torch.autocast("cpu", torch.bfloat16), recall.recalling():
            model(X)
    else:
        recall.forget()
        logits(recall)
    assert PASSES == [ROWS]


def test_for_gradients_of_the_head_alone_the_base_is_a_constant():
    model = Net()
    recall = begun(model)
    expected = torch.autograd.grad(model.eval()(X).sum(), list(model.classifier.parameters()))
    PASSES.clear()
    with quiet(model, grad=True), recall.recalling(constant=True):
        found = torch.autograd.grad(model(X).sum(), list(model.parameters()), allow_unused=True)
    assert PASSES == []
    assert found[:2] == (None, None)
    assert all(torch.equal(a, b) for a, b in zip(found[2:], expected, strict=True))
    with quiet(model, grad=True), recall.recalling():
        assert torch.autograd.grad(model(X).sum(), [model.body[0].weight])[0].any()
    assert PASSES == [ROWS]


def test_weights_that_change_after_forget_are_used():
    model = Net()
    recall = begun(model)
    recall.forget()
    with torch.no_grad():
        model.body[0].weight.add_(1)
        expected = model.eval()(X)
    recall.begin()
    assert torch.equal(logits(recall), expected)
    assert torch.equal(logits(recall), expected)


@pytest.mark.parametrize("model", [Kept, KeptInside, Draws])
def test_a_value_that_takes_another_way_is_found(model):
    recall = begun(model())
    assert not recall.works
    PASSES.clear()
    logits(recall)
    assert PASSES == [ROWS]


def test_a_base_that_shares_the_heads_weights_is_computed_again():
    model = Tied()
    assert modules_before(model, ("classifier",)) == []
    assert not begun(model, batch=(X, torch.arange(ROWS) % WIDTH)).works


def test_without_a_head_nothing_is_recalled():
    assert not begun(Net(), head=()).works


def test_a_module_that_has_to_be_called_is():
    model = Net()
    recall = begun(model)
    PASSES.clear()
    with quiet(model), recall.recalling(but=[model.body[0]]):
        recall.reader.logits(BATCH)
    assert PASSES == [ROWS]


def test_a_forward_of_the_users_own_comes_back_also_after_an_interrupt():
    model = Net()
    own = model.body.forward
    model.body.forward = own
    recall = begun(model)

    def interrupted(*_):
        assert vars(model.body)["forward"] is not own
        raise KeyboardInterrupt

    handle = model.classifier.register_forward_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        logits(recall)
    handle.remove()
    assert vars(model.body)["forward"] is own
    del model.body.forward
    logits(recall)
    assert "forward" not in vars(model.body)


def test_a_run_computes_the_base_less_often_and_finds_the_same(monkeypatch):
    """The trace of the default battery with and without."""
    batches, held_out = toy_batches(8), toy_batches(4, seed=1)

    def run():
        counted = []
        model = tiny_distilbert(seed=0)

        def count(module, _args, out):
            if not module.training:
                counted.append(len(out))

        model.base_model.embeddings.register_forward_hook(count)
        trace = finetune(model, batches, steps=6, lr=1e-3, eval_batches=held_out)
        return sum(counted), trace

    rows, trace = run()
    monkeypatch.setattr("pytest_ftcheck.instruments.recall.modules_before", lambda *_: [])
    rows_before, before = run()
    assert rows < 0.75 * rows_before

    def measured(t):
        found = json.loads(t.to_json())
        return {k: v for k, v in found.items() if "seconds" not in k}

    assert measured(trace) == measured(before)
