"""``watch(model)``: whatever trains the model, its optimizers are adopted, its losses seen, and no bit of the training changes."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import optimizer as optim_module

from pytest_ftcheck import check_optimizer_covers_model, check_weights_move, diagnose, finetune, watch
from pytest_ftcheck.checks.loop.record import LoopCalls
from pytest_ftcheck.checks.mode.record import Modes
from pytest_ftcheck.instruments import loop_calls
from pytest_ftcheck.integrations.framework_loop import StartedLoop

watch_module = importlib.import_module("pytest_ftcheck.training.watch")


class Net(nn.Module):
    def __init__(self, inside=8):
        super().__init__()
        self.body = nn.Linear(6, inside)
        self.drop = nn.Dropout(0.2)
        self.classifier = nn.Linear(inside, 2)

    def forward(self, x):
        return self.classifier(self.drop(torch.relu(self.body(x))))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


def adamw(model, lr=1e-2):
    return torch.optim.AdamW(model.parameters(), lr=lr)


def plain(call, model, rows):
    optimizer = adamw(model)
    for x, y in rows:
        optimizer.zero_grad()
        F.cross_entropy(call(x), y).backward()
        optimizer.step()


def accumulating(call, model, rows):
    optimizer = adamw(model)
    for i, (x, y) in enumerate(rows):
        (F.cross_entropy(call(x), y) / 2).backward()
        if i % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()


def two_optimizers(call, model, rows):
    body, head = torch.optim.SGD(model.body.parameters(), lr=0.1, momentum=0.9, dampening=0.5), adamw(model.classifier)
    for x, y in rows:
        body.zero_grad(), head.zero_grad()
        F.cross_entropy(call(x), y).backward()
        body.step(), head.step()


def one_optimizer_a_parameter(call, model, rows):
    optimizers = [torch.optim.AdamW([p], lr=1e-2) for p in model.parameters()]
    for x, y in rows:
        F.cross_entropy(call(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def scaled(call, model, rows):
    optimizer, scaler = adamw(model), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for x, y in rows:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(call(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


def scaled_and_fused(call, model, rows):
    """The optimizer divides by the factor itself."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for x, y in rows:
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(call(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()


def with_lbfgs(call, model, rows):
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.05, max_iter=4)
    for x, y in rows:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(call(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def schedule_free(call, model, rows):
    schedulefree = pytest.importorskip("schedulefree")
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-2, warmup_steps=2)
    optimizer.train()
    for i, (x, y) in enumerate(rows):
        optimizer.zero_grad()
        F.cross_entropy(call(x), y).backward()
        optimizer.step()
        if i % 3 == 0:  # an evaluation
            optimizer.eval()
            optimizer.train()


def schedule_free_wrapper(call, model, rows):
    schedulefree = pytest.importorskip("schedulefree")
    optimizer = schedulefree.ScheduleFreeWrapper(torch.optim.SGD(model.parameters(), lr=0.1), momentum=0.9)
    optimizer.train()
    for x, y in rows:
        optimizer.zero_grad()
        F.cross_entropy(call(x), y).backward()
        optimizer.step()
    optimizer.eval()


def by_autograd(call, model, rows):
    optimizer = adamw(model)
    for x, y in rows:
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(call(x), y))
        optimizer.step()


LOOPS = [
    plain,
    accumulating,
    two_optimizers,
    one_optimizer_a_parameter,
    scaled,
    scaled_and_fused,
    with_lbfgs,
    schedule_free,
    schedule_free_wrapper,
    by_autograd,
]


# ------------------------------------------------------------------ every kind of loop
@pytest.mark.parametrize("with_batch", [False, True])
@pytest.mark.parametrize("loop", LOOPS)
def test_no_bit_of_the_training_changes(loop, with_batch, model, rows):
    alone = copy.deepcopy(model)
    torch.manual_seed(1)
    loop(alone, alone, rows)
    after = torch.rand(3)
    torch.manual_seed(1)
    with watch(model, probe_batch=rows[0] if with_batch else None):
        loop(model, model, rows)
    assert torch.equal(torch.rand(3), after)
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("loop", LOOPS)
def test_a_healthy_loop_is_silent(loop, model, rows):
    torch.manual_seed(1)
    with watch(model, probe_batch=rows[0]) as w:
        loop(model, model, rows * 4)
    assert [c.fault for c in diagnose(w.trace).causes] == []
    assert check_optimizer_covers_model(w.trace).status == "pass"
    assert check_weights_move(w.trace).status == "pass"


@pytest.mark.parametrize("loop", [plain, by_autograd, scaled, scaled_and_fused, with_lbfgs, two_optimizers])
def test_the_losses_are_those_that_backward_is_called_on(loop, rows):
    """One of each iteration, also of a closure that is called several times, and without a GradScaler's factor."""
    torch.manual_seed(0)
    model = Net()
    model.drop.p = 0.0
    with watch(model) as w:
        loop(model, model, rows)
    assert len(w.trace.losses) == len(rows)
    assert 0.5 < w.trace.losses[0] < 1.0
    assert max(w.trace.losses) < 2.0
    assert 0 < max(s.grad_norm for s in w.trace.steps) < 5
    assert {s.iteration for s in w.trace.steps} == set(range(len(rows)))


def test_schedule_free_weights_are_evaluated_as_their_optimizer_asks(model, rows):
    """The average is evaluated; then the weights to train are there again, bit for bit."""
    schedulefree = pytest.importorskip("schedulefree")
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=5e-2)
    with watch(model, optimizer, probe_batch=rows[0]) as w:
        optimizer.train()
        for x, y in rows:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        trained = copy.deepcopy(model.state_dict())
        states = {p: set(s) for p, s in optimizer.state.items()}
    assert all(torch.equal(v, trained[n]) for n, v in model.state_dict().items())
    assert optimizer.param_groups[0]["train_mode"]
    assert {p: set(s) for p, s in optimizer.state.items()} == states
    model.eval()
    of_trained = float(F.cross_entropy(model(rows[0][0]), rows[0][1]))
    optimizer.eval()
    averaged = float(F.cross_entropy(model(rows[0][0]), rows[0][1]))
    assert w.trace.probe_loss.points[-1].loss == pytest.approx(averaged, rel=1e-5)
    assert abs(averaged - of_trained) > 1e-4


