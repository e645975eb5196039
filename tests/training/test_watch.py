"""watch sees somebody else's loop as it is: every number agrees with a calculation by hand, and nothing is touched."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import optimizer as optim_module

from pytest_ftcheck import (
    check_all_finite,
    check_grads_match_reference,
    check_grads_nonzero,
    check_loss_decreases,
    check_loss_matches_task,
    check_weights_move,
    watch,
)
from pytest_ftcheck.core import events


class Net(nn.Module):
    def __init__(self, out=2, inside=8):
        super().__init__()
        self.body = nn.Linear(6, inside)
        self.classifier = nn.Linear(inside, out)

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


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


# ------------------------------------------------------------------ a loop by hand
def test_a_hand_written_loop(model, rows):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = weights(model)
    losses, norms = [], []
    with watch(model, optimizer) as w:
        for x, y in rows[:5]:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            w.loss(loss).backward()
            losses.append(loss.item())
            norms.append(float(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()]))))
            optimizer.step()
    trace = w.trace
    assert trace.source == "watch"
    assert trace.losses == pytest.approx(losses)
    assert [s.grad_norm for s in trace.steps] == pytest.approx(norms, rel=1e-3)
    assert [s.iteration for s in trace.steps] == [0, 1, 2, 3, 4]
    assert trace.tensor("body.weight").gradients.steps == 5
    agrees_with(trace, before, model)
    assert trace.tensor("body.weight").lr_sum == pytest.approx(5e-2)
    assert trace.recipe is None
    assert trace.stopped is None
    assert type(trace).from_json(trace.to_json()) == trace


def test_a_loop_that_tells_no_loss(model, rows):
    """Its losses are the tensors that backward() is called on."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    told = Net()
    told.load_state_dict(model.state_dict())
    with watch(model, optimizer) as w:
        train(model, optimizer, rows)
    other = torch.optim.AdamW(told.parameters(), lr=1e-2)
    with watch(told, other) as explicit:
        train(told, other, rows, explicit)
    assert w.trace.losses == explicit.trace.losses
    assert w.trace.iterations == explicit.trace.iterations
    assert [s.iteration for s in w.trace.steps] == [0, 1, 2, 3]
    assert check_weights_move(w.trace).status == "pass"
    assert check_grads_nonzero(w.trace).status == "pass"


def test_watching_changes_nothing(rows):
    def run(watched):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if watched:
            with watch(model, optimizer, head="2", probe_batch=rows[0]) as w:
                train(model, optimizer, rows, w)
        else:
            train(model, optimizer, rows)
        return [p.detach().tolist() for p in model.parameters()], torch.rand(3).tolist(), model.training

    assert run(watched=True) == run(watched=False)


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


# ------------------------------------------------------------------ unusual loops
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


def test_a_closure_is_where_lbfgs_gets_its_gradients(model, rows):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    before = weights(model)
    with watch(model, optimizer) as w:
        for x, y in rows[:3]:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            w.loss(optimizer.step(closure))
    agrees_with(w.trace, before, model)
    assert len(w.trace.steps) == 3
    assert w.trace.optimizer.family == "other"
    assert w.trace.tensor("body.weight").gradients.none == 0
    assert w.trace.tensor("body.weight").gradients.max_norm > 0


