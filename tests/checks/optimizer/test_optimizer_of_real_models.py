"""What the recorder notes of who steps what, and of what is written between steps, on small real models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import (
    Intent,
    check_frozen_stay_frozen,
    check_lr_follows_schedule,
    check_lr_sensible,
    check_optimizer_covers_model,
    check_optimizer_settings,
    check_weights_kept,
    check_weights_move,
    finetune,
    watch,
)
from pytest_ftcheck.core.trace import Trace


class Net(nn.Module):
    def __init__(self, inside=16):
        super().__init__()
        self.body = nn.Linear(6, inside)
        self.classifier = nn.Linear(inside, 2)

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def rows():
    torch.manual_seed(1)
    x = torch.randn(64, 6)
    y = (x[:, 0] > 0).long()
    return [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]


def adamw(model, **changes):
    return torch.optim.AdamW(model.parameters(), **{"lr": 1e-2, **changes})


def loop(model, optimizer, rows, *, steps=12, scheduler=None, before=None, after=None, tell=True, **watching):
    """A watched standard loop; ``before(i)`` and ``after(i)`` are called around each step."""
    with watch(model, optimizer, scheduler=scheduler, **watching) as w:
        for i in range(steps):
            x, y = rows[i % len(rows)]
            loss = F.cross_entropy(model(x), y)
            (w.loss(loss) if tell else loss).backward()
            if before:
                before(i)
            optimizer.step()
            if after:
                after(i)
            optimizer.zero_grad()
            if scheduler is not None and before is None:
                scheduler.step()
    return w.trace


def all_pass(trace, *besides):
    checks = (
        check_optimizer_covers_model,
        check_optimizer_settings,
        check_lr_follows_schedule,
        check_lr_sensible,
        check_weights_kept,
    )
    for check in checks:
        if check not in besides:
            assert check(trace).status in ("pass", "skipped"), str(check(trace))


def linear(optimizer, total=12):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: (total - i) / total)


@pytest.mark.trains
def test_a_standard_loop_is_healthy_and_its_trace_is_plain_data(model, rows):
    optimizer = adamw(model)
    trace = loop(model, optimizer, rows, scheduler=linear(optimizer))
    all_pass(trace)
    o = trace.optimizer
    assert (o.classes, o.rebuilt, o.state_steps, o.gradient_steps) == (("AdamW",), 0, 12, 12)
    assert (o.scheduler, o.scheduler_of_other_optimizer, o.scheduler_stepped_first) == ("LambdaLR", False, 0)
    assert all(s.by_watched_optimizer for s in trace.steps)
    assert o.groups[0].decoupled
    for t in trace.tensors:
        assert (t.entries, t.in_other_optimizer, t.orphaned) == (1, False, False)
        assert (t.motion.between_steps_writes, t.motion.resets) == (0, 0)
        assert t.motion.retained == pytest.approx(1.0, abs=1e-5)
    assert Trace.from_json(trace.to_json()) == trace


# ------------------------------------------------------------------ who holds what
@pytest.mark.trains
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_duplicates_are_counted_by_identity(model, rows):
    optimizer = torch.optim.AdamW([*model.parameters(), *model.classifier.parameters()], lr=1e-2)
    trace = loop(model, optimizer, rows)
    assert {t.name: t.entries for t in trace.tensors} == {
        "body.weight": 1,
        "body.bias": 1,
        "classifier.weight": 2,
        "classifier.bias": 2,
    }
    group = trace.optimizer.groups[0]
    assert (group.tensors, group.not_in_model, group.duplicates) == (4, 0, 2)
    assert check_optimizer_covers_model(trace).fault == "duplicated_parameters"


@pytest.mark.trains
def test_a_head_replaced_after_the_optimizer(model, rows):
    optimizer = adamw(model)
    model.classifier = nn.Linear(16, 2)
    trace = loop(model, optimizer, rows)
    assert check_optimizer_covers_model(trace).fault == "stale_optimizer"
    assert check_weights_move(trace).fault == "stale_optimizer"


@pytest.mark.trains
def test_a_model_copied_after_the_optimizer(model, rows):
    optimizer = adamw(model)
    model = copy.deepcopy(model)
    with watch(model, optimizer) as w:
        for x, y in rows:
            w.loss(F.cross_entropy(model(x), y)).backward()
            optimizer.step()
    verdict = check_optimizer_covers_model(w.trace)
    assert verdict.status == "fail"


@pytest.mark.trains
def test_a_head_made_anew_in_the_loop(model, rows):
    optimizer = adamw(model)

    def anew(i):
        if i == 5:
            model.classifier = nn.Linear(16, 2)

    trace = loop(model, optimizer, rows, after=anew)
    assert [t.orphaned for t in trace.tensors] == [False, False, True, True]
    assert check_optimizer_covers_model(trace).fault == "replaced_in_loop"


@pytest.mark.trains
def test_a_head_made_anew_and_handed_over_is_no_orphan(model, rows):
    optimizer = adamw(model)

    def anew(i):
        if i == 5:
            model.classifier = nn.Linear(16, 2)
            optimizer.add_param_group({"params": list(model.classifier.parameters())})

    trace = loop(model, optimizer, rows, after=anew)
    assert not any(t.orphaned for t in trace.tensors)


@pytest.mark.trains
def test_two_optimizers_on_the_head(model, rows):
    optimizer, second = adamw(model), torch.optim.SGD(model.classifier.parameters(), lr=1e-2)
    trace = loop(model, optimizer, rows, after=lambda i: second.step())
    assert [t.in_other_optimizer for t in trace.tensors] == [False, False, True, True]
    assert [s.by_watched_optimizer for s in trace.steps[:4]] == [True, False, True, False]
    assert trace.optimizer.rebuilt == 0
    assert check_optimizer_covers_model(trace).fault == "two_optimizers"


@pytest.mark.trains
def test_two_optimizers_for_two_parts_are_healthy(model, rows):
    optimizer = torch.optim.AdamW(model.body.parameters(), lr=1e-2)
    second = torch.optim.SGD(model.classifier.parameters(), lr=1e-1)
    all_pass(loop(model, optimizer, rows, after=lambda i: second.step()))


def step_with(make):
    """A loop body that makes its optimizer itself."""

    def step(model, batch, optimizer, scheduler):
        own = make(model)
        x, y = batch
        loss = F.cross_entropy(model(x), y)
        model.zero_grad()
        loss.backward()
        own.step()
        return loss

    return step


@pytest.mark.trains
def test_an_optimizer_built_at_every_step(model, rows):
    trace = finetune(model, rows, step=step_with(adamw), optimizer=adamw, steps=8, probes=[])
    assert trace.optimizer.rebuilt == 7
    assert check_optimizer_settings(trace).fault == "optimizer_rebuilt"


@pytest.mark.trains
def test_an_optimizer_built_for_a_second_phase_is_healthy(model, rows):
    kept = []

    def twice(model):
        if len(kept) in (0, 4):
            kept.append(torch.optim.AdamW(model.parameters() if kept else model.classifier.parameters(), lr=1e-2))
        else:
            kept.append(kept[-1])
        return kept[-1]

    trace = finetune(model, rows, step=step_with(twice), optimizer=adamw, steps=8, probes=[])
    assert trace.optimizer.rebuilt == 0


@pytest.mark.trains
@pytest.mark.parametrize("clear", ["before", "after"])
def test_a_state_that_is_cleared(model, rows, clear):
    optimizer = adamw(model)
    trace = loop(model, optimizer, rows, **{clear: lambda i: optimizer.state.clear()})
    assert trace.optimizer.gradient_steps == 12
    assert trace.optimizer.state_steps == (1 if clear == "before" else 0)
    assert check_optimizer_settings(trace).fault == "state_cleared"


@pytest.mark.trains
@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adafactor, torch.optim.LBFGS]
)
def test_optimizers_that_keep_other_counts_are_healthy(model, rows, kind):
    if kind is torch.optim.LBFGS:
        optimizer = kind(model.parameters(), lr=0.1)
        with watch(model, optimizer) as w:
            for x, y in rows:

                def closure(x=x, y=y):
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    return loss

                optimizer.step(closure)
        trace = w.trace
    else:
        trace = loop(model, kind(model.parameters(), lr=1e-2), rows)
    all_pass(trace)


@pytest.mark.trains
def test_a_resumed_optimizer_has_counted_more(model, rows):
    optimizer = adamw(model)
    loop(model, optimizer, rows)
    trace = loop(model, optimizer, rows, steps=5)
    assert (trace.optimizer.state_steps, trace.optimizer.gradient_steps) == (17, 5)
    all_pass(trace)


# ------------------------------------------------------------------ schedulers
@pytest.mark.trains
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("tell", [True, False])
def test_a_scheduler_stepped_before_the_optimizer(model, rows, tell):
    optimizer = adamw(model)
    scheduler = linear(optimizer)
    trace = loop(model, optimizer, rows, scheduler=scheduler, before=lambda i: scheduler.step(), tell=tell)
    assert trace.optimizer.scheduler_stepped_first == 12
    assert check_lr_follows_schedule(trace).fault == "scheduler_before_optimizer"


@pytest.mark.trains
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_first_step_that_a_scaler_skips_is_no_fault(model, rows):
    optimizer = adamw(model)
    scheduler = linear(optimizer)
    with watch(model, optimizer, scheduler=scheduler) as w:
        for i, (x, y) in enumerate([*rows, *rows]):
            w.loss(F.cross_entropy(model(x), y)).backward()
            if i:  # the first step overflows
                optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert w.trace.optimizer.scheduler_stepped_first == 0
    all_pass(w.trace)


@pytest.mark.trains
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_scheduler_of_another_optimizer(model, rows):
    first, second = adamw(model), adamw(model)
    trace = loop(model, second, rows, scheduler=linear(first))
    assert trace.optimizer.scheduler_of_other_optimizer
    assert check_lr_follows_schedule(trace).fault == "scheduler_on_another_optimizer"


@pytest.mark.trains
@pytest.mark.parametrize("ours", [True, False])
def test_finetune_hands_the_scheduler_on(model, rows, ours):
    def step(model, batch, optimizer, scheduler):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss

    trace = finetune(model, rows, optimizer=adamw, scheduler=linear, step=None if ours else step, steps=12, probes=[])
    assert (trace.optimizer.scheduler, trace.optimizer.scheduler_stepped_first) == ("LambdaLR", 0)
    intent = Intent(peak_lr=1e-2, schedule="linear", total_steps=12)
    assert check_lr_follows_schedule(trace).status == "pass"
    assert finetune(model, rows, steps=6, lr=1e-3, probes=[]).optimizer.scheduler_stepped_first == 0
    declared = finetune(model, rows, optimizer=adamw, scheduler=linear, step=step, steps=12, probes=[], intent=intent)
    assert check_lr_follows_schedule(declared).status == "pass"


# ------------------------------------------------------------------ writes between steps
@pytest.mark.trains
def test_a_running_average_copied_in(model, rows):
    shadow = {n: p.detach().clone() for n, p in model.named_parameters()}

    def copy_in(i):
        with torch.no_grad():
            for n, p in model.named_parameters():
                shadow[n].mul_(0.999).add_(p, alpha=0.001)
                p.copy_(shadow[n])

    trace = loop(model, adamw(model), rows, after=copy_in)
    assert {t.motion.resets for t in trace.tensors} == {11}  # what comes after the last step is not counted
    # of the last step nothing had been taken back yet
    assert all(t.motion.retained is not None and t.motion.retained < 0.2 for t in trace.tensors)
    assert check_weights_kept(trace).fault == "weights_overwritten"


@pytest.mark.trains
def test_a_head_initialised_at_each_epoch(rows):
    torch.manual_seed(0)
    model = Net(256)

    def again(i):
        if i % 4 == 3:
            nn.init.normal_(model.classifier.weight, std=0.02)

    trace = loop(model, adamw(model), rows, after=again, steps=15)
    assert [t.motion.resets for t in trace.tensors] == [0, 0, 3, 0]
    assert check_weights_kept(trace).fault == "weights_reset"


@pytest.mark.trains
def test_a_checkpoint_loaded_at_each_epoch(model, rows):
    saved = copy.deepcopy(model.state_dict())
    trace = loop(model, adamw(model), rows, after=lambda i: i % 4 == 3 and model.load_state_dict(saved), steps=15)
    assert {t.motion.resets for t in trace.tensors} == {3}
    assert check_weights_kept(trace).fault == "weights_reset"


def lookahead(model):
    slow = {n: p.detach().clone() for n, p in model.named_parameters()}

    def after(i):
        if i % 5 == 4:
            with torch.no_grad():
                for n, p in model.named_parameters():
                    slow[n].add_(p - slow[n], alpha=0.5)
                    p.copy_(slow[n])

    return after


def clamp(model):
    return lambda i: [p.data.clamp_(-0.3, 0.3) for p in model.parameters()]


def unit_rows(model):
    return lambda i: model.body.weight.data.copy_(F.normalize(model.body.weight.data, dim=1))


def tight_clamp(model):
    return lambda i: [p.data.clamp_(-0.1, 0.1) for p in model.parameters()]


def unit_classes(model):
    return lambda i: model.classifier.weight.data.copy_(F.normalize(model.classifier.weight.data, dim=1))


def max_norm(model):
    weights = (model.body.weight, model.classifier.weight)
    return lambda i: [w.data.copy_(w.data.renorm(2, 0, 0.3)) for w in weights]


def unit_columns(model):
    return lambda i: model.body.weight.data.copy_(F.normalize(model.body.weight.data, dim=0))


def noise(model):
    return lambda i: [p.data.add_(torch.randn_like(p), alpha=1e-3) for p in model.parameters()]


def mask(model):
    keep = torch.rand(model.body.weight.shape) < 0.1
    return lambda i: model.body.weight.data.mul_(keep)


def other_rows(model):
    was = model.body.weight.detach().clone()
    return lambda i: model.body.weight.data[:12].copy_(was[:12])


@pytest.mark.trains
@pytest.mark.parametrize("kind", [lookahead, clamp, unit_rows, noise, mask, other_rows])
def test_legitimate_writes(model, rows, kind):
    trace = loop(model, adamw(model), rows, after=kind(model), steps=24)
    assert any(t.motion.between_steps_writes for t in trace.tensors)
    verdict = check_weights_kept(trace)
    assert verdict.status == "pass", str(verdict)


@pytest.mark.trains
@pytest.mark.parametrize("kind", [tight_clamp, unit_classes, max_norm, unit_columns])
def test_a_constraint_on_the_weights_resets_nothing(model, rows, kind):
    trace = loop(model, adamw(model, lr=3e-2), rows, after=kind(model), steps=24)
    written = [t for t in trace.tensors if t.motion.between_steps_writes and len(t.shape) > 1]
    assert all(t.motion.projections >= t.motion.between_steps_writes - 1 for t in written)  # the first may go farther
    assert max(t.motion.resets for t in written) <= 1
    verdict = check_weights_kept(trace)
    assert verdict.status in ("pass", "advice"), str(verdict)


@pytest.mark.trains
def test_the_best_checkpoint_loaded_at_the_end(model, rows):
    saved = copy.deepcopy(model.state_dict())
    trace = loop(model, adamw(model), rows, after=lambda i: i == 11 and model.load_state_dict(saved))
    assert {t.motion.between_steps_writes for t in trace.tensors} == {0}
    verdict = check_weights_kept(trace)
    assert verdict.status == "pass"
    assert "after the last step" in verdict.notes[0]


# ------------------------------------------------------------------ frozen
@pytest.mark.trains
def test_declared_frozen_and_trained(model, rows):
    trace = loop(model, adamw(model), rows, intent=Intent(trained="", frozen="body"))
    verdict = check_frozen_stay_frozen(trace)
    assert verdict.fault == "not_frozen"
    assert "2 of 2 parameters" in verdict.headline
    model.body.requires_grad_(False)
    trace = loop(model, adamw(model), rows, intent=Intent(trained="", frozen="body"))
    assert check_frozen_stay_frozen(trace).status == "pass"
    all_pass(trace)


@pytest.mark.trains
def test_evaluate_that_freezes_through_train_leaves_the_run_as_it_is(rows):
    class Staged(Net):
        def train(self, mode=True):
            super().train(mode)
            if mode:
                self.body.requires_grad_(False)
            return self

    def evaluate(model):
        model.eval()
        model.train()
        return 1.0

    def step(model, batch, optimizer, scheduler):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    model = Staged()
    trace = finetune(
        model, rows, optimizer=adamw, step=step, evaluate=evaluate, steps=5, probes=[], intent=Intent(frozen="body")
    )
    assert check_frozen_stay_frozen(trace).fault == "not_frozen"
    assert all(p.requires_grad for p in model.parameters())


# ---------------------------------------------------------------------------------------- a head of which a part is frozen
def head_of_two(model, rows, how, intent=None):
    """A run of the model by `finetune`, by a step of one's own, or watched."""

    def step(model, batch, optimizer, scheduler=None):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    if how != "watch":
        return finetune(
            model, rows, steps=4, probes=["loss"], intent=intent, **({"step": step} if how == "step" else {})
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, optimizer, intent=intent) as w:
        for batch in rows[:4]:
            w.loss(step(model, batch, optimizer))
    return w.trace


@pytest.mark.trains
@pytest.mark.parametrize("how", ["finetune", "step", "watch"])
def test_a_prefix_that_unfreezes_too_little_is_said(model, rows, how):
    model.classifier = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
    model.requires_grad_(False)
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("classifier.2"))
    verdict = check_optimizer_covers_model(head_of_two(model, rows, how))
    assert (verdict.status, verdict.fault) == ("advice", "head_partly_frozen")
    assert "classifier.0.weight, classifier.0.bias" in verdict.headline
    assert "Intent(frozen=['classifier.0'])" in verdict.remedy
    for intent in (Intent(frozen=["body", "classifier.0"]), Intent(trained="classifier.2")):
        assert check_optimizer_covers_model(head_of_two(model, rows, how, intent)).status == "pass"
    model.classifier.requires_grad_(True)
    assert check_optimizer_covers_model(head_of_two(model, rows, how)).status == "pass"
    model.classifier.requires_grad_(False)
    model.body.requires_grad_(True)
    assert check_optimizer_covers_model(head_of_two(model, rows, how)).status == "pass"
