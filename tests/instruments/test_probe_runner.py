"""The runner: probes run at their moments, within a budget, and none of them can break the run or change anything."""

from __future__ import annotations

import random

import pytest
import torch

from pytest_ftcheck import finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks import probes
from pytest_ftcheck.instruments.batches import take_rows
from pytest_ftcheck.instruments.probe import Probe, ProbeRunner
from pytest_ftcheck.instruments.work import allowance, row_work, tokens_of


class Noted(Probe):
    """Notes the moments at which it is called."""

    name = "noted"

    def __init__(self, context):
        super().__init__(context)
        self.moments = []

    def cost(self):
        return 10.0

    def before(self):
        self.moments.append("before")

    def iteration(self, number, batch):
        self.moments.append(f"iteration {number}")

    def stepped(self, number):
        self.moments.append(f"step {number}")

    def after(self):
        self.moments.append("after")

    def record(self):
        return self.moments


class Disturbing(Noted):
    """Does all that a probe must not do; the runner restores everything."""

    name = "disturbing"

    def before(self):
        for module in self.context.model.modules():
            module.training = not module.training
        for buffer in self.context.model.buffers():
            buffer.add_(1)
        torch.manual_seed(99)
        random.seed(99)
        torch.set_grad_enabled(True)


class Failing(Noted):
    name = "failing"

    def iteration(self, number, batch):
        if number == 1:
            raise RuntimeError("the model cannot do that\nand more")


class ProbeContext:
    def __init__(self):
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout())


def drive(runner, steps=2):
    runner.before()
    for i in range(steps):
        runner.iteration(i, None)
        runner.stepped(i)
    runner.after()
    return runner.measurements()


def test_every_moment_comes_in_its_order():
    measurements = drive(ProbeRunner(ProbeContext(), [Noted], 100))
    assert measurements == {"noted": ["before", "iteration 0", "step 0", "iteration 1", "step 1", "after"]}


def test_a_probe_that_is_idle_is_not_called():
    class Seldom(Noted):
        def idle(self, moment, number):
            return (moment, number) != ("stepped", 1)

    assert drive(ProbeRunner(ProbeContext(), [Seldom], 100)) == {"noted": ["before", "step 1", "after"]}