def test_a_closure_with_an_optimizer_that_needs_none(model, rows):
    """As Lightning does it: before the step there are no gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(model, optimizer) as w:
        for x, y in rows[:3]:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = w.loss(F.cross_entropy(model(x), y))
                loss.backward()
                return loss

            optimizer.step(closure)
    t = w.trace.tensor("body.weight")
    assert t.gradients.none == 0
    assert t.gradients.first_nonzero == 0
    assert [i.step for i in w.trace.iterations] == [0, 1, 2]


def test_several_groups_have_their_own_budgets(model, rows):
    optimizer = torch.optim.AdamW(
        [
            {"params": model.body.parameters(), "lr": 1e-4},
            {"params": model.classifier.parameters(), "weight_decay": 0.0},
        ],
        lr=1e-2,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda i: 1.0, lambda i: 0.5**i])
    with watch(model, optimizer, scheduler=scheduler) as w:
        for _ in range(3):
            train(model, optimizer, rows, steps=1)
            scheduler.step()
    trace = w.trace
    assert [s.lrs for s in trace.steps] == [(1e-4, 1e-2), (1e-4, 5e-3), (1e-4, 2.5e-3)]
    assert trace.tensor("body.weight").lr_sum == pytest.approx(3e-4)
    assert trace.tensor("classifier.weight").lr_sum == pytest.approx(1.75e-2)
    assert trace.tensor("classifier.weight").lr_peak == 1e-2
    assert [(g.lr_first, g.lr_peak, g.tensors) for g in trace.optimizer.groups] == [(1e-4, 1e-4, 2), (1e-2, 1e-2, 2)]
    assert [g.weight_decay for g in trace.optimizer.groups] == [0.01, 0.0]
    assert trace.tensor("classifier.weight").motion.by_decay == 0
    assert trace.notes == ("scheduler: LambdaLR",)


def test_a_group_added_midway(model, rows):
    optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.1)
    model.body.requires_grad_(False)
    with watch(model, optimizer) as w:
        train(model, optimizer, rows, steps=2)
        model.body.requires_grad_(True)
        optimizer.add_param_group({"params": list(model.body.parameters()), "lr": 0.01})
        train(model, optimizer, rows, steps=3)
    t = w.trace.tensor("body.weight")
    assert (t.group, t.first_step) == (1, 2)
    assert t.lr_sum == pytest.approx(0.03)
    assert (t.trainable, t.trainable_last) == (False, True)
    assert t.gradients.none == 2
    assert t.gradients.first_nonzero == 2
    assert t.unchanged is False
    assert w.trace.tensor("classifier.weight").lr_sum == pytest.approx(0.5)
    assert [len(s.lrs) for s in w.trace.steps] == [1, 1, 2, 2, 2]


def test_shared_parameters_are_counted_once(rows):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(6, 6, bias=False)
            self.classifier = nn.Linear(6, 6, bias=False)
            self.classifier.weight = self.embed.weight

        def forward(self, x):
            return self.classifier(torch.tanh(self.embed(x)))

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = weights(model)
    with watch(model, optimizer, head="embed") as w:
        train(model, optimizer, rows, steps=2)
    assert len(w.trace.tensors) == 1
    assert w.trace.tensors[0].aliases == ("classifier.weight",)
    agrees_with(w.trace, before, model)


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


def test_another_models_optimizer_is_none_of_our_business(model, rows):
    other = Net()
    mine, theirs = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    with watch(model, mine) as w:
        train(other, theirs, rows)
        train(model, mine, rows, steps=2)
    assert len(w.trace.steps) == 2
    assert w.trace.optimizer.other_optimizer_steps == 0


def test_two_loops_at_once(rows):
    one, two = Net(), Net()
    a, b = torch.optim.SGD(one.parameters(), lr=0.1), torch.optim.SGD(two.parameters(), lr=0.2)
    with watch(one, a) as first, watch(two, b) as second:
        train(one, a, rows, first, steps=3)
        train(two, b, rows, second, steps=2)
    assert [s.lrs for s in first.trace.steps] == [(0.1,)] * 3
    assert [s.lrs for s in second.trace.steps] == [(0.2,)] * 2


def test_writes_between_the_steps_are_seen(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as w:
        train(model, optimizer, rows, steps=2)
        with torch.no_grad():
            model.classifier.weight.add_(0.5)
        train(model, optimizer, rows, steps=1)
    assert w.trace.tensor("classifier.weight").motion.between_steps == pytest.approx(0.5, rel=1e-4)
    assert w.trace.tensor("body.weight").motion.between_steps == 0


def test_writes_after_the_last_step_are_seen_too(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as w:
        train(model, optimizer, rows, steps=1)
        nn.init.zeros_(model.classifier.bias)
    assert w.trace.tensor("classifier.bias").motion.between_steps > 0


def test_the_mode_at_each_step(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as w:
        train(model, optimizer, rows, w, steps=1)
        model.eval()
        train(model, optimizer, rows, w, steps=1)
    assert [s.training for s in w.trace.steps] == [True, False]
    assert [i.training for i in w.trace.iterations] == [True, False]
    assert not model.training


def test_a_frozen_parameter_and_its_checksum(model, rows):
    model.body.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as w:
        train(model, optimizer, rows)
    assert w.trace.tensor("body.weight").unchanged is True
    with watch(model, optimizer) as w:
        model.body.weight.data[0, 0] += 1e-6
    assert w.trace.tensor("body.weight").unchanged is False


def test_buffers_are_watched(rows):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model[1].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, head="2") as w:
        train(model, optimizer, rows, steps=1)
    found = {b.name: (b.part, b.frozen, b.unchanged) for b in w.trace.buffers}
    assert found["1.running_mean"] == ("base", True, False)
    assert set(found) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


# ------------------------------------------------------------------ probes
def test_a_probe_batch_is_looked_at_before_and_after(model, rows):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with torch.no_grad():
        first = float(F.cross_entropy(model(rows[0][0]), rows[0][1]))
    with watch(model, optimizer, probe_batch=rows[0]) as w:
        train(model, optimizer, rows, w, steps=30)
    with torch.no_grad():
        last = float(F.cross_entropy(model(rows[0][0]), rows[0][1]))
    assert [p.step for p in w.trace.probe_loss.points] == [0, 30]
    assert [p.loss for p in w.trace.probe_loss.points] == pytest.approx([first, last], rel=1e-5)
    assert {m.name for m in w.trace.metrics} == {"accuracy", "precision", "recall"}
    assert check_loss_decreases(w.trace).status == "pass"
    assert w.trace.reading.loss == "cross-entropy of the logits"


def test_a_probe_batch_with_a_loss_fn(model, rows):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(model, optimizer, probe_batch=rows[0][0], loss_fn=lambda m, x: m(x).square().mean()) as w:
        train(model, optimizer, rows, w)
    assert len(w.trace.probe_loss.points) == 2
    assert w.trace.metrics == ()


# ------------------------------------------------------------------ ends
def test_an_exception_inside_the_block_keeps_what_was_seen(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = len(optim_module._global_optimizer_post_hooks)
    w = watch(model, optimizer, probe_batch=rows[0])

    def interrupted():
        with w:
            train(model, optimizer, rows, w, steps=2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as info:
        interrupted()
    assert info.value.ftcheck_trace is w.trace
    assert len(w.trace.steps) == 2
    assert "KeyboardInterrupt" in w.trace.stopped
    assert len(optim_module._global_optimizer_post_hooks) == before


def test_a_loss_without_a_graph_is_named_in_the_trace_of_its_exception(model, rows):
    """The loop is the user's, so its RuntimeError stays; the trace it carries says what the matter is."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="does not require grad") as info, watch(model, optimizer) as w:
        w.loss(F.cross_entropy(model(rows[0][0]).detach(), rows[0][1])).backward()
    assert info.value.ftcheck_trace.backward_error == "the loss has no graph"
    assert check_weights_move(w.trace).status == "fail"
    assert "no graph" in check_weights_move(w.trace).headline


