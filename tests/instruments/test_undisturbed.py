"""What is measured beside a training changes nothing about it, whatever a model or a loss does when it is called."""

from __future__ import annotations

import random
from collections import namedtuple

import numpy
import pytest
import torch
from special_tensors import add_tables
from torch import nn
from torch.nn import functional as F
from torch.optim import optimizer as optimizers
from transformers import BatchEncoding

from pytest_ftcheck import check_dropout_active, finetune, watch
from pytest_ftcheck.checks.gradients.record import ReferenceGradient
from pytest_ftcheck.checks.mode.record import Modes
from pytest_ftcheck.checks.probes import PROBES
from pytest_ftcheck.instruments.batches import own_copy, take_rows, to_device
from pytest_ftcheck.instruments.kept_tensors import same_bits
from pytest_ftcheck.instruments.undisturbed import quiet, undisturbed


class Net(nn.Module):
    """A network with tables whose memory is not its own; its subclasses do something odd when called."""

    def __init__(self):
        super().__init__()
        self.base = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2))
        self.classifier = nn.Linear(8, 2)
        add_tables(self)

    def forward(self, x):
        return self.classifier(self.base(x))


class Renormalised(Net):
    def forward(self, x):
        with torch.no_grad():
            self.classifier.weight.div_(self.classifier.weight.norm(dim=1, keepdim=True) * 1.01)
        return super().forward(x)


class NewData(Net):
    def forward(self, x):
        self.classifier.weight.data = self.classifier.weight.data * 0.99
        return super().forward(x)


class NoisyWeights(Net):
    def forward(self, x):
        if self.training:
            self.base[0].weight.data.add_(1e-2 * torch.randn(8, 6))
        return super().forward(x)


class MaxNorm(Net):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 6, max_norm=0.1)

    def forward(self, x):
        return super().forward(x + self.table((x.abs().sum(1) * 3).long().clamp(max=19)))


