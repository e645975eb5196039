"""What is the user's is as before afterwards: after success, after an exception, after Ctrl-C, whatever the caller's modes."""
# ruff: noqa: NPY002  (the legacy global state is what must be left alone)

from __future__ import annotations

import copy
import random
import warnings

import numpy
import pytest
import torch
from special_tensors import add_tables
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from pytest_ftcheck import Trace, check_init, extract_features, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.instruments.undo import NotRestored, Undo


class Boom(Exception):
    """The user's own."""


class Rich(nn.Module):
    """A model with everything that can be disturbed, and tables whose memory is not its own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.frozen = nn.Linear(8, 8)
        self.frozen.requires_grad_(False)
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Linear(8, 2)
        self.calls = 0
        self.history = ["made"]
        self.best = {"loss": 9.0}
        self.seen = {1}
        self.fail_at = None
        self.error = Boom("in the model")
        add_tables(self)

    def forward(self, x):
        self.calls += 1
        self.history.append(self.calls)
        self.best[self.calls] = float(x.detach().mean())
        self.seen.add(self.calls)
        self.new = "attribute"
        if self.training and self.norm.num_batches_tracked == self.fail_at:
            raise self.error
        return self.classifier(self.drop(self.frozen(torch.relu(self.norm(self.body(x))))))


@pytest.fixture
def model(rows):
    """In a mode and with gradients of its own."""
    torch.manual_seed(1)
    model = Rich()
    model(rows[0][0]).sum().backward()
    model.drop.eval()
    model.frozen.eval()
    del model.new
    model.register_forward_hook(lambda *a: None)
    model.classifier.weight.register_hook(lambda g: g)
    return model


def bits(value):
    """Whatever can be compared, deeply, as plain data; tensors by content."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.detach().reshape(-1).tolist())
    if isinstance(value, dict):
        return {k if isinstance(k, (str, int)) else id(k): bits(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, set, type(None))) else id(value)


def state_of(model):
    """Everything of a module that can be seen from outside."""
    return {
        "parameters": {n: (id(p), bits(p), p.requires_grad, p.data_ptr()) for n, p in model.named_parameters()},
        "gradients": {n: (id(p.grad), bits(p.grad)) for n, p in model.named_parameters()},
        "buffers": {n: (id(b), bits(b), b.data_ptr()) for n, b in model.named_buffers()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "attributes": {
            n: copy.deepcopy({k: bits(v) for k, v in vars(m).items() if not k.startswith("_")})
            for n, m in model.named_modules()
        },
        "hooks": {
            n: {k: list(v) for k, v in vars(m).items() if k.endswith("_hooks")} for n, m in model.named_modules()
        },
    }


def unchanged(model, before):
    after = state_of(model)
    for key in before:
        assert after[key] == before[key], key


# ------------------------------------------------------------------ the model
def test_a_model_is_as_before_after_a_run(model, rows):
    before = state_of(model)
    trace = finetune(model, rows, steps=4, lr=1e-2)
    assert trace.tensor("classifier.weight").motion.share_changed == 1
    assert not next(b for b in trace.buffers if b.name == "norm.running_mean").unchanged
    unchanged(model, before)
    assert not hasattr(model, "new")


def test_a_model_is_as_before_with_a_step_of_ones_own(model, rows):
    def step(model, batch, optimizer, scheduler):
        model.train()
        model.frozen.requires_grad_(True)
        model.classifier.weight.grad.add_(1)  # the old gradient itself, not a new one
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        model.extra = nn.Linear(2, 2)
        model.register_forward_pre_hook(lambda *a: None)
        return

    before = state_of(model)
    trace = finetune(model, rows, step=step, steps=3)
    assert len(trace.steps) == 3
    unchanged(model, before)
    assert not hasattr(model, "extra")


def test_a_replaced_layer_comes_back(model, rows):
    layer = model.classifier

    def step(model, batch, optimizer, scheduler):
        model.classifier = nn.Linear(8, 2)
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    before = state_of(model)
    trace = finetune(model, rows, step=step, steps=1)
    assert trace.tensor("classifier.weight").replaced
    assert model.classifier is layer
    unchanged(model, before)


def test_dtype_and_device_are_undone(model, rows):
    before = state_of(model)
    trace = finetune(model, [(x.double(), y) for x, y in rows], steps=2, lr=1e-2, dtype="float64", device="cpu")
    assert trace.environment["dtype"] == "float64"
    unchanged(model, before)


def test_an_untrained_model_without_gradients_gets_none(rows):
    model = Rich()
    finetune(model, rows, steps=2)
    assert all(p.grad is None for p in model.parameters())


def test_problem_type_of_a_config_is_as_before():
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=200, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    model = DistilBertForSequenceClassification(config)
    assert model.config.problem_type is None
    batches = [{"input_ids": ids, "attention_mask": mask, "labels": y} for (ids, _, mask), y in toy_batches(2, 4)]
    before = copy.deepcopy(vars(model.config))
    finetune(model, batches, steps=2)
    assert vars(model.config) == before
    # ... so the same model may then be judged on another task
    floats = [{**b, "labels": torch.eye(2)[b["labels"]]} for b in batches]
    assert finetune(model, floats, steps=1).reading.task == "multi_label"
    assert vars(model.config) == before


def test_two_runs_on_one_model_are_the_same(model, rows):
    assert finetune(model, rows, steps=3).losses == finetune(model, rows, steps=3).losses


# ------------------------------------------------------------------ exceptions
def test_a_model_is_as_before_after_its_own_exception(model, rows):
    model.fail_at = 4  # one pass by the fixture, so at the fourth step
    before = state_of(model)
    with pytest.raises(Boom, match="in the model") as info:
        finetune(model, rows, steps=10, lr=1e-2)
    unchanged(model, before)
    trace = info.value.ftcheck_trace
    assert isinstance(trace, Trace)
    assert len(trace.steps) == 3
    assert len(trace.iterations) == 4
    assert len(trace.losses) == 3
    assert trace.stopped == "Boom: in the model"
    assert trace.tensor("classifier.weight").motion.share_changed == 1
    assert Trace.from_json(trace.to_json()) == trace
    assert "Boom" in str(trace)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError])