def hooks_and_modes():
    return (
        len(optim_module._global_optimizer_pre_hooks),
        len(optim_module._global_optimizer_post_hooks),
        torch._C._len_torch_function_stack(),
        loop_calls._calls,
    )


# ------------------------------------------------------------------ optimizers
def test_an_optimizer_is_adopted_at_its_first_step(model, rows):
    """The record is the one of an optimizer that was given."""
    other = copy.deepcopy(model)
    given = adamw(other)
    torch.manual_seed(1)
    with watch(model) as adopted:
        plain(model, model, rows)
    torch.manual_seed(1)
    with watch(other, given) as w:
        for x, y in rows:
            given.zero_grad()
            F.cross_entropy(other(x), y).backward()
            given.step()
    assert adopted.trace.optimizer == w.trace.optimizer
    assert adopted.trace.steps == w.trace.steps
    assert adopted.trace.tensors == w.trace.tensors


@pytest.mark.parametrize("given", [False, True])
def test_two_optimizers_are_read_as_one_with_the_groups_of_both(given, model, rows):
    body, head = torch.optim.SGD(model.body.parameters(), lr=0.1), adamw(model.classifier)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with watch(model, [body, head] if given else None) as w:
        for x, y in rows[:3]:
            body.zero_grad(), head.zero_grad()
            F.cross_entropy(model(x), y).backward()
            body.step(), head.step()
    o = w.trace.optimizer
    assert (o.name, o.family, o.other_optimizer_steps, o.rebuilt) == ("SGD and AdamW", "other", 0, 0)
    assert [(g.index, g.tensors, g.lr_peak, g.lr_sum) for g in o.groups] == [
        (0, 2, 0.1, pytest.approx(0.3)),
        (1, 2, 0.01, pytest.approx(0.03)),
    ]
    assert w.trace.steps[-1].lrs == (0.1, 0.01)
    assert all(s.by_watched_optimizer for s in w.trace.steps)
    for name, group, budget in (("body.weight", 0, 0.3), ("classifier.weight", 1, 0.03)):
        t = w.trace.tensor(name)
        assert (t.group, t.first_step, t.in_other_optimizer) == (group, 0, False)
        assert (t.gradients.steps, t.gradients.none) == (3, 0)
        assert t.lr_sum == pytest.approx(budget)
        moved = dict(model.named_parameters())[name].detach() - before[name]
        assert t.motion.rms == pytest.approx(float(moved.double().square().mean().sqrt()), rel=1e-5)


