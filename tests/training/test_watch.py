"""watch sees somebody else's loop as it is, and touches nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import optimizer as optim_module
from watched import Net, agrees_with, train, weights

from pytest_ftcheck import (
    Intent,
    assert_healthy,
    check_all_finite,
    check_grads_nonzero,
    check_loss_decreases,
    check_loss_matches_task,
    check_metric_improves,
    check_weights_move,
    watch,
)
from pytest_ftcheck.core import events


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


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


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("intent", [None, Intent(task="regression")])
def test_float_labels_of_0_and_1_are_two_classes_in_a_loop_of_ones_own(rows, column, intent):
    torch.manual_seed(0)
    model = Net()
    model.classifier = nn.Linear(model.classifier.in_features, 1)
    binary = [(x, y.float()[:, None] if column else y.float()) for x, y in rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(model, optimizer, probe_batch=binary[0], intent=intent) as w:
        for _ in range(4):
            for x, y in binary:
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(model(x).reshape(y.shape), y).backward()
                optimizer.step()
    reading = w.trace.reading
    if intent is not None:
        assert (reading.task, reading.loss) == ("regression", "mean squared error")
        return
    assert (reading.task, reading.loss) == ("single_label", "binary cross-entropy of one logit")
    for check in (check_loss_decreases, check_metric_improves):
        assert check(w.trace).status == "pass", str(check(w.trace))


def test_the_scores_of_pairs_need_no_bias(rows):
    """A reward model: what is added to the scores of both texts cancels in their difference, and has a gradient of exactly zero."""
    torch.manual_seed(0)
    model = Net()
    model.classifier = nn.Linear(model.classifier.in_features, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    with watch(model, optimizer) as w:
        for _ in range(4):
            for x, y in rows:
                optimizer.zero_grad()
                chosen, rejected = (model(x[y == c]) for c in (1, 0))
                few = min(len(chosen), len(rejected))
                F.relu(1 - chosen[:few] + rejected[:few]).mean().backward()
                optimizer.step()
    assert w.trace.tensor("classifier.bias").gradients.max_norm == 0
    assert_healthy(w.trace)


def test_a_probe_batch_with_a_loss_fn(model, rows):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with watch(model, optimizer, probe_batch=rows[0][0], loss_fn=lambda m, x: m(x).square().mean()) as w:
        train(model, optimizer, rows, w)
    assert len(w.trace.probe_loss.points) == 2
    assert w.trace.metrics == ()


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


def test_no_hook_stays_behind_after_an_exception(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = len(optim_module._global_optimizer_pre_hooks)
    with pytest.raises(KeyError), watch(model, optimizer, probe_batch=(torch.randn(8, 6), torch.zeros(8).long())):
        raise KeyError("stop")
    assert not any(p._backward_hooks for p in model.parameters())
    assert len(optim_module._global_optimizer_pre_hooks) == before