def test_a_model_is_as_before_after_ctrl_c_in_a_step(model, rows, kind):
    count = iter(range(10))

    def step(model, batch, optimizer, scheduler):
        if next(count) == 2:
            raise kind
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        return 1.0

    before = state_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(kind) as info:
        finetune(model, rows, step=step, optimizer=optimizer, steps=10)
    unchanged(model, before)
    assert optimizer.state == {}
    assert len(info.value.ftcheck_trace.steps) == 2
    assert info.value.ftcheck_trace.losses == (1.0, 1.0)


def test_ctrl_c_in_the_model_of_our_own_loop(model, rows):
    model.fail_at, model.error = 3, KeyboardInterrupt()
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt) as info:
        finetune(model, rows, steps=10)
    unchanged(model, before)
    assert len(info.value.ftcheck_trace.steps) == 2


def test_an_exception_before_training_leaves_no_trace_behind(model, rows):
    before = state_of(model)
    with pytest.raises(ValueError, match="head="):
        finetune(model, rows, head="nowhere", dtype="float64")
    unchanged(model, before)


@pytest.mark.parametrize("where", ["optimizer", "scheduler", "evaluate"])
def test_an_exception_in_a_callable_of_the_users_passes_through(model, rows, where):
    def fail(*args):
        model.classifier.weight.data.fill_(7)
        raise Boom("mine")

    before = state_of(model)
    with pytest.raises(Boom, match="mine"):
        finetune(model, rows, steps=2, **{where: fail})
    unchanged(model, before)


def test_hooks_on_all_optimizers_are_removed_after_every_end(model, rows):
    from torch.optim import optimizer as module

    before = len(module._global_optimizer_pre_hooks), len(module._global_optimizer_post_hooks)
    finetune(model, rows, steps=1)
    model.fail_at = 2
    with pytest.raises(Boom):
        finetune(model, rows, steps=5)
    with pytest.raises(ValueError, match="head="):
        finetune(model, rows, head="nowhere")
    assert (len(module._global_optimizer_pre_hooks), len(module._global_optimizer_post_hooks)) == before