def test_a_loss_given_as_a_number_or_detached_is_no_fault(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer) as w:
        for x, y in rows[:3]:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            w.loss(loss.detach())
    assert w.trace.backward_error is None
    assert len(w.trace.losses) == 3


def test_hooks_are_gone_afterwards(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = (
        len(optim_module._global_optimizer_pre_hooks),
        len(optim_module._global_optimizer_post_hooks),
        dict(vars(optimizer)).keys(),
        {n: {k: len(v) for k, v in vars(m).items() if k.endswith("_hooks")} for n, m in model.named_modules()},
    )
    with watch(model, optimizer) as w:
        train(model, optimizer, rows, w)
    train(model, optimizer, rows)
    assert len(w.trace.steps) == 4
    assert before == (
        len(optim_module._global_optimizer_pre_hooks),
        len(optim_module._global_optimizer_post_hooks),
        dict(vars(optimizer)).keys(),
        {n: {k: len(v) for k, v in vars(m).items() if k.endswith("_hooks")} for n, m in model.named_modules()},
    )


def test_a_block_without_a_step_is_a_trace(model):
    with watch(model, torch.optim.SGD(model.parameters(), lr=0.1)) as w:
        pass
    assert w.trace.steps == ()
    assert check_weights_move(w.trace).status == "fail"
    assert "no optimizer step" in check_weights_move(w.trace).headline.lower()


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


def test_the_listener_hears_the_trace(model, rows):
    heard = []

    class Ear:
        def progress(self, done, total, loss):
            raise AssertionError("a loop of unknown length has no progress")

        def traced(self, trace):
            heard.append(trace)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with events.listening(Ear()), watch(model, optimizer) as w:
        train(model, optimizer, rows, w)
    assert heard == [w.trace]


def test_the_memory_of_a_long_run_is_bounded(rows):
    model = nn.Sequential(nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, y = rows[0]
    with watch(model, optimizer, head="0") as w:
        for _ in range(2100):
            optimizer.zero_grad()
            w.loss(F.cross_entropy(model(x), y)).backward()
            optimizer.step()
    assert len(w.trace.steps) == 2100
    assert len(w.trace.recorded) < 1024
    gaps = {b - a for a, b in zip(w.trace.recorded, w.trace.recorded[1:], strict=False)}
    assert gaps == {4}
    assert len(w.trace.tensors[0].histograms) < 40


# ------------------------------------------------------------------ weight decay, by hand
def decay_by_hand(make, rows, pull, steps=5):
    """Sum over the steps of what weight decay did, by ``pull(weight, group, state)`` on copies; beside the trace's."""
    torch.manual_seed(0)
    model = Net()
    optimizer = make(model.parameters())
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    state: dict = dict.fromkeys(total)
    before = weights(model)
    with watch(model, optimizer) as w:
        for x, y in rows[:steps]:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            for n, p in model.named_parameters():
                shift, state[n] = pull(p.detach().clone(), optimizer.param_groups[0], state[n])
                total[n] += shift
            optimizer.step()
    for name, p in model.named_parameters():
        m = w.trace.tensor(name).motion
        assert m.by_decay == pytest.approx(rms(total[name]), rel=1e-4)
        delta = p.detach() - before[name] - total[name]
        touched = w.trace.tensor(name).motion.share_with_gradient
        assert m.by_gradient == pytest.approx(math.sqrt(float(delta.square().sum()) / (touched * p.numel())), rel=1e-3)


def test_decay_of_adamw(rows):
    decay_by_hand(
        lambda ps: torch.optim.AdamW(ps, lr=1e-3, weight_decay=0.5), rows, lambda w, g, s: (-1e-3 * 0.5 * w, s)
    )


def test_decay_of_sgd(rows):
    decay_by_hand(lambda ps: torch.optim.SGD(ps, lr=0.1, weight_decay=0.5), rows, lambda w, g, s: (-0.05 * w, s))


@pytest.mark.parametrize(("dampening", "nesterov"), [(0.0, False), (0.5, False), (0.0, True)])
def test_decay_of_sgd_with_momentum(rows, dampening, nesterov):
    def pull(w, group, buffer):
        d = 0.5 * w
        buffer = d.clone() if buffer is None else 0.9 * buffer + (1 - dampening) * d
        return -0.1 * (d + 0.9 * buffer if nesterov else buffer), buffer

    decay_by_hand(
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.5, dampening=dampening, nesterov=nesterov),
        rows,
        pull,
    )


def test_decay_of_adam_joins_the_gradient_and_is_not_separated(rows):
    decay_by_hand(
        lambda ps: torch.optim.Adam(ps, lr=1e-3, weight_decay=0.5), rows, lambda w, g, s: (torch.zeros_like(w), s)
    )


def test_what_moves_without_a_gradient_is_decay():
    """AdamW shrinks the rows of an embedding that no word asked for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    before = weights(model)
    with watch(model, optimizer, head="2") as w:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.tensor([[1, 2]])), torch.tensor([0])).backward()
            optimizer.step()
    t = w.trace.tensor("0.weight")
    assert t.motion.share_changed == 1
    assert t.motion.share_with_gradient == pytest.approx(2 / 20)
    unseen = (model[0].weight.detach() - before["0.weight"])[3:]
    assert rms(unseen) == pytest.approx((1 - 0.999**3) * rms(before["0.weight"][3:]), rel=1e-3)
    seen = (model[0].weight.detach() - before["0.weight"] * 0.999**3)[1:3]
    assert t.motion.by_gradient == pytest.approx(rms(seen), rel=1e-2)


# ------------------------------------------------------------------ big tensors
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
    assert 200 < base.motion.elements <= 256
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


# ------------------------------------------------------------------ other people's trainers
def test_accelerate(rows):
    from accelerate import Accelerator

    torch.manual_seed(0)
    model = Net()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1.0)
    prepared, wrapped, scheduler = accelerator.prepare(model, optimizer, scheduler)
    before = weights(model)
    with watch(prepared, wrapped, scheduler=scheduler) as w:
        for x, y in rows:
            with accelerator.accumulate(prepared):
                loss = F.cross_entropy(prepared(x), y)
                w.loss(loss)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                wrapped.step()
                scheduler.step()
                wrapped.zero_grad()
    assert len(w.trace.steps) == 4
    assert [i.step for i in w.trace.iterations] == [None, 0, None, 1, None, 2, None, 3]
    assert w.trace.optimizer.name == "AdamW"
    assert w.trace.optimizer.other_optimizer_steps == 0
    assert w.trace.tensor("classifier.weight").lr_sum == pytest.approx(4e-2)
    agrees_with(w.trace, before, model)


class Rows(torch.utils.data.Dataset):
    def __init__(self, batches):
        self.items = [
            {"input_ids": ids[i], "attention_mask": mask[i], "labels": int(y[i])}
            for (ids, _, mask), y in batches
            for i in range(len(y))
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def collate(items):
    return {
        "input_ids": nn.utils.rnn.pad_sequence([i["input_ids"] for i in items], batch_first=True),
        "attention_mask": nn.utils.rnn.pad_sequence([i["attention_mask"] for i in items], batch_first=True),
        "labels": torch.tensor([i["labels"] for i in items]),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["optimizer first", "callback"])
def test_the_trainer_of_transformers(tmp_path, way):
    from transformers import (
        DistilBertConfig,
        DistilBertForSequenceClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from pytest_ftcheck import toy_batches

    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=200, dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=32)
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )

    class Watching(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, optimizer=None, **rest):
            self.watch = watch(model, optimizer).__enter__()

        def on_train_end(self, *args, **rest):
            self.watch.__exit__(None, None, None)

    callback = Watching()
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(toy_batches(4, 16)),
        data_collator=collate,
        callbacks=[callback] if way == "callback" else [],
    )
    before = weights(model)
    if way == "callback":
        trainer.train()
        trace = callback.watch.trace
    else:
        with watch(model, trainer.create_optimizer()) as w:
            trainer.train()
        trace = w.trace
    assert len(trace.steps) == 6
    assert trace.optimizer.name == "AdamW"
    assert trace.optimizer.other_optimizer_steps == 0
    assert trace.head == ("pre_classifier", "classifier")
    agrees_with(trace, before, model)
    assert trace.tensor("classifier.weight").lr_sum == pytest.approx(6e-3)
    assert trace.tensor("classifier.weight").gradients.none == 0
    assert all(s.training for s in trace.steps)
    assert check_weights_move(trace, "head").status == "pass"


# ------------------------------------------------------------------ several optimizers
@pytest.mark.parametrize("watched_first", [False, True])
def test_two_optimizers_are_kept_apart(model, rows, watched_first):
    """Each with its own learning rate and decay, one after the other, each with the other's gradients gone."""
    body = torch.optim.SGD(model.body.parameters(), lr=0.1)
    head = torch.optim.SGD(model.classifier.parameters(), lr=0.5, weight_decay=0.1)
    before = weights(model)
    pair = [(body, model.classifier), (head, model.body)]
    with watch(model, body) as w:
        for x, y in rows[:4]:
            for optimizer, other in pair if watched_first else pair[::-1]:
                model.zero_grad()
                F.cross_entropy(model(x), y).backward()
                other.zero_grad()
                optimizer.step()
    agrees_with(w.trace, before, model)
    mine, theirs = w.trace.tensor("body.weight"), w.trace.tensor("classifier.weight")
    assert (len(w.trace.steps), w.trace.optimizer.other_optimizer_steps) == (8, 4)
    assert mine.lr_sum == pytest.approx(4 * 0.1)
    assert theirs.lr_sum == pytest.approx(4 * 0.5)
    assert (mine.group, theirs.group) == (0, None)
    assert (mine.motion.by_decay, theirs.motion.by_decay > 0) == (0, True)
    assert [g.lr_peak for g in w.trace.optimizer.groups] == [0.1]
    assert w.trace.optimizer.groups[0].lr_sum == pytest.approx(0.4)
    assert (mine.gradients.steps, mine.gradients.none) == (4, 0)
    # that another optimizer has it is known from its first step on
    assert (theirs.gradients.steps, theirs.gradients.none) == ((5, 1) if watched_first else (4, 0))
    # in between, the series keeps the last norm: a tensor that waits is not without gradient
    own = mine.grad_norms[::2] if watched_first else mine.grad_norms[1::2]
    rest = mine.grad_norms[1::2] if watched_first else mine.grad_norms[2::2]
    assert all(v > 0 for v in own)
    assert rest == own[: len(rest)]
    assert check_grads_nonzero(w.trace).status == "pass"
    assert check_weights_move(w.trace).status == "pass"


@pytest.mark.parametrize(
    ("kind", "family"), [("RAdam", "other"), ("NAdam", "adam"), ("AdamW", "adam"), ("SGD", "sgd"), ("Rprop", "other")]
)
def test_the_family_of_an_optimizer(model, kind, family):
    """RAdam's rectification holds its first steps far below the learning rate: it has no budget."""
    with watch(model, getattr(torch.optim, kind)(model.parameters(), lr=1e-3)) as w:
        pass
    assert w.trace.optimizer.family == family


@pytest.mark.parametrize("attribute", ["optimizer", "base_optimizer"])
def test_the_optimizer_inside_a_wrapper_is_not_another(model, rows, attribute):
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            setattr(self, attribute, inner)

        def step(self, closure=None):
            getattr(self, attribute).step(closure)

    optimizer = Wrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with watch(model, optimizer) as w:
        train(model, optimizer, rows, steps=3)
    assert (len(w.trace.steps), w.trace.optimizer.other_optimizer_steps) == (3, 0)
    assert w.trace.optimizer.groups[0].lr_sum == pytest.approx(0.3)


def test_a_buffer_that_is_not_finite_is_counted(rows):
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model.register_buffer("mask", torch.full((3,), -math.inf))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, head="2") as w:
        with torch.no_grad():
            model(torch.full((4, 6), math.nan))
        train(model, optimizer, rows, steps=2)
    found = {b.name: b.nonfinite for b in w.trace.buffers}
    assert found["1.running_mean"] == 8
    assert found["mask"] == 0  # that is how attention masks are kept
    assert found["1.num_batches_tracked"] == 0
    assert check_all_finite(w.trace).status == "fail"