def test_a_group_that_is_added_to_the_first_of_two_optimizers_moves_the_numbers_of_the_second(model, rows):
    body, head = torch.optim.SGD([model.body.weight], lr=0.1), adamw(model.classifier)
    with watch(model, [body, head]) as w:
        for i, (x, y) in enumerate(rows[:4]):
            if i == 2:
                body.add_param_group({"params": [model.body.bias], "lr": 0.5})
            F.cross_entropy(model(x), y).backward()
            body.step(), head.step()
    assert [t.group for t in w.trace.tensors] == [0, 1, 2, 2]
    assert [g.lr_sum for g in w.trace.optimizer.groups] == pytest.approx([0.4, 1.0, 0.04])


def test_an_optimizer_that_replaces_the_adopted_one_is_another_one(model, rows):
    with watch(model) as w:
        for x, y in rows:
            optimizer = adamw(model)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert w.trace.optimizer.rebuilt == len(rows) - 1
    assert w.trace.optimizer.other_optimizer_steps == len(rows) - 1
    assert "optimizer_rebuilt" in {c.fault for c in diagnose(w.trace).causes}


def test_a_head_in_no_optimizer_is_found_without_the_optimizer(model, rows):
    optimizer = torch.optim.AdamW(model.body.parameters(), lr=1e-2)
    with watch(model) as w:
        for x, y in rows:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert [c.fault for c in diagnose(w.trace).causes] == ["not_in_optimizer"]


def test_a_scheduler_of_one_of_two_optimizers(model, rows):
    """It steps before the other optimizer does, which is no fault."""
    body, head = torch.optim.SGD(model.body.parameters(), lr=0.1), adamw(model.classifier)
    scheduler = torch.optim.lr_scheduler.LinearLR(body, 1.0, 0.1, 8)
    with watch(model, [body, head], scheduler=scheduler) as w:
        for x, y in rows:
            F.cross_entropy(model(x), y).backward()
            body.step(), scheduler.step(), head.step()
            model.zero_grad()
    o = w.trace.optimizer
    assert (o.scheduler, o.scheduler_of_other_optimizer, o.scheduler_stepped_first) == ("LinearLR", False, 0)


def test_no_optimizer_ever_steps(model, rows):
    with watch(model, probe_batch=rows[0]) as w:
        for x, y in rows:
            F.cross_entropy(model(x), y).backward()
    assert w.trace.optimizer.groups == ()
    assert [c.fault for c in diagnose(w.trace).causes] == ["no_step_taken"]
    assert "No optimizer step was taken in 8 iterations" in check_weights_move(w.trace).headline


def test_an_optimizer_that_was_built_for_a_copy_of_the_model_is_named(model, rows):
    optimizer = adamw(copy.deepcopy(model))
    with watch(model) as w:
        for x, y in rows:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert w.trace.optimizer.name == "AdamW"
    assert [c.fault for c in diagnose(w.trace).causes] == ["stale_optimizer"]


def test_tensors_outside_the_model_are_noted(model, rows):
    temperature = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.AdamW([*model.parameters(), temperature], lr=1e-2)
    with watch(model, probe_batch=rows[0]) as w:
        for x, y in rows * 3:
            optimizer.zero_grad()
            F.cross_entropy(model(x) * temperature, y).backward()
            optimizer.step()
    assert any("1 tensor that is not in the model" in note for note in w.trace.notes)
    assert diagnose(w.trace).causes == ()


@pytest.mark.parametrize(
    ("optimizer", "error", "text"),
    [
        (3, TypeError, "optimizer is an int: expected a torch.optim.Optimizer, or a list of them"),
        ([None], TypeError, r"optimizer\[0\] is a NoneType"),
    ],
)
def test_what_is_no_optimizer(optimizer, error, text, model):
    with pytest.raises(error, match=text):
        watch(model, optimizer)


def test_the_same_optimizer_twice(model):
    optimizer = adamw(model)
    with pytest.raises(ValueError, match="the same optimizer is given twice"):
        watch(model, [optimizer, optimizer])


# ------------------------------------------------------------------ losses
def losses_of(model, rows, body):
    model.drop.p = 0.0
    optimizer = adamw(model)
    expected = []
    with watch(model, optimizer) as w:
        for x, y in rows:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            expected.append(float(loss.detach()))
            body(w, loss, optimizer)
    return w.trace, expected


