"""The optimizer and the schedule of finetune: the recipe's and the user's own; clipping."""

from __future__ import annotations

import copy

import pytest
import torch
from finetuned import FAST, Net, healthy
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import (
    check_all_finite,
    finetune,
    tiny_distilbert,
    toy_batches,
)


# ------------------------------------------------------------------ optimizers and schedulers
def test_the_recipes_optimizer_and_schedule(rows):
    trace = finetune(Net(), rows, steps=10, lr=1e-3, warmup=0.2, weight_decay=0.1)
    assert (trace.optimizer.name, trace.optimizer.family) == ("AdamW", "adam")
    assert trace.optimizer.groups[0].weight_decay == 0.1
    assert [s.lrs[0] for s in trace.steps] == pytest.approx([trace.recipe.lr_at(i) for i in range(10)])
    assert trace.optimizer.groups[0].lr_sum == pytest.approx(trace.recipe.lr_sum())
    assert trace.tensor("classifier.weight").lr_sum == pytest.approx(trace.recipe.lr_sum())


def test_an_optimizer_that_this_torch_does_not_have(monkeypatch):
    monkeypatch.delattr(torch.optim, "Adafactor", raising=False)  # as in torch 2.4
    with pytest.raises(
        ValueError, match=r"optimizer='adafactor': torch .* has no torch.optim.Adafactor; upgrade torch, name another"
    ):
        finetune(tiny_distilbert, toy_batches(), optimizer="adafactor", steps=1)


@pytest.mark.parametrize(
    "name", ["adamw", "adam", "nadam", "radam", "adamax", "adagrad", "adafactor", "rmsprop", "sgd"]
)
def test_every_named_optimizer(rows, name):
    if name == "adafactor" and not hasattr(torch.optim, "Adafactor"):
        pytest.skip("torch 2.4 has no Adafactor")
    trace = healthy(finetune(Net(), rows, optimizer=name, **FAST))
    assert trace.optimizer.name.lower() == name
    assert trace.recipe.optimizer == name


def test_an_optimizer_instance_is_the_one_that_steps(rows):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    stepped = []
    optimizer.register_step_post_hook(lambda *a: stepped.append(1))
    trace = healthy(finetune(model, rows, optimizer=optimizer, steps=3))
    assert len(stepped) == 3
    assert (trace.optimizer.name, trace.optimizer.family) == ("SGD", "sgd")
    assert [s.lrs for s in trace.steps] == [(0.1,)] * 3  # no schedule of ours on the user's optimizer
    assert trace.optimizer.groups[0].settings["momentum"] == 0.9


def test_an_optimizer_callable(rows):
    def make(model):
        return torch.optim.Adam(
            [{"params": model.body.parameters(), "lr": 1e-4}, {"params": model.classifier.parameters()}], lr=1e-2
        )

    trace = healthy(finetune(Net, rows, optimizer=make, steps=3))
    assert [g.lr_peak for g in trace.optimizer.groups] == [1e-4, 1e-2]
    assert trace.tensor("body.weight").group == 0
    assert trace.tensor("classifier.weight").lr_sum == pytest.approx(3e-2)


def test_a_scheduler_callable(rows):
    trace = finetune(
        Net(),
        rows,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1.0),
        scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        steps=3,
    )
    assert [s.lrs[0] for s in trace.steps] == [1.0, 0.5, 0.25]


def test_a_scheduler_beside_the_recipes_optimizer(rows):
    trace = finetune(Net(), rows, lr=1.0, scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.1), steps=3)
    assert [s.lrs[0] for s in trace.steps] == pytest.approx([1.0, 0.1, 0.01])


def test_a_scheduler_instance_goes_on_from_where_it_is(rows):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    scheduler.step()
    trace = finetune(model, rows, optimizer=optimizer, scheduler=scheduler, steps=2)
    assert [s.lrs[0] for s in trace.steps] == [0.5, 0.25]


def test_reduce_on_plateau_gets_the_loss(rows):
    trace = finetune(
        Net(),
        rows,
        loss_fn=lambda m, b: 0 * m(b[0]).sum() + 1,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1.0),
        scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
        steps=4,
    )
    assert [s.lrs[0] for s in trace.steps] == [1.0, 1.0, 0.5, 0.25]