# ------------------------------------------------------------------ the loss of the loop, and the one that was read
class Ending(Net):
    def __init__(self, end):
        super().__init__(3)
        self.end = end

    def forward(self, x):
        return getattr(torch, self.end)(super().forward(x), *([-1] if self.end == "softmax" else []))


def hot(y):
    return F.one_hot(y, 3).float()


@pytest.mark.parametrize(
    ("end", "targets", "loss_of", "status"),
    [
        ("softmax", torch.Tensor.long, lambda p, y: F.nll_loss(p.log(), y), "inconclusive"),
        ("softmax", torch.Tensor.long, lambda p, y: F.cross_entropy(p, y) / 4, "fail"),
        ("sigmoid", hot, F.binary_cross_entropy, "inconclusive"),
        ("sigmoid", hot, F.binary_cross_entropy_with_logits, "fail"),
        ("clone", torch.Tensor.long, F.cross_entropy, "pass"),
        ("clone", torch.Tensor.long, lambda z, y: (z.logsumexp(-1) - z[range(len(y)), y]).mean(), "inconclusive"),
    ],
)
def test_a_loss_of_the_loops_own_is_not_taken_for_the_one_that_was_read(end, targets, loss_of, status):
    torch.manual_seed(0)
    model, x, y = Ending(end), torch.randn(24, 6), targets(torch.arange(24) % 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with watch(model, optimizer, probe_batch=(x, y)) as w:
        for _ in range(4):
            optimizer.zero_grad()
            w.loss(loss_of(model(x), y)).backward()
            optimizer.step()
    verdict = check_loss_matches_task(w.trace)
    assert verdict.status == status, str(verdict)
    assert ("loss_fn=" in verdict.remedy) == (status == "inconclusive")


# ------------------------------------------------------------------ the gradient of the step before
def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def looped(model, optimizer, zero, *, clip=False, micro=1, steps=8, **given):
    rows = [(torch.randn(4, 6), torch.randint(0, 2, (4,))) for _ in range(steps * micro)]
    with watch(model, optimizer, probe_batch=rows[0], **given) as w:
        for i, (x, y) in enumerate(rows):
            if i % micro == 0:
                zero(optimizer)
            w.loss(F.cross_entropy(model(x), y) / micro).backward()
            if i % micro == micro - 1:
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
    return check_grads_match_reference(w.trace)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("make", [sgd, adam])
def test_gradients_that_are_never_zeroed_are_found(model, make, micro, clip):
    verdict = looped(model, make(model), lambda _: None, clip=clip, micro=micro)
    assert (verdict.status, verdict.fault) == ("fail", "grads_never_zeroed"), str(verdict)
    assert not any(p._backward_hooks for p in model.parameters())


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("to_none", [False, True])
def test_gradients_that_are_zeroed_are_fine(model, to_none, micro, clip):
    verdict = looped(model, adam(model), lambda o: o.zero_grad(set_to_none=to_none), clip=clip, micro=micro)
    assert verdict.status == "pass", str(verdict)
    assert "5 steps of the watched loop" in verdict.headline


def test_a_gradient_that_another_loss_left_is_zeroed_before_the_next(model):
    """As in a GAN: backward of one network's loss reaches the other, which is zeroed before its own turn."""
    optimizer = adam(model)
    x, y = torch.randn(8, 6), torch.randint(0, 2, (8,))
    with watch(model, optimizer, probe_batch=(x, y)) as w:
        for _ in range(8):
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.zero_grad()
            w.loss(F.cross_entropy(model(x), y)).backward()
            optimizer.step()
    assert check_grads_match_reference(w.trace).status == "pass"


def test_a_closure_that_zeroes_is_fine(model):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    x, y = torch.randn(8, 6), torch.randint(0, 2, (8,))
    with watch(model, optimizer, probe_batch=(x, y)) as w:
        for _ in range(8):

            def closure():
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert check_grads_match_reference(w.trace).status == "pass"


def test_no_hook_stays_behind_after_an_exception(model):
    optimizer = adam(model)
    before = len(optim_module._global_optimizer_pre_hooks)
    with pytest.raises(KeyError), watch(model, optimizer, probe_batch=(torch.randn(8, 6), torch.zeros(8).long())):
        raise KeyError("stop")
    assert not any(p._backward_hooks for p in model.parameters())
    assert len(optim_module._global_optimizer_pre_hooks) == before