def told_before(w, loss, optimizer):
    w.loss(loss).backward()
    optimizer.step()


def told_divided(w, loss, optimizer):
    (w.loss(loss) / 2).backward()
    optimizer.step()


def told_after(w, loss, optimizer):
    loss.backward()
    optimizer.step()
    w.loss(loss.detach())


def told_as_a_number_after_two_backwards(w, loss, optimizer):
    (loss / 2).backward(retain_graph=True)
    (loss / 2).backward()
    optimizer.step()
    w.loss(loss.item())


def told_beside_another_backward(w, loss, optimizer):
    w.loss(loss).backward(retain_graph=True)
    (0.01 * loss).backward()
    optimizer.step()


def never_told(w, loss, optimizer):
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize(
    "body",
    [
        told_before,
        told_divided,
        told_after,
        told_as_a_number_after_two_backwards,
        told_beside_another_backward,
        never_told,
    ],
)
def test_each_loss_counts_once(body, model, rows):
    trace, expected = losses_of(model, rows, body)
    assert trace.losses == pytest.approx(expected)
    assert [s.iteration for s in trace.steps] == list(range(len(rows)))
    assert [i.steps for i in trace.iterations] == [1] * len(rows)


def test_a_scaled_loss_that_is_told_is_recorded_as_told(model, rows):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    def body(w, loss, optimizer):
        scaler.scale(w.loss(loss)).backward()
        scaler.step(optimizer)
        scaler.update()

    trace, expected = losses_of(model, rows, body)
    assert trace.losses == pytest.approx(expected)


def test_a_factor_of_the_users_own_is_no_scale(model, rows):
    """A weight that is a tensor stays in the loss, with a GradScaler around it and without."""
    scaler, weight = torch.amp.GradScaler("cpu", init_scale=2.0**8), torch.tensor(3.0)

    def both(w, loss, optimizer):
        scaler.scale(loss * weight).backward()
        scaler.step(optimizer)
        scaler.update()

    def alone(w, loss, optimizer):
        (loss * weight).backward()
        optimizer.step()

    for body in (both, alone):
        trace, expected = losses_of(copy.deepcopy(model), rows, body)
        assert trace.losses == pytest.approx([3 * e for e in expected])


def test_several_losses_in_one_call_of_backward_are_summed(model, rows):
    def body(w, loss, optimizer):
        torch.autograd.backward([loss, 2 * loss])
        optimizer.step()

    trace, expected = losses_of(model, rows, body)
    assert trace.losses == pytest.approx([3 * e for e in expected])


def test_a_gradient_that_is_no_losss_is_no_iteration(model, rows):
    """A penalty takes gradients of the outputs with autograd.grad."""

    def body(w, loss, optimizer):
        (gradient,) = torch.autograd.grad(loss, [model.classifier.weight], create_graph=True)
        (loss + 0.0 * gradient.square().sum()).backward()
        optimizer.step()

    trace, expected = losses_of(model, rows, body)
    assert trace.losses == pytest.approx(expected)


def test_a_loss_without_a_graph(model, rows):
    with pytest.raises(RuntimeError, match="does not require grad"), watch(model) as w:
        F.cross_entropy(model(rows[0][0]).detach(), rows[0][1]).backward()
    assert w.trace.backward_error == "the loss has no graph"
    assert [c.fault for c in diagnose(w.trace).causes] == ["loss_cut_off"]


# ------------------------------------------------------------------ wrapped and compiled
class Parallel(nn.DataParallel):
    """Somebody's subclass."""


@pytest.mark.parametrize("wrap", [nn.DataParallel, Parallel, lambda m: torch.compile(m, backend="eager")])
def test_wrappers_leave_no_trace_in_the_names(wrap, model, rows):
    wrapped = wrap(model)
    with watch(wrapped, probe_batch=rows[0], head="module.classifier" if wrap is Parallel else None) as w:
        plain(wrapped, wrapped, rows * 3)
    assert [t.name for t in w.trace.tensors] == [n for n, _ in model.named_parameters()]
    assert w.trace.head == ("classifier",)
    assert diagnose(w.trace).causes == ()
    assert "reference" not in w.trace.skipped


