"""Training again on small real models: what comes out, what is left alone, and that all is as before afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from pytest_ftcheck import (
    Intent,
    check_beats_permuted_labels,
    check_overfits_one_batch,
    diagnose,
    finetune,
    tiny_distilbert,
    toy_batches,
    watch,
)
from pytest_ftcheck.checks.catalogue import SPECS
from pytest_ftcheck.checks.retraining.probe.overfit import ROWS, TOKEN_ROWS, OverfitProbe, attainable
from pytest_ftcheck.checks.retraining.probe.permuted import PERMUTATIONS, PermutedProbe
from pytest_ftcheck.checks.retraining.probe.rerun import Adam
from pytest_ftcheck.checks.retraining.record import Overfit, Permuted
from pytest_ftcheck.core.recipe import Recipe
from pytest_ftcheck.core.trace import Trace
from pytest_ftcheck.instruments.batches import Batches
from pytest_ftcheck.instruments.probe import ProbeContext, ProbeRunner
from pytest_ftcheck.instruments.reader import Reader

BOTH = ("overfit", "permuted")


class Net(nn.Module):
    def __init__(self, out=2, norm=nn.LayerNorm):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), norm(32), nn.Dropout(0.1))
        self.head = nn.Linear(32, out)

    def forward(self, x):
        return self.head(self.body(x).relu())


def make(seed=0, **options):
    torch.manual_seed(seed)
    return Net(**options)


def run(model, rows, probes=BOTH, **options):
    return finetune(
        model, rows[:4], head="head", probes=list(probes), eval_batches=rows[4:], **{"steps": 30, "lr": 1e-2, **options}
    )


# ------------------------------------------------------------------------------------------ what comes out
def test_a_healthy_run(rows):
    trace = run(make(), rows)
    found = trace.measured(Overfit)
    assert found.fitted
    assert (found.rows, found.labels, found.mode, found.trainable) == (ROWS, ROWS, "evaluation", 1.0)
    assert found.floor == 0.0
    assert found.attainable_accuracy == 1.0
    assert [a.fitted for a in found.attempts] == [False] * (len(found.attempts) - 1) + [True]
    assert check_overfits_one_batch(trace).status == "pass"
    again = trace.measured(Permuted)
    assert (again.steps, again.rows, again.scored_rows, again.held_out_rows) == (30, 64, 64, 64)
    assert 0.4 < again.changed < 0.6
    assert len(again.permuted) == PERMUTATIONS
    assert len({p.fit.loss for p in again.permuted}) == PERMUTATIONS
    assert again.standard is None
    assert check_beats_permuted_labels(trace).status == "pass"
    assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop", "adagrad"])
def test_the_repetition_is_the_run(rows, optimizer):
    """Same start, batches, learning rates, clipping and dropout masks: the same numbers, bit for bit."""
    found = run(make(), rows, ["permuted"], optimizer=optimizer).measured(Permuted)
    assert found.true == found.run
    assert found.true.fit.loss < found.true.start


def test_an_optimizer_of_ones_own_with_momentum_and_groups(rows):
    model = make()
    optimizer = torch.optim.SGD(
        [{"params": model.body.parameters(), "lr": 0.05}, {"params": model.head.parameters(), "lr": 0.1}],
        momentum=0.9,
        nesterov=True,
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)
    found = finetune(
        model, rows[:4], steps=30, optimizer=optimizer, scheduler=scheduler, head="head", probes=["permuted"]
    )
    assert found.measured(Permuted).true == found.measured(Permuted).run


def test_lbfgs_gets_its_closure(rows):
    found = finetune(
        make(), rows[:2], steps=4, optimizer=lambda m: torch.optim.LBFGS(m.parameters(), max_iter=3), head="head",
        probes=["permuted"],
    )  # fmt: skip
    assert found.measured(Permuted).true.fit.loss == pytest.approx(found.measured(Permuted).run.fit.loss, rel=1e-4)


def test_running_statistics_start_anew(rows):
    found = run(make(norm=nn.BatchNorm1d), rows, ["permuted"]).measured(Permuted)
    assert found.true == found.run


def test_a_loader_that_draws_anew(rows):
    x, y = torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16, shuffle=True)
    found = finetune(make(), loader, steps=20, lr=1e-2, head="head", probes=["permuted"]).measured(Permuted)
    assert found.true.fit.loss == pytest.approx(
        found.run.fit.loss, rel=0.1
    )  # the loader draws from the same random numbers
    assert found.rows == len(x)  # each row counts once, however many epochs it comes in


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_frozen_stays(rows, frozen):
    model = make()
    model.body.requires_grad_(not frozen)
    seen = []
    before = [p.detach().clone() for p in model.body.parameters()]
    model.register_forward_hook(
        lambda m, *_: seen.append(all(torch.equal(p, q) for p, q in zip(m.body.parameters(), before, strict=True)))
    )
    trace = run(model, rows)
    assert all(seen) is frozen
    assert trace.measured(Overfit).trainable == pytest.approx(66 / 354 if frozen else 1.0)
    assert check_overfits_one_batch(trace).status != "fail"


def test_regression_tags_and_one_logit(rows):
    cases = (
        (make(out=1), [(x, 3 * x[:, :1] + 1) for x, _ in rows], {}),
        (make(out=3), [(x, (x[:, :3] > 0).float()) for x, _ in rows], {}),
        (
            make(out=1),
            rows,
            {"loss_fn": lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]).squeeze(-1), b[1].float())},
        ),
    )
    for model, batches, options in cases:
        trace = run(model, batches, steps=60, **options)
        assert trace.skipped.get("overfit") is None
        assert check_overfits_one_batch(trace).status == "pass"
        assert check_beats_permuted_labels(trace).status == "pass"
        assert (trace.measured(Permuted).standard is not None) is bool(options)


def test_a_label_a_token():
    g = torch.Generator().manual_seed(0)

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(40, 32)
            self.head = nn.Linear(32, 3)

        def forward(self, ids):
            return self.head(self.words(ids))

    def batch(width):
        ids = torch.randint(40, (8, width), generator=g)
        labels = ids % 3
        labels[:, 0] = -100
        return ids, labels

    torch.manual_seed(0)
    data = [batch(w) for w in (6, 9, 7, 8)]
    trace = finetune(Tagger(), data, steps=40, lr=1e-2, head="head", probes=BOTH, eval_batches=[batch(8)])
    assert (trace.measured(Overfit).rows, trace.measured(Overfit).labels) == (TOKEN_ROWS, TOKEN_ROWS * 5)
    assert check_overfits_one_batch(trace).status == "pass"
    assert check_beats_permuted_labels(trace).status == "pass"


def test_equal_rows_with_other_labels_have_a_floor():
    x = torch.tensor([[1.0], [1.0], [1.0], [2.0]])
    floor, accuracy = attainable("single_label", (x, torch.tensor([0, 0, 1, 1])))
    assert floor == pytest.approx(0.75 * 0.636514, rel=1e-5)  # the entropy of 2 to 1, in three rows of four
    assert accuracy == 0.75
    floor, accuracy = attainable("regression", (x, torch.tensor([1.0, 2.0, 3.0, 9.0])))
    assert (floor, accuracy) == (pytest.approx(0.75 * 2 / 3), None)
    assert attainable("single_label", (x, torch.tensor([[0, 1]] * 4))) == (None, None)
    assert attainable("single_label", ([1, 2], torch.tensor([0, 1]))) == (0.0, 1.0)


def test_equal_rows_do_not_keep_a_batch_from_being_learnt(rows):
    x = rows[0][0].clone()
    x[:8] = x[0]
    y = torch.tensor([0, 1] * 8)
    trace = run(make(), [(x, y), *rows[1:]], ["overfit"])
    assert 0 < trace.measured(Overfit).floor < trace.measured(Overfit).constant_loss
    assert trace.measured(Overfit).attainable_accuracy == 0.75
    assert check_overfits_one_batch(trace).status == "pass"


def test_classes_take_turns(rows):
    x, y = torch.cat([r[0] for r in rows]), torch.zeros(128, dtype=torch.long)
    y[100:] = 1
    assert run(make(), [(x, y)] * 8, ["overfit"]).measured(Overfit).constant_loss == pytest.approx(0.6931, abs=1e-3)


# ------------------------------------------------------------------------------------------ faults
def test_features_that_get_lost(rows):
    class Zeroed(Net):
        def forward(self, x):
            return self.head(0 * self.body(x))

    torch.manual_seed(0)
    trace = run(Zeroed(), rows)
    assert check_overfits_one_batch(trace).fault == "batch_rows_alike"
    assert check_beats_permuted_labels(trace).status == "inconclusive"


def test_a_loss_without_a_gradient(rows):
    trace = run(make(), rows, ["overfit"], loss_fn=lambda m, b: 0 * F.cross_entropy(m(b[0]), b[1]))
    assert check_overfits_one_batch(trace).fault == "batch_loss_still"


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, b: F.cross_entropy(m(b[0]), b[1][torch.randperm(len(b[1]))]),
        lambda m, b: -F.cross_entropy(m(b[0]), b[1]),
    ],
)
def test_a_loss_of_other_labels(rows, loss):
    trace = run(make(), rows, loss_fn=loss)
    assert check_overfits_one_batch(trace).fault == "cannot_overfit"
    assert check_beats_permuted_labels(trace).fault == "loss_misses_labels"
    assert diagnose(trace).status == "unhealthy"


def test_labels_of_other_rows_learnt_by_heart():
    g = torch.Generator().manual_seed(0)
    x = [torch.randn(16, 8, generator=g) for _ in range(24)]
    rows = [(v, torch.randint(2, (16,), generator=g)) for v in x]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    trace = finetune(model, rows[:16], eval_batches=rows[16:], steps=400, lr=5e-3, head="4", probes=BOTH)
    assert check_beats_permuted_labels(trace).fault == "no_better_than_permuted"
    assert check_overfits_one_batch(trace).status == "pass"  # any labels can be learnt by heart


# ------------------------------------------------------------------------------------------ left alone
def test_they_are_made_only_when_named(rows):
    trace = finetune(make(), rows, steps=3, head="head")
    assert trace.measured(Overfit) is trace.measured(Permuted) is None
    assert "not among the probes=" in trace.skipped["overfit"]
    assert SPECS["overfits_one_batch"].judge(trace).status == "skipped"
    assert check_overfits_one_batch(trace).status == "pass"  # asked by name, it is measured then and there


def test_a_loop_of_ones_own_is_not_repeated(rows):
    def step(model, batch, optimizer, scheduler):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trace = finetune(model, rows, optimizer=optimizer, step=step, steps=4, probes=BOTH)
    assert "the loop is your own" in trace.skipped["permuted"]
    assert trace.measured(Overfit).fitted


def test_watch_makes_the_first(rows):
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(model, optimizer, probe_batch=rows[0], probes=BOTH, head="head") as w:
        for x, y in rows:
            optimizer.zero_grad()
            w.loss(F.cross_entropy(model(x), y)).backward()
            optimizer.step()
        after = [p.detach().clone() for p in model.parameters()]
    assert w.trace.measured(Overfit).fitted
    assert "the loop is your own" in w.trace.skipped["permuted"]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), after, strict=True))
    assert len(w.trace.steps) == len(rows)


def test_labels_that_cannot_be_permuted(rows):
    hidden = [{"x": x, "targets": y} for x, y in rows]
    trace = run(make(), hidden, loss_fn=lambda m, b: F.cross_entropy(m(b["x"]), b["targets"]))
    assert "cannot be found" in trace.skipped["permuted"]
    assert check_overfits_one_batch(trace).status == "pass"  # by the run's own loss alone
    trace = run(make(), rows, ["permuted"], loss_fn=lambda m, b: m(b[0]).square().mean())
    assert "does not depend on the labels" in trace.skipped["permuted"]
    same = [(x, torch.zeros(16, dtype=torch.long)) for x, _ in rows]
    trace = run(make(), same)
    assert "almost all the same" in trace.skipped["permuted"]
    assert "all labels of the batch are the same" in trace.skipped["overfit"]


def test_a_replaced_layer_has_no_way_back(rows):
    def step(model, batch, optimizer, scheduler):
        model.head = nn.Linear(32, 2)

    model = make()
    trace = finetune(
        model, rows, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), step=step, steps=2, probes=BOTH, head="head"
    )
    assert "a layer was replaced" in trace.skipped["overfit"]


def test_the_time_limit_counts(rows, monkeypatch):
    from pytest_ftcheck.checks.retraining.probe import permuted

    monkeypatch.setattr(permuted, "PERMUTATIONS", 300)
    trace = run(make(), rows, ["permuted"], max_seconds=1.0, steps=40)
    assert "time limit" in trace.skipped["permuted"]


def test_a_model_that_raises_is_skipped(rows):
    class Fussy(Net):
        def forward(self, x):
            if len(x) == 16 and not self.training and torch.is_grad_enabled():
                raise RuntimeError("not in eval mode")
            return super().forward(x)

    torch.manual_seed(0)
    trace = run(Fussy(), rows, ["overfit"])
    assert trace.measured(Overfit).mode == "training"


# ------------------------------------------------------------------------------------------ as before
def context_of(model, rows, optimizer):
    return ProbeContext(
        model=model, reader=Reader(model, rows[0]), fixed_batches=rows[:2], batches=Batches(rows, 8), held_out=rows[4:],
        head=("head",), optimizer=optimizer, scheduler=None, recipe=Recipe(steps=8), intent=Intent(), user_metric=None,
        recipe_loop=True, device=torch.device("cpu"), steps=8,
    )  # fmt: skip


def state_of(model, optimizer):
    return (
        [p.detach().clone() for p in model.parameters()]
        + [b.clone() for b in model.buffers()]
        + [p.grad.clone() for p in model.parameters()]
        + [v.clone() for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        + [torch.get_rng_state()]
    )


@pytest.mark.parametrize("breaks", [False, True])
def test_everything_is_as_before(rows, breaks, monkeypatch):
    model = make(norm=nn.BatchNorm1d)
    model.body[0].bias.requires_grad_(False)
    model.body[1].eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    runner = ProbeRunner(context_of(model, rows, optimizer), [OverfitProbe, PermutedProbe], float("inf"))
    runner.before()
    for i, (x, y) in enumerate(rows):
        runner.iteration(i, (x, y))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.body[0].bias.grad = torch.zeros(32)
    before, objects = state_of(model, optimizer), [p.grad for p in model.parameters()]
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    stepped = []
    handle = register_optimizer_step_post_hook(lambda *a: stepped.append(a))
    calls = []
    if breaks:

        def broken(self, gradients):
            calls.append(len(gradients))
            if len(calls) > 3:
                raise RuntimeError("half way")

        monkeypatch.setattr(Adam, "step", broken)
        monkeypatch.setattr(torch.optim.AdamW, "step", None)
    try:
        runner.after()
    finally:
        handle.remove()
        monkeypatch.undo()
    assert set(runner.skipped) == ({"overfit", "permuted"} if breaks else set())
    assert stepped == []
    assert all(torch.equal(a, b) for a, b in zip(state_of(model, optimizer), before, strict=True))
    assert all(p.grad is g for p, g in zip(model.parameters(), objects, strict=True))
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == settings


def test_the_run_is_the_same_with_and_without():
    options = {"steps": 6, "lr": 1e-3}
    bare = finetune(tiny_distilbert(seed=0), toy_batches(3), probes=[], **options)
    full = finetune(tiny_distilbert(seed=0), toy_batches(3), probes=BOTH, **options)
    assert full.losses == bare.losses
    assert [t.motion for t in full.tensors] == [t.motion for t in bare.tensors]


def test_our_adam_is_adam():
    torch.manual_seed(0)
    mine, theirs = make(), make()
    reference, adam = torch.optim.Adam(theirs.parameters(), lr=1e-2), Adam(list(mine.parameters()), 1e-2)
    for _ in range(3):
        x = torch.randn(4, 6)
        for model in (mine, theirs):
            model.eval()
            model.zero_grad()
            model(x).square().sum().backward()
        adam.step([p.grad for p in mine.parameters()])
        reference.step()
    assert all(torch.allclose(p, q, atol=1e-7) for p, q in zip(mine.parameters(), theirs.parameters(), strict=True))


def test_sparse_gradients_are_read():
    torch.manual_seed(0)

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.EmbeddingBag(50, 16, sparse=True, mode="mean")
            self.head = nn.Linear(16, 2)

        def forward(self, ids):
            return self.head(self.words(ids))

    data = [(ids := torch.randint(50, (16, 6)), (ids[:, 0] > 24).long()) for _ in range(4)]
    trace = finetune(
        Bag(), data, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.5), steps=8, head="head", probes=BOTH
    )
    assert trace.measured(Overfit).fitted
    assert trace.measured(Permuted).true == trace.measured(Permuted).run