# ------------------------------------------------------------------ optimizer and scheduler
def optimizer_state(optimizer):
    return {
        "groups": [{k: bits(v) for k, v in g.items()} for g in optimizer.param_groups],
        "ids": [[id(p) for p in g["params"]] for g in optimizer.param_groups],
        "state": {id(p): bits(dict(s)) for p, s in optimizer.state.items()},
        "attributes": {k: id(v) for k, v in vars(optimizer).items()},
        "hooks": [len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)],
    }


OPTIMIZERS = {
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-2),
    "AdamW, tensor LR": lambda ps: torch.optim.AdamW(ps, lr=torch.tensor(1e-2)),
    "AMSGrad": lambda ps: torch.optim.Adam(ps, lr=1e-2, amsgrad=True),
    "SGD with momentum": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "LBFGS": lambda ps: torch.optim.LBFGS(ps, max_iter=3),
    "Adagrad": lambda ps: torch.optim.Adagrad(ps, lr=1e-2),
}


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_instance_is_as_before(rows, kind, used):
    torch.manual_seed(0)
    model = Rich()
    optimizer = OPTIMIZERS[kind]([p for p in model.parameters() if p.requires_grad])
    if used:

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(rows[0][0]), rows[0][1])
            loss.backward()
            return loss

        optimizer.step(closure)
    before, weights = optimizer_state(optimizer), state_of(model)
    lr = optimizer.param_groups[0]["lr"]
    trace = finetune(model, rows, optimizer=optimizer, steps=3)
    assert len(trace.steps) == 3
    assert optimizer_state(optimizer) == before
    assert optimizer.param_groups[0]["lr"] is lr
    unchanged(model, weights)