@pytest.mark.parametrize("inside", [True, False])
def test_a_compiled_model_is_compiled_once_and_trains_the_same(inside, rows):
    """The graph is the one of the unwatched training: nothing of ours is in it, and no graph is broken."""
    from torch._dynamo.utils import counters

    def run(watched):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        model = Net()
        compiled = torch.compile(model, backend="aot_eager")
        torch.manual_seed(1)
        if watched:
            with watch(compiled if inside else model, probe_batch=rows[0]) as w:
                plain(compiled, model, rows)
            assert len(w.trace.losses) == len(rows)
            assert w.trace.measured(LoopCalls).outputs > 0
        else:
            plain(compiled, model, rows)
        return [p.detach().tolist() for p in model.parameters()], dict(counters["stats"]), dict(counters["graph_break"])

    assert run(True) == run(False)


def test_a_compiled_step_of_the_optimizer_is_recorded(model, rows):
    alone = copy.deepcopy(model)

    def loop(model):
        torch._dynamo.reset()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = torch.compile(optimizer.step, backend="eager")
        for x, y in rows[:4]:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            step()

    torch.manual_seed(1)
    with watch(model) as w:
        loop(model)
    torch.manual_seed(1)
    loop(alone)
    assert len(w.trace.steps) == 4
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), alone.parameters(), strict=True))


# ------------------------------------------------------------------ ends
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_crash_in_the_training_leaves_nothing_behind(error, model, rows):
    before = hooks_and_modes()

    def crash():
        with watch(model, probe_batch=rows[0]):
            plain(model, model, rows[:2])
            raise error("in the training")

    with pytest.raises(error) as info:
        crash()
    assert hooks_and_modes() == before
    assert not model._forward_hooks
    assert len(info.value.ftcheck_trace.steps) == 2
    plain(model, model, rows)


@pytest.mark.parametrize("where", ["LossTracker", "ProbeRunner.before", "Recorder.attach", "ProbeRunner.loop_begins"])
def test_an_interrupt_while_the_block_begins_leaves_nothing_behind(where, model, rows, monkeypatch):
    from pytest_ftcheck.training import watched_loop

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    owner, _, method = where.partition(".")
    if method:
        whole = getattr(watched_loop, owner)
        real = getattr(whole, method)

        def late(self):
            real(self)
            raise KeyboardInterrupt

        monkeypatch.setattr(whole, method, late)
    else:
        monkeypatch.setattr(watched_loop, owner, interrupt)
    before = hooks_and_modes()
    weights = copy.deepcopy(model.state_dict())
    w = watch(model, probe_batch=rows[0])
    with pytest.raises(KeyboardInterrupt):
        w.__enter__()
    assert hooks_and_modes() == before
    assert not model._forward_hooks
    assert not any(p._backward_hooks for p in model.parameters())
    assert all(torch.equal(v, weights[n]) for n, v in model.state_dict().items())