class NewBuffer(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("late", None)

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        if self.late is None:
            self.late = x.mean()
        return super().forward(x - self.mean - self.late)


class Keeping(Net):
    """It counts in a dict, a set and a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.state, self.seen, self.total, self.steps = {"n": 0}, set(), torch.zeros(()), torch.zeros(())

    def forward(self, x):
        self.state["n"] += 1
        self.seen.add(self.state["n"])
        self.total += 1
        self.steps = self.steps + 1
        return super().forward(x) * (1 + 0.01 * (self.state["n"] + len(self.seen) + self.total + self.steps))


class OwnDice(Net):
    def __init__(self):
        super().__init__()
        self.torch_dice = torch.Generator().manual_seed(1)
        self.numpy_dice = numpy.random.default_rng(1)
        self.old_numpy_dice = numpy.random.RandomState(1)
        self.python_dice = random.Random(1)

    def forward(self, x):
        drawn = self.numpy_dice.random() + self.python_dice.random() + self.old_numpy_dice.rand()
        return super().forward(x * (1 + 0.1 * torch.rand(6, generator=self.torch_dice)) + 0.1 * drawn)


class Greedy(Net):
    """It changes its input in place."""

    def forward(self, x):
        return super().forward(x.mul_(0.9))


class Exchanging(Net):
    """At its first call it exchanges a part of itself, and leaves the new one in the mode it is in; BigBird does so for short rows."""

    def forward(self, x):
        if isinstance(self.base, nn.Sequential):
            self.base = nn.ModuleList(self.base)
            self.base.train(self.training)
        for layer in self.base:
            x = layer(x)
        return self.classifier(x)


KINDS = [Net, Renormalised, NewData, NoisyWeights, MaxNorm, NewBuffer, Keeping, OwnDice, Greedy, Exchanging]


def rows(number=5):
    g = torch.Generator().manual_seed(0)
    return [(x := torch.randn(16, 6, generator=g), (x[:, 0] > 0).long()) for _ in range(number)]


def own_step(model, batch, optimizer, scheduler):
    model.train()
    loss = F.cross_entropy(model(batch[0]), batch[1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def weights_after(kind, probes, **options):
    """Losses, and all weights as the last step left them."""
    seen = []

    def optimizer(model):
        made = torch.optim.AdamW(model.parameters(), lr=1e-2)
        made.register_step_post_hook(lambda *_: seen.append([p.detach().clone() for p in model.parameters()]))
        return made

    trace = finetune(kind, rows(), optimizer=optimizer, steps=6, probes=probes, **options)
    return trace, seen


@pytest.mark.parametrize("step", [None, own_step], ids=["our loop", "own step"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_all_probes_a_training_is_the_same_bit_for_bit(kind, step):
    bare, weights = weights_after(kind, [], step=step)
    full, others = weights_after(kind, PROBES, step=step)
    assert full.losses == bare.losses
    assert len(weights) == len(others) == 6
    assert all(torch.equal(a, b) for w, o in zip(weights, others, strict=True) for a, b in zip(w, o, strict=True))
    assert full.measured(ReferenceGradient) is not None
    assert full.measured(Modes) is not None


def test_a_model_that_is_odd_in_every_call_is_as_before_after_a_run():
    for kind in KINDS:
        torch.manual_seed(0)
        model = kind()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        plain = {k: str(v) for k, v in vars(model).items() if isinstance(v, (dict, set, torch.Tensor)) and k[0] != "_"}
        dice = getattr(model, "torch_dice", torch.Generator()).get_state()
        finetune(model, rows(), steps=3)
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), kind
        assert {k: str(v) for k, v in vars(model).items() if k in plain} == plain
        assert torch.equal(getattr(model, "torch_dice", torch.Generator()).get_state(), dice)


@pytest.mark.parametrize("kind", KINDS)
def test_watching_with_a_probe_batch_is_the_same_too(kind):
    def run(**options):
        torch.manual_seed(0)
        model = kind()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        with watch(model, optimizer, **options) as w:
            for batch in rows():
                losses.append(w.loss(own_step(model, batch, optimizer, None)).item())
        return losses, [p.detach().clone() for p in model.parameters()], w.trace

    losses, weights, _ = run()
    others, as_well, trace = run(probe_batch=rows()[0], probes=PROBES)
    assert others == losses
    assert all(torch.equal(a, b) for a, b in zip(weights, as_well, strict=True))
    assert len(trace.probe_loss.points) == 2


def test_a_loss_that_empties_its_batch_does_it_to_a_copy():
    def loss(model, batch):
        labels = batch.pop("labels")
        batch["x"].mul_(0.5)
        return F.cross_entropy(model(batch.pop("x")), labels)

    batches = [{"x": x, "labels": y} for x, y in rows(8)]
    before = batches[7]["x"].clone()
    trace = finetune(Net, batches, loss_fn=loss, steps=6)
    assert len(trace.losses) == 6
    assert torch.equal(batches[7]["x"], before)
    assert set(batches[7]) == {"x", "labels"}
    assert set(batches[0]) == {
        "x",
        "labels",
    }  # in training, too, containers are copies: the next epoch needs the labels
    assert not torch.equal(batches[0]["x"], rows(8)[0][0])  # its tensors are the batch's own


def test_gradients_and_flags_are_as_before_when_a_metric_of_ones_own_clears_them():
    model = Net()
    own_step(model, rows()[0], torch.optim.SGD(model.parameters(), lr=0.1), None)
    before = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    with undisturbed(model):
        model.zero_grad()
        model.requires_grad_(False)
    assert all(p.grad is grad and p.requires_grad is trained for p, grad, trained in before)
    assert {grad is not None for _, grad, trained in before if trained} == {True}


def test_weights_once_seen_to_be_written_are_kept_from_then_on():
    model = Renormalised()
    first = model.classifier.weight.detach().clone()
    with quiet(model, weights=True):
        model(rows()[0][0])
    assert torch.equal(model.classifier.weight, first)
    with quiet(model):
        model(rows()[0][0])
    assert torch.equal(model.classifier.weight, first)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_no_hook_is_left_when_a_step_is_looked_at_and_never_taken(error):
    def step(model, batch, optimizer, scheduler):
        raise error

    with pytest.raises(error):
        finetune(Net, rows(), step=step, steps=3, probes=PROBES)
    assert not optimizers._global_optimizer_pre_hooks
    assert not optimizers._global_optimizer_post_hooks


def test_no_hook_is_left_when_time_is_up_between_two_steps():
    def step(model, batch, optimizer, scheduler):
        return F.cross_entropy(model(batch[0]), batch[1])  # it never steps

    finetune(Net, rows(), step=step, steps=3, max_seconds=1e-9, probes=PROBES)
    assert not optimizers._global_optimizer_pre_hooks
    assert not optimizers._global_optimizer_post_hooks


def test_what_tuples_hold_is_as_before():
    memory = namedtuple("memory", "hidden seen")

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.state = (torch.zeros(2), [1])
            self.memory = memory(torch.zeros(1), ({"rows": 1},))
            self.size = (3, 3)

    for model in (Cell(), nn.Sequential(nn.Linear(2, 2), Cell())):
        cell = model if isinstance(model, Cell) else model[1]
        state, kept = cell.state, cell.memory
        with undisturbed(model):
            cell.state[0].add_(1), cell.state[1].append(2)
            cell.memory.hidden.add_(1), cell.memory.seen[0].clear()
            cell.size = (1, 1)
        assert cell.state is state
        assert cell.memory is kept
        assert (float(state[0].sum()), state[1]) == (0, [1])
        assert (float(kept.hidden), kept.seen) == (0, ({"rows": 1},))
        assert cell.size == (3, 3)


def test_numbers_of_eight_bits_are_compared():
    a = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    assert same_bits(a, a.clone())
    assert not same_bits(a, torch.zeros(2).to(torch.float8_e4m3fn))


# ------------------------------------------------------------------ batches
def test_a_copy_of_a_batch_shares_nothing_that_can_be_changed():
    graph = torch.ones(2, requires_grad=True)
    batch = {"x": torch.ones(2), "deep": [{"y": torch.ones(1)}, "text", None], "graph": graph}
    other = own_copy(batch)
    other["x"].zero_()
    other["deep"][0]["y"].zero_()
    other["deep"].append(1)
    other.pop("graph")
    assert batch["x"].tolist() == [1, 1]
    assert batch["deep"][0]["y"].tolist() == [1]
    assert len(batch["deep"]) == 3
    assert own_copy(batch)["graph"] is graph


@pytest.mark.parametrize("call", [own_copy, lambda b: take_rows(b, [0]), lambda b: to_device(b, torch.device("meta"))])
def test_the_kind_of_a_mapping_is_kept(call):
    batch = BatchEncoding({"input_ids": torch.ones(2, 3), "labels": torch.zeros(2)})
    other = call(batch)
    assert isinstance(other, BatchEncoding)
    assert other is not batch
    assert other.input_ids is not batch.input_ids


def test_texts_go_with_their_rows():
    batch = {
        "x": torch.arange(3),
        "labels": torch.arange(3),
        "text": ["a", "b", "c"],
        "ragged": [[1], [2, 3], []],
        "id": "abc",
    }
    some = take_rows(batch, [2, 0])
    assert some["text"] == ["c", "a"]
    assert some["ragged"] == [[], [1]]
    assert some["id"] == "abc"
    pair = take_rows((torch.arange(2), torch.arange(2)), [1])  # two tensors are no two rows
    assert [v.tolist() for v in pair] == [[1], [1]]


def test_a_module_that_was_made_meanwhile_is_in_the_mode_of_what_holds_it():
    model = Exchanging().train()
    with quiet(model):
        model(torch.zeros(1, 6))
        assert not model.base.training
    assert model.base.training
    model = Exchanging().train()
    model.base.eval()  # a part that is meant to sleep is left alone
    with quiet(model):
        pass
    assert not model.base.training


def test_dropout_of_a_module_made_in_the_first_call_is_on():
    trace = finetune(Exchanging, rows(), steps=4)
    assert trace.measured(Modes) is not None
    assert check_dropout_active(trace).status != "fail"