def test_what_a_probe_disturbs_is_restored():
    context = ProbeContext()
    context.model[1].eval()
    modes = [m.training for m in context.model.modules()]
    buffers = [b.clone() for b in context.model.buffers()]
    torch.manual_seed(5)
    state, python = torch.get_rng_state(), random.getstate()
    drive(ProbeRunner(context, [Disturbing], 100))
    assert [m.training for m in context.model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(context.model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python


def test_a_probe_that_raises_ends_alone_and_says_why():
    runner = ProbeRunner(ProbeContext(), [Failing, Noted], 100)
    measurements = drive(runner)
    assert list(measurements) == ["noted"]
    assert runner.skipped == {"failing": "it raised RuntimeError: the model cannot do that"}


def test_an_exception_without_a_message_is_named_by_its_type():
    class Wordless(Noted):
        name = "wordless"

        def before(self):
            raise AssertionError

    runner = ProbeRunner(ProbeContext(), [Wordless], 100)
    runner.before()
    assert runner.skipped == {"wordless": "it raised AssertionError"}


def test_an_interrupt_is_not_swallowed():
    class Interrupted(Noted):
        def before(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ProbeRunner(ProbeContext(), [Interrupted], 100).before()


def test_what_does_not_fit_into_the_budget_is_left_out_and_said():
    class Expensive(Noted):
        name = "expensive"

        def cost(self):
            return 1000.0

    runner = ProbeRunner(ProbeContext(), [Expensive, Noted], 15)
    assert list(drive(runner)) == ["noted"]
    assert "1,000 rows" in runner.skipped["expensive"]
    assert "probes=" in runner.skipped["expensive"]


def test_the_time_limit_leaves_out_what_comes_last():
    runner = ProbeRunner(ProbeContext(), [Noted], 100)
    runner.before()
    runner.after(lambda: True)
    assert runner.measurements() == {}
    assert "max_seconds" in runner.skipped["noted"]


def test_the_allowance_is_counted_in_work_not_in_seconds():
    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(8000, 8000)
    assert allowance(small, 16, 64, 20) > 1e5
    assert allowance(large, 16, 64, 20) < 2 * 16 * 20
    assert allowance(large, 16, 64, 40) > 1.5 * allowance(large, 16, 64, 20)


def test_outputs_are_work_too():
    head = torch.nn.Linear(10, 10)
    assert row_work(head, 64, 64 * 100_000) > 1000 * row_work(head, 64, 64)
    training = 3 * 16 * 20  # forward and backward
    assert allowance(head, 16, 64, 20, 64 * 100_000) < 0.75 * training


def test_the_width_of_a_batch():
    ids = torch.zeros(4, 7, dtype=torch.long)
    assert tokens_of({"input_ids": ids, "labels": torch.zeros(4, dtype=torch.long)}) == 7
    assert tokens_of(((ids, torch.ones(4)), torch.zeros(4))) == 7
    assert tokens_of((torch.zeros(4, 9), torch.zeros(4))) == 1


def test_rows_of_a_batch_are_taken_from_every_tensor_that_has_them():
    batch = ((torch.arange(6).reshape(3, 2), torch.tensor([1, 2, 3]), "text", torch.zeros(5)), torch.tensor([0, 1, 2]))
    (ids, lengths, text, other), labels = take_rows(batch, [2, 0])
    assert ids.tolist() == [[4, 5], [0, 1]]
    assert lengths.tolist() == [3, 1]
    assert labels.tolist() == [2, 0]
    assert text == "text"
    assert len(other) == 5


def test_probes_change_nothing_about_the_training():
    bare = finetune(tiny_distilbert, toy_batches(), lr=1e-3, steps=6, probes=[])
    full = finetune(tiny_distilbert, toy_batches(), lr=1e-3, steps=6, probes=probes.PROBES)
    assert full.losses == bare.losses
    assert [t.motion for t in full.tensors] == [t.motion for t in bare.tensors]
    assert [t.last for t in full.tensors] == [t.last for t in bare.tensors]


def test_every_default_probe_measures():
    trace = finetune(tiny_distilbert, toy_batches(), lr=1e-3, steps=6)
    # pretrained values are not declared, and there are no embeddings, no labels of tokens, no vocabulary, no answers, no other ranks
    other_tasks = {"pretrained", "embeddings", "token_labels", "lm_targets", "answer_spans", "ranks"}
    default = {kind.name for kind in probes.PROBE_CLASSES if kind.default}
    assert set(trace.not_applicable) == other_tasks
    assert set(trace.measurements) == default - other_tasks
    assert set(trace.skipped) == {kind.name for kind in probes.PROBE_CLASSES if not kind.default} | other_tasks


class Counting(torch.nn.Module):
    """Its output depends on how often it was called."""

    def __init__(self):
        super().__init__()
        self.calls, self.seen = 0, []
        self.body = torch.nn.Linear(4, 2)

    def forward(self, x):
        self.calls += 1
        self.seen.append(len(x))
        return self.body(x) * (1 + 0.01 * self.calls)


def test_what_a_model_counts_is_counted_in_training_only():
    g = torch.Generator().manual_seed(0)
    batches = [(x := torch.randn(8, 4, generator=g), (x[:, 0] > 0).long()) for _ in range(4)]
    calls = []

    def step(model, batch, optimizer, scheduler):
        calls.append(model.calls)
        loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    model = Counting()
    finetune(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), step=step, steps=6, head="body")
    assert calls == [0, 1, 2, 3, 4, 5]
    assert (model.calls, model.seen) == (0, [])