def test_a_mode_of_the_users_that_outlives_the_block_stays(model, rows):
    from torch.overrides import TorchFunctionMode

    class Mine(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    mine, w = Mine(), watch(model)
    w.__enter__()
    with mine:
        plain(model, model, rows[:2])
        w.__exit__(None, None, None)
        mine.calls = 0
        torch.ones(2) + 1
        assert mine.calls > 0
    assert len(w.trace.losses) == 2
    assert torch._C._len_torch_function_stack() == 0


# ------------------------------------------------------------------ a framework's object
class Framework:
    """A framework, and its adapter at once."""

    def __init__(self, model, rows):
        self.model, self.rows, self.listener, self.attached = model, rows, None, 0

    def attach(self, listener):
        self.listener = listener
        self.attached += 1

    def detach(self):
        self.attached = 0

    def fit(self, error=None):
        optimizer = adamw(self.model)
        self.listener.training_begins(StartedLoop(self.model, [optimizer], probe_batch=self.rows[0], notes=("a note",)))
        for x, y in self.rows:
            optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            optimizer.step()
        if error is not None:
            raise error
        self.listener.training_ends()
        self.listener.training_ends()
        nn.init.zeros_(self.model.classifier.weight)  # other weights are loaded


@pytest.fixture
def framework(model, rows, monkeypatch):
    monkeypatch.setattr(watch_module, "find_adapter", lambda subject, module: subject)
    return Framework(model, rows)


def test_a_frameworks_training_is_watched_from_its_begin_to_its_end(framework, rows):
    before = hooks_and_modes()
    with watch(framework) as w:
        framework.fit()
        steps = len(w.trace.steps)
        framework.fit()  # one block watches one training
    assert steps == len(w.trace.steps) == len(rows)
    assert w.trace.notes[0] == "a note"
    assert len(w.trace.probe_loss.points) == 2
    assert w.trace.tensor("classifier.weight").motion.between_steps == 0
    assert hooks_and_modes() == before
    assert not framework.attached


def test_what_the_user_gives_goes_before_what_the_framework_says(framework, rows):
    with watch(framework, probe_batch=rows[1], loss_fn=lambda m, b: 2 * F.cross_entropy(m(b[0]), b[1])) as w:
        framework.fit()
    assert w.trace.reading.loss != "cross-entropy of the logits"


def test_a_frameworks_training_that_crashes_leaves_nothing_behind(framework, rows):
    before = hooks_and_modes()
    error = RuntimeError("in the training")
    with pytest.raises(RuntimeError, match="in the training"), watch(framework) as w:
        framework.fit(error)
    assert w.trace is error.ftcheck_trace
    assert "in the training" in w.trace.stopped
    assert hooks_and_modes() == before
    assert not framework.attached


def test_an_interrupt_while_the_adapter_attaches_detaches_it(framework, monkeypatch):
    def attach(listener):
        framework.attached = 1
        raise KeyboardInterrupt

    monkeypatch.setattr(framework, "attach", attach)
    with pytest.raises(KeyboardInterrupt):
        watch(framework).__enter__()
    assert not framework.attached


def test_a_training_that_never_began(framework):
    with watch(framework) as w, pytest.raises(RuntimeError, match="ready after the with block"):
        _ = w.trace
    with pytest.raises(RuntimeError, match="no training of the Framework began inside the with block"):
        _ = w.trace
    with pytest.raises(RuntimeError, match="used already"):
        w.__enter__()


def test_what_nobody_can_watch(model):
    with pytest.raises(TypeError, match=r"the first argument is an int: expected a torch.nn.Module"):
        watch(3)
    with pytest.raises(TypeError, match="module is given, but the first argument"):
        watch(model, module=model)


def by_per_sample_gradients(model, batch, optimizer, scheduler):
    """As DP-SGD: a gradient a row, by ``torch.func``."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, x, y):
        return F.cross_entropy(torch.func.functional_call(model, weights, (x[None],)), y[None])

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="different")(weights, *batch)
    for name, p in model.named_parameters():
        p.grad = gradients[name].mean(0)
    optimizer.step()


def by_inner_step(model, batch):
    """As MAML: the loss after a step on half of the rows."""
    weights, (x, y) = dict(model.named_parameters()), batch

    def loss(weights, rows):
        return F.cross_entropy(torch.func.functional_call(model, weights, (x[rows],)), y[rows])

    inner = torch.func.grad(loss)(weights, slice(0, None, 2))
    return loss({name: p - 0.1 * inner[name] for name, p in weights.items()}, slice(1, None, 2))


def by_row(model, batch):
    """The model is called with one row of each batch at a time, by ``vmap``."""
    return F.cross_entropy(torch.func.vmap(model, randomness="different")(batch[0][:, None])[:, 0], batch[1])


def by_tangent(model, batch):
    """A penalty on the change along a direction, by ``jvp``."""
    x, y = batch
    logits, tangent = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    return F.cross_entropy(logits, y) + 1e-3 * tangent.square().mean()


@pytest.mark.parametrize("loss_fn", [by_inner_step, by_row, by_tangent])
def test_a_loss_inside_a_transform_trains_the_same(loss_fn, model, rows):
    def loop(model):
        torch.manual_seed(1)
        optimizer = adamw(model)
        for batch in rows:
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()

    other = copy.deepcopy(model)
    loop(other)
    with watch(model, loss_fn=loss_fn, probe_batch=rows[0]) as w:
        loop(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert not diagnose(w.trace).having("fail")


@pytest.mark.parametrize("loss_fn", [by_inner_step, by_row, by_tangent, None])
def test_a_step_inside_a_transform_is_observed_where_it_can_be(loss_fn, model, rows):
    kind = {"step": by_per_sample_gradients} if loss_fn is None else {"loss_fn": loss_fn}
    trace = finetune(model, list(rows), optimizer=adamw(model), steps=8, probes=("modes", "loss_scale", "loop"), **kind)
    assert len(trace.steps) == 8
    assert not diagnose(trace).having("fail")
    assert trace.measured(Modes).inputs_used == ()  # of the inner step's two calls one is not read
