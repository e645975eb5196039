"""What `watch` records of each step agrees with a calculation by hand: gradients, updates, displacements."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from watched import Net, agrees_with, rms, train, weights

from pytest_ftcheck import watch


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


def test_gradients_are_those_that_the_optimizer_saw(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    with watch(model, optimizer) as w:
        for x, y in rows[:4]:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            seen.append({n: float(p.grad.norm()) for n, p in model.named_parameters()})
            optimizer.step()
            optimizer.zero_grad()
    for name in seen[0]:
        g = w.trace.tensor(name).gradients
        assert list(w.trace.tensor(name).grad_norms) == pytest.approx([s[name] for s in seen], rel=1e-3)
        assert g.max_norm == pytest.approx(max(s[name] for s in seen), rel=1e-5)
        assert g.last_norm == pytest.approx(seen[-1][name], rel=1e-5)


def test_per_step_updates_and_displacements(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = weights(model)
    updates, displacements = [], []
    with watch(model, optimizer) as w:
        for x, y in rows[:4]:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            last = model.classifier.weight.detach().clone()
            optimizer.step()
            updates.append(rms(model.classifier.weight.detach() - last))
            displacements.append(rms(model.classifier.weight.detach() - before["classifier.weight"]))
    t = w.trace.tensor("classifier.weight")
    assert list(t.updates) == pytest.approx(updates, rel=1e-3)
    assert list(t.displacements) == pytest.approx(displacements, rel=1e-3)
    assert t.motion.max_update == pytest.approx(max(updates), rel=1e-4)
    assert [h.step for h in t.histograms] == [-1, 0, 1, 2, 3]
    assert all(sum(h.counts) == t.numel for h in t.histograms)


def test_accumulation(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as w:
        for i, (x, y) in enumerate(rows):
            w.loss(F.cross_entropy(model(x), y) / 4).backward()
            if i % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    assert [i.step for i in w.trace.iterations] == [None, None, None, 0, None, None, None, 1]
    assert [s.iteration for s in w.trace.steps] == [3, 7]
    assert len(w.trace.losses) == 8


def test_clipping_shows_the_clipped_norm(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as w:
        for x, y in rows[:3]:
            optimizer.zero_grad()
            (100 * F.cross_entropy(model(x), y)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
    assert [s.grad_norm for s in w.trace.steps] == pytest.approx([0.25] * 3, rel=1e-3)


def test_a_gradient_scaler_and_a_step_that_it_skips(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    true = []
    with watch(model, optimizer) as w:
        for i, (x, y) in enumerate(rows[:5]):
            optimizer.zero_grad()
            loss = w.loss(F.cross_entropy(model(x), y))
            scaler.scale(loss).backward()
            if i == 2:
                model.body.weight.grad[0, 0] = math.inf
            else:
                true.append(float(model.body.weight.grad.norm()) / scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
    trace = w.trace
    assert [i.step for i in trace.iterations] == [0, 1, None, 2, 3]
    assert [s.iteration for s in trace.steps] == [0, 1, 3, 4]
    assert trace.tensor("body.weight").gradients.nonfinite == 0
    assert list(trace.tensor("body.weight").grad_norms) == pytest.approx(true, rel=1e-3)
    assert trace.tensor("body.weight").lr_sum == pytest.approx(0.4)


def test_autocast(model, rows):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = weights(model)
    with watch(model, optimizer) as w:
        for x, y in rows[:3]:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            w.loss(loss).backward()
            optimizer.step()
    agrees_with(w.trace, before, model)
    assert len(w.trace.losses) == 3


def test_bfloat16_parameters(rows):
    torch.manual_seed(0)
    model = Net().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = weights(model)
    with watch(model, optimizer) as w:
        for x, y in rows[:3]:
            optimizer.zero_grad()
            F.cross_entropy(model(x.bfloat16()).float(), y).backward()
            optimizer.step()
    t = w.trace.tensor("body.weight")
    assert t.dtype == "bfloat16"
    assert t.motion.share_changed == pytest.approx(float((model.body.weight != before["body.weight"]).float().mean()))


def test_sparse_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 4, sparse=True), nn.Flatten(), nn.Linear(8, 2))
    sparse = torch.optim.SparseAdam(model[0].parameters(), lr=1e-2)
    dense = torch.optim.Adam(model[2].parameters(), lr=1e-2)
    before = weights(model)
    ids = torch.tensor([[1, 2], [2, 3], [1, 4]])
    with watch(model, sparse, head="2") as w:
        for _ in range(3):
            sparse.zero_grad(), dense.zero_grad()
            F.cross_entropy(model(ids), torch.tensor([0, 1, 0])).backward()
            norm = float(model[0].weight.grad.coalesce().values().norm())
            sparse.step(), dense.step()
    agrees_with(w.trace, before, model)
    t = w.trace.tensor("0.weight")
    assert t.role == "embedding"
    assert t.motion.share_changed == t.motion.share_with_gradient == pytest.approx(4 / 50)
    assert t.grad_norms[-1] == pytest.approx(norm, rel=1e-3)
    assert t.motion.by_gradient == pytest.approx(rms((model[0].weight.detach() - before["0.weight"])[1:5]), rel=1e-4)
    assert w.trace.optimizer.other_optimizer_steps == 3  # the other optimizer's, on parameters of this model


def test_a_step_that_fails_and_is_tried_again(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as w:
        train(model, optimizer, rows, steps=1)

        def broken():
            raise MemoryError

        with pytest.raises(MemoryError):
            optimizer.step(broken)
        train(model, optimizer, rows, steps=2)
    assert len(w.trace.steps) == 3
    t = w.trace.tensor("classifier.weight")
    assert t.motion.between_steps == 0
    assert t.motion.by_gradient == pytest.approx(t.motion.rms, rel=1e-4)


def test_a_large_head_is_compared_whole_and_a_large_base_by_a_sample(rows):
    torch.manual_seed(0)
    model = Net(inside=3000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = weights(model)
    with watch(model, optimizer, head="classifier") as w:
        train(model, optimizer, rows)
    head, base = w.trace.tensor("classifier.weight"), w.trace.tensor("body.weight")
    assert head.motion.elements == 6000
    delta = model.classifier.weight.detach() - before["classifier.weight"]
    assert head.motion.rms == pytest.approx(rms(delta), rel=1e-5)
    assert head.motion.largest == pytest.approx(float(delta.abs().max()), rel=1e-5)
    assert base.motion.elements == 1024
    assert base.motion.rms == pytest.approx(rms(model.body.weight.detach() - before["body.weight"]), rel=0.2)
    # gradient norms are exact all the same
    assert base.gradients.stride == 1
    assert base.gradients.last_norm == pytest.approx(float(model.body.weight.grad.norm()), rel=1e-4)


def test_the_gradient_norm_of_a_very_large_tensor_is_estimated_closely():
    model = nn.Sequential(nn.Linear(300, 4000, bias=False), nn.Linear(4000, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, head="1") as w:
        F.cross_entropy(model(torch.randn(16, 300)), torch.arange(16) % 2).backward()
        true = float(model[0].weight.grad.norm())
        optimizer.step()
    t = w.trace.tensor("0.weight")
    assert t.gradients.stride > 1
    assert t.gradients.max_norm == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("width", [4, 3000], ids=["as large as the sample", "larger"])
@pytest.mark.parametrize("more", [True, False], ids=["more", "fewer"])
def test_a_parameter_that_is_given_another_number_of_elements(more, width):
    """A vocabulary that grows in place, say. The loop goes on, and the parameter counts as another one since."""
    torch.manual_seed(0)
    table = nn.Embedding(30, width)
    head = nn.Linear(width, 2)
    model = nn.ModuleDict({"table": table, "head": head})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.arange(20)

    def one_step():
        optimizer.zero_grad()
        F.cross_entropy(head(table(ids)), ids % 2).backward()
        optimizer.step()

    with watch(model, optimizer, head="head") as w:
        for _ in range(3):
            one_step()
        optimizer.zero_grad()
        table.weight.data = torch.cat([table.weight.data, torch.ones(9, width)]) if more else table.weight.data[:20]
        now = weights(model)
        for _ in range(3):
            one_step()
    assert not torch.equal(now["table.weight"], table.weight), "it is trained"
    t = w.trace.tensor("table.weight")
    assert t.replaced
    assert not t.orphaned, "the optimizer still holds it"
    assert t.shape == (39 if more else 20, width)
    assert t.motion.rms > 0
    assert t.updates[2] > 0
    assert list(t.updates[3:]) == [0, 0, 0], "what it was is compared, and no longer changes"
    assert not t.gradients.none
    assert not w.trace.tensor("head.weight").replaced
    assert w.trace.tensor("head.weight").updates[5] > 0