def test_lbfgs_gets_its_closure(rows):
    torch.manual_seed(0)  # of one seed in ten a hidden unit is dead, and its weights stay
    trace = finetune(Net(), rows[:1], optimizer=lambda m: torch.optim.LBFGS(m.parameters(), max_iter=5), steps=3)
    assert trace.optimizer.name == "LBFGS"
    assert len(trace.steps) == 3
    assert trace.losses[-1] < trace.losses[0]
    assert trace.tensor("classifier.weight").gradients.none == 0
    assert trace.tensor("classifier.weight").motion.share_changed == 1


def test_the_scheduler_is_stepped_beside_lbfgs_too(rows):
    trace = finetune(
        Net(),
        rows[:1],
        optimizer=lambda m: torch.optim.LBFGS(m.parameters(), lr=1.0, max_iter=2),
        scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        steps=3,
    )
    assert [s.lrs[0] for s in trace.steps] == [1.0, 0.5, 0.25]


def test_gradients_are_clipped_and_both_norms_are_kept(rows):
    trace = finetune(Net(), rows, loss_fn=lambda m, b: 1e3 * F.cross_entropy(m(b[0]), b[1]), max_grad_norm=0.5, **FAST)
    for step in trace.steps:
        assert step.grad_norm == pytest.approx(0.5, rel=1e-3)
        assert step.grad_norm_unclipped > 10
    assert finetune(Net(), rows, max_grad_norm=None, **FAST).steps[0].grad_norm_unclipped is None


def test_an_optimizer_over_another_model_is_a_trace_not_an_error(rows):
    other = Net()
    trace = finetune(Net(), rows, optimizer=lambda m: torch.optim.Adam(other.parameters()), steps=3)
    assert trace.optimizer.groups[0].not_in_model == 4
    assert trace.optimizer.groups[0].tensors == 0
    assert trace.tensor("classifier.weight").group is None
    assert trace.tensor("classifier.weight").motion.share_changed == 0


# ------------------------------------------------------------------ clipping
class Partly(Net):
    """One parameter whose gradient is NaN, though the loss is finite."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return super().forward(x) + torch.sqrt(self.extra * 0).sum()


def test_clipping_does_not_spread_a_nan(rows):
    trace = finetune(Partly(), rows, steps=1, lr=1e-2, max_grad_norm=1.0)
    assert {t.name: t.gradients.nonfinite for t in trace.tensors if t.gradients.nonfinite} == {"extra": 1}
    verdict = check_all_finite(trace)
    assert verdict.status == "fail"
    assert "nearest to the loss in extra" in verdict.headline


def test_sparse_gradients_are_clipped(rows):
    model = nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Flatten(), nn.Linear(8, 2))
    batches = [(torch.tensor([[1, 2], [1, 2], [3, 1]]), torch.tensor([0, 1, 0]))]
    trace = finetune(
        model,
        batches,
        head="2",
        loss_fn=lambda m, b: 1e3 * F.cross_entropy(m(b[0]), b[1]),
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1e-2),
        max_grad_norm=0.5,
        steps=2,
    )
    for step in trace.steps:
        assert step.grad_norm == pytest.approx(0.5, rel=1e-3)
        assert step.grad_norm_unclipped > 10
    assert trace.tensor("0.weight").motion.share_changed == pytest.approx(3 / 50)


def test_clipping_is_torchs(rows):
    torch.manual_seed(0)
    model = Net().double()
    twin = copy.deepcopy(model)
    batches = [(x.double(), y) for x, y in rows]
    kept = {}

    def evaluate(m):
        kept.update({n: p.detach().clone() for n, p in m.named_parameters()})
        return 0.0

    finetune(
        model,
        batches,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.5),
        max_grad_norm=0.1,
        steps=4,
        evaluate=evaluate,
    )
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
    for x, y in batches[:4]:
        optimizer.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        optimizer.step()
    for name, p in twin.named_parameters():
        assert torch.allclose(kept[name], p, rtol=1e-5, atol=1e-8)