@pytest.mark.parametrize("kind", [k for k in OPTIMIZERS if k != "LBFGS"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_state_of_an_optimizer_is_the_same_objects_as_before(rows, kind, fails):
    """Whoever holds ``optimizer.state[p]["exp_avg"]`` (a scheduler, a logger, an EMA) holds the optimizer's own afterwards."""
    torch.manual_seed(0)
    model = Rich()
    optimizer = OPTIMIZERS[kind]([p for p in model.parameters() if p.requires_grad])
    F.cross_entropy(model(rows[0][0]), rows[0][1]).backward()
    optimizer.step()
    states = dict(optimizer.state)
    held = {(p, k): (v, v.data_ptr(), v.clone()) for p, s in states.items() for k, v in s.items() if torch.is_tensor(v)}
    assert held
    if fails:
        model.fail_at = 3  # one pass here
        with pytest.raises(Boom):
            finetune(model, rows, optimizer=optimizer, steps=5)
    else:
        finetune(model, rows, optimizer=optimizer, steps=3)
    assert set(optimizer.state) == set(states)
    assert all(optimizer.state[p] is s for p, s in states.items())
    for (p, key), (value, address, was) in held.items():
        assert optimizer.state[p][key] is value
        assert value.data_ptr() == address
        assert torch.equal(value, was)


def test_a_used_optimizer_goes_on_exactly_where_it_was(rows):
    """Ten steps in a row, or five, a fine-tune in between, and five more: the same weights."""

    def run(interrupted):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for i in range(10):
            if interrupted and i == 5:
                finetune(model, rows, optimizer=optimizer, head="2", steps=4)
            optimizer.zero_grad()
            F.cross_entropy(model(rows[i % 8][0]), rows[i % 8][1]).backward()
            optimizer.step()
        return bits(list(model.parameters()))

    assert run(interrupted=True) == run(interrupted=False)


def test_a_group_added_during_the_run_is_gone(model, rows):
    optimizer = torch.optim.SGD(model.body.parameters(), lr=0.1)
    count = iter(range(9))

    def step(model, batch, optimizer, scheduler):
        if next(count) == 1:
            optimizer.add_param_group({"params": list(model.classifier.parameters()), "lr": 1.0})
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    before = optimizer_state(optimizer)
    trace = finetune(model, rows, optimizer=optimizer, step=step, steps=3)
    assert len(trace.optimizer.groups) == 2
    assert optimizer_state(optimizer) == before


SCHEDULERS = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: 0.5**i),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=50),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.ConstantLR(o, 0.1), torch.optim.lr_scheduler.ExponentialLR(o, 0.5)],
        milestones=[2],
    ),
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step", "ignore:Seems like `optimizer.step")
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_scheduler_instance_is_as_before(rows, kind):
    model = Rich()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    scheduler = SCHEDULERS[kind](optimizer)
    before, groups = bits(scheduler.state_dict()), optimizer_state(optimizer)

    def rates():
        """The next learning rates, of a copy."""
        twin = copy.deepcopy((optimizer, scheduler))
        out = []
        for _ in range(5):
            twin[1].step(*([1.0] if kind == "plateau" else []))
            out.append(twin[0].param_groups[0]["lr"])
        return out

    following = rates() if kind != "sequential" else None  # a SequentialLR cannot be copied apart from its optimizer
    trace = finetune(model, rows, optimizer=optimizer, scheduler=scheduler, steps=4)
    assert len(trace.steps) == 4
    assert bits(scheduler.state_dict()) == before
    assert optimizer_state(optimizer) == groups
    if following:
        assert rates() == following


def test_a_scheduler_made_by_a_callable_leaves_the_optimizer_alone(rows):
    model = Rich()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = optimizer_state(optimizer)
    finetune(
        model, rows, optimizer=optimizer, scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5), steps=2
    )
    assert optimizer_state(optimizer) == before
    assert "initial_lr" not in optimizer.param_groups[0]


# ------------------------------------------------------------------ what cannot be restored
class Kept:
    """A snapshot that says when it is restored, and perhaps cannot be."""

    def __init__(self, name, restored, error=None):
        self.name, self.restored, self.error = name, restored, error

    def restore(self):
        self.restored.append(self.name)
        if self.error is not None:
            raise self.error


def test_one_that_cannot_be_restored_does_not_keep_the_others_from_it():
    restored, undo = [], Undo()
    for name, error in (("model", None), ("optimizer", Boom("first")), ("scheduler", None), ("loader", None)):
        undo.keep(Kept(name, restored, error))
    with pytest.raises(NotRestored, match=r"all else is: Kept \(Boom: first\)$"):
        undo.restore()
    assert restored == ["loader", "scheduler", "optimizer", "model"]  # the last one first
    undo.restore()  # nothing is left: each is restored once
    assert len(restored) == 4


def test_of_two_that_cannot_be_restored_both_are_named():
    undo = Undo()
    for name, error in (("model", None), ("optimizer", Boom("second")), ("scheduler", Boom("first"))):
        undo.keep(Kept(name, [], error))
    with pytest.raises(NotRestored, match=r"first\); .*second"):
        undo.restore()


def test_what_raised_in_the_run_is_what_the_user_sees_and_a_note_names_what_is_not_restored():
    def run():
        raise Boom("mine")

    undo = Undo(Kept("model", [], Boom("not restored")))
    with warnings.catch_warnings(record=True) as warned, pytest.raises(Boom, match="mine") as info:
        undo.after(run)
    notes = getattr(info.value, "__notes__", None) or [str(w.message) for w in warned]  # python 3.10 has no notes
    assert notes == ["not restored, all else is: Kept (Boom: not restored)"]
    assert info.value.__context__ is None


def test_an_interrupt_begins_the_restoring_anew_and_is_raised_at_the_end():
    class Interrupted(Kept):
        def restore(self):
            error, self.error = self.error, None
            self.restored.append(self.name)
            if error:
                raise error

    restored, undo = [], Undo()
    for name, error in (("model", SystemExit()), ("optimizer", KeyboardInterrupt()), ("scheduler", None)):
        undo.keep(Interrupted(name, restored, error))
    with pytest.raises(SystemExit):
        undo.restore()
    assert restored == ["scheduler", "optimizer", "scheduler", "optimizer", "model", "scheduler", "optimizer", "model"]


def test_a_scheduler_that_cannot_be_restored_leaves_the_model_as_before(model, rows):
    class Stubborn(torch.optim.lr_scheduler.LambdaLR):
        def load_state_dict(self, state):
            raise Boom("not mine")

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    scheduler = Stubborn(optimizer, lambda i: 0.5**i)
    before, groups = state_of(model), optimizer_state(optimizer)
    with pytest.raises(NotRestored, match=r"the state of a Stubborn \(Boom: not mine\)"):
        finetune(model, rows, optimizer=optimizer, scheduler=scheduler, steps=2)
    unchanged(model, before)
    assert optimizer_state(optimizer) == groups


# ------------------------------------------------------------------ data
@pytest.mark.parametrize("argument", ["batches", "eval_batches"])
@pytest.mark.parametrize("where", ["loader", "sampler"])
def test_the_generator_of_a_loader_is_as_before(rows, argument, where):
    data = TensorDataset(torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows]))
    generator = torch.Generator().manual_seed(5)
    loader = (
        DataLoader(data, 16, shuffle=True, generator=generator)
        if where == "loader"
        else DataLoader(data, 16, sampler=RandomSampler(data, generator=generator))
    )
    before = generator.get_state()
    given = {"batches": rows, argument: loader}
    finetune(Rich(), steps=12, **given)
    assert torch.equal(generator.get_state(), before)


def test_the_batches_are_as_before():
    batches = toy_batches(2, 4)
    before = bits(batches)
    finetune(tiny_distilbert, batches, steps=3)
    assert bits(batches) == before


# ------------------------------------------------------------------ flags and gradients of what is no parameter
class Flagging(nn.Module):
    """Makes its buffer, its plain tensors and its batch leaves with gradients."""

    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.Linear(6, 6), nn.Linear(6, 2)
        self.register_buffer("scale", torch.ones(6))
        self.register_buffer("written", torch.ones(2))
        self.plain, self.listed = torch.ones(6), [torch.ones(6)]

    def forward(self, x):
        for t in (self.scale, self.plain, *self.listed, x):
            if t.is_leaf and not t.is_inference():
                t.requires_grad_()
        self.written = self._buffers["written"].detach_()
        self.written.add_(self.classifier.bias)  # part of a graph
        return self.classifier(self.body(x) * self.scale * self.plain * self.listed[0])


@pytest.mark.parametrize("call", [finetune, check_init, extract_features], ids=lambda c: c.__name__)
def test_flags_and_gradients_of_buffers_attributes_and_batches_are_as_before(rows, call):
    model = Flagging()
    model.scale.grad = torch.full((6,), 2.0)
    given = model.scale.grad
    tensors = [model.scale, model.written, model.plain, *model.listed, *(x for x, _ in rows)]
    call(model, rows, **({"steps": 2, "lr": 1e-2} if call is finetune else {}))
    assert [(t.requires_grad, t.is_leaf) for t in tensors] == [(False, True)] * len(tensors)
    assert [t.grad for t in tensors if t.grad is not None] == [given]
    assert given.tolist() == [2.0] * 6
    assert model.written.tolist() == [1, 1]


@pytest.mark.parametrize("call", [finetune, check_init], ids=lambda c: c.__name__)
def test_arrays_among_a_models_attributes_are_as_before(rows, call):
    class Counting(Rich):
        def __init__(self):
            super().__init__()
            self.array, self.listed = numpy.array([0.0, -0.0, numpy.nan]), [{"a": (numpy.zeros(2, dtype=int),)}]

        def forward(self, x):
            self.array[...] = 1
            self.listed[0]["a"][0][:] += 1
            return super().forward(x)

    model = Counting()
    array, before = model.array, model.array.tobytes()
    call(model, rows, **({"steps": 2, "lr": 1e-2} if call is finetune else {}))
    assert model.array is array
    assert array.tobytes() == before
    assert model.listed[0]["a"][0].tolist() == [0, 0]


# ------------------------------------------------------------------ gradients from before the run
def one_flat_buffer(model):
    """Gradients that are views of one tensor, which is zeroed as a whole."""
    flat = torch.zeros(sum(p.numel() for p in model.parameters()))
    pieces = flat.split([p.numel() for p in model.parameters()])
    for p, piece in zip(model.parameters(), pieces, strict=True):
        p.grad = piece.view_as(p)
    return flat.zero_


def a_list_made_before(model):
    """Gradients that are zeroed through a list of them."""
    model(torch.ones(2, 6)).sum().backward()
    grads = [p.grad for p in model.parameters()]
    return lambda: torch._foreach_zero_(grads)


@pytest.mark.parametrize("kind", [one_flat_buffer, a_list_made_before])
def test_a_step_that_zeroes_gradients_by_another_handle_trains_as_in_a_bare_loop(rows, kind):
    def made():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
        zero, optimizer = kind(model), torch.optim.AdamW(model.parameters(), lr=2e-2)

        def step(model, batch, optimizer, scheduler):
            zero()
            loss = F.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step()
            return loss

        return model, optimizer, step

    model, optimizer, step = made()
    expected = [step(model, rows[i % 8], optimizer, None).item() for i in range(12)]
    model, optimizer, step = made()
    before, places = state_of(model), [p.grad.data_ptr() for p in model.parameters()]
    trace = finetune(model, rows, optimizer=optimizer, step=step, steps=12, head="2")
    assert list(trace.losses) == expected
    unchanged(model, before)
    assert [p.grad.data_ptr() for p in model.parameters()] == places


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_an_old_gradient_with_a_graph_keeps_it_and_one_that_requires_grad_does_so_still(rows):
    def step(model, batch, optimizer, scheduler):
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    model = nn.Sequential(nn.Linear(6, 2))
    F.cross_entropy(model(rows[0][0]), rows[0][1]).backward(create_graph=True)
    model[0].bias.grad = model[0].bias.grad.detach().requires_grad_()
    graph, before = model[0].weight.grad.grad_fn, state_of(model)
    assert graph is not None
    finetune(model, rows, step=step, steps=2, head="0")
    assert model[0].weight.grad.grad_fn is graph
    assert model[0].bias.grad.requires_grad
    unchanged(model, before)


def test_a_sparse_gradient_that_the_run_scales_is_as_before(rows):
    def step(model, batch, optimizer, scheduler):
        model.table.weight.grad._values().mul_(2)
        model.table.weight.grad.mul_(3)
        F.cross_entropy(model(batch[0]), batch[1]).backward()

    model = Rich()
    model.table = nn.Embedding(4, 2, sparse=True)
    model.table(torch.tensor([1, 3])).sum().backward()
    grad, before = model.table.weight.grad, model.table.weight.grad.to_dense()
    finetune(model, rows, step=step, optimizer=torch.optim.SGD(model.parameters()), steps=2)
    assert model.table.weight.grad is grad
    assert torch.equal(grad.to_dense(), before)


# ------------------------------------------------------------------ global states
def globals_now():
    return {
        "python": random.getstate(),
        "numpy": [bits(v.tolist() if hasattr(v, "tolist") else v) for v in numpy.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    }


class Vandal(Rich):
    """Touches every switch there is while it runs."""

    def forward(self, x):
        out = super().forward(x)
        random.seed(1)
        numpy.random.seed(1)
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(True, warn_only=self.calls % 2 == 0)
        return out


@pytest.mark.parametrize("fails", [False, True])
def test_random_states_and_switches_are_as_before(rows, fails):
    model = Vandal()
    if fails:
        model.fail_at = 2
    before = globals_now()
    try:
        finetune(model, rows, steps=4)
    except Boom:
        assert fails
    else:
        assert not fails
    assert globals_now() == before


def test_warn_only_determinism_is_as_before(rows):
    def evaluate(model):
        torch.use_deterministic_algorithms(True, warn_only=False)
        return 0.0

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        finetune(Rich(), rows, evaluate=evaluate, steps=2)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_random_draws_before_and_after_are_one_stream(rows):
    def draws(run):
        random.seed(3), numpy.random.seed(3), torch.manual_seed(3)
        first = random.random(), numpy.random.rand(), float(torch.rand(1))
        if run:
            finetune(Rich, rows, steps=2)
        return first, (random.random(), numpy.random.rand(), float(torch.rand(1)))

    assert draws(run=True) == draws(run=False)


def test_bad_input_leaves_the_random_states_too(rows):
    before = globals_now()
    with pytest.raises(ValueError, match="empty"):
        finetune(Rich, [])
    assert globals_now() == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_a_real_fine_tune(model, rows, mode):
    expected = finetune(model, rows, steps=3, lr=1e-2).losses
    before = state_of(model)
    with mode():
        now = globals_now()
        trace = finetune(model, rows, steps=3, lr=1e-2)
        assert globals_now() == now
    assert trace.losses == expected
    unchanged(model, before)


def test_batches_and_models_made_under_inference_mode_train():
    """A caller that makes everything inside: inference tensors cannot be saved for backward."""
    with torch.inference_mode():
        trace = finetune(tiny_distilbert, toy_batches(2, 4), steps=2, lr=1e-3)
    assert len(trace.steps) == 2
    assert trace.tensor("classifier.0.weight").motion.share_changed == 1


@pytest.mark.parametrize("attribute", ["optimizer", "base_optimizer"])
def test_the_state_of_an_optimizer_inside_another_is_as_before(rows, attribute):
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            setattr(self, attribute, inner)

        def step(self, closure=None):
            getattr(self, attribute).step(closure)

    torch.manual_seed(0)
    model = Rich()
    inner = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    optimizer = Wrapper(inner)
    F.cross_entropy(model(rows[0][0]), rows[0][1]).backward()
    optimizer.step()
    before = optimizer_state(inner)
    assert len(finetune(model, rows, optimizer=optimizer, steps=3).steps) == 3
    assert optimizer_state(inner) == before


@pytest.mark.parametrize("place", ["base", "a list", "a dict of tuples", "two deep", "a callable"])
def test_the_states_of_optimizers_in_any_attribute_are_as_before(rows, place):
    class Several(torch.optim.Optimizer):
        def __init__(self, parts):
            super().__init__([g for p in parts for g in p.param_groups], {})
            self.parts = parts if place in ("a list", "a callable") else {"them": tuple(parts), "self": self}
            if place in ("base", "two deep"):
                self.parts, self.base = None, parts[0]
            if place == "two deep":
                self.base = torch.optim.SGD(parts[0].param_groups[0]["params"])
                self.base.held = [parts]
            self.now = lambda: parts

        def step(self, closure=None):
            for part in self.now():
                part.step(closure)

    torch.manual_seed(0)
    model = Rich()
    trained = [p for p in model.parameters() if p.requires_grad]
    parts = [torch.optim.SGD(trained[:2], lr=1e-2, momentum=0.9), torch.optim.AdamW(trained[2:], lr=1e-2)]
    if place == "base":
        parts = [torch.optim.AdamW(trained, lr=1e-2)]
    optimizer = Several(parts)
    F.cross_entropy(model(rows[0][0]), rows[0][1]).backward()
    optimizer.step()
    before = [optimizer_state(p) for p in parts]
    finetune(model, rows, optimizer=(lambda _: optimizer) if place == "a callable" else optimizer, steps=2)
    assert [optimizer_state(p) for p in parts] == before


def test_an_exception_after_training_carries_the_trace(model, rows):
    """What was trained is known, and the measuring failed."""
    calls = []

    def evaluate(_):
        calls.append(1)
        if len(calls) == 2:
            raise Boom("mine")
        return 0.5

    before = state_of(model)
    with pytest.raises(Boom, match="mine") as info:
        finetune(model, rows, steps=3, evaluate=evaluate)
    assert isinstance(info.value.ftcheck_trace, Trace)
    assert len(info.value.ftcheck_trace.steps) == 3
    assert "Boom: mine" in info.value.ftcheck_trace.stopped
    unchanged(model, before)


def test_a_buffer_that_the_forward_pass_resizes_is_as_before(rows):
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = nn.Linear(6, 2)
            self.register_buffer("seen", torch.ones(1))

        def forward(self, x):
            self.seen.resize_(len(self.seen) + 1).fill_(2)
            return self.classifier(x)

    model = Growing()
    buffer = model.seen
    finetune(model, rows, head="classifier", steps=2)
    assert model.seen is buffer
    assert model.seen.tolist() == [1]
