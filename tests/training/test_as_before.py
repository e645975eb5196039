"""After a normal call, too, everything of the user's is as before: what a run, a loss, a metric or a loader changed."""

from __future__ import annotations

import copy
import io
import random
import threading

import numpy
import pytest
import torch
from everything import bits
from special_tensors import add_tables
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from pytest_ftcheck import assert_init_sane, check_init, extract_features, finetune, tiny_distilbert, toy_batches, watch
from pytest_ftcheck.seeds.runs import repeatable

pytestmark = pytest.mark.trains


class Config:
    """As of a pretrained model."""

    def __init__(self):
        self.problem_type, self.inner = None, None


class Net(nn.Module):
    """It writes into its config, and keeps something for the next call."""

    def __init__(self):
        super().__init__()
        self.config = Config()
        self.config.inner = Config()
        self.base, self.classifier = nn.Linear(6, 8), nn.Linear(8, 2)
        self.nested = {"counts": {"calls": [0]}}
        add_tables(self)

    def forward(self, x):
        self.config.problem_type = self.config.inner.problem_type = "single"
        self.nested["counts"]["calls"].append(len(x))
        self.cached = x
        return self.classifier(torch.relu(self.base(x)))


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=g)
    return TensorDataset(x, (x[:, 0] > 0).long())


@pytest.fixture
def rows(data):
    return list(DataLoader(data, 16))


def plain(model):
    inner = model.config.inner
    return vars(model.config) | {"inner": vars(inner)}, model.nested["counts"]["calls"].copy(), hasattr(model, "cached")


def empty_watch(model, rows):
    with watch(model, torch.optim.SGD(model.parameters(), lr=0.1), probe_batch=rows[0]):
        pass


CALLS = {
    "check_init": check_init,
    "assert_init_sane": assert_init_sane,
    "extract_features": extract_features,
    "an empty watch": empty_watch,
    "finetune": lambda model, rows: finetune(model, rows, steps=2),
}


@pytest.mark.parametrize("call", CALLS)
def test_configs_nested_containers_and_new_attributes(call, rows):
    torch.manual_seed(0)
    model = Net()
    before = plain(model), bits(vars(model.tables), {})
    CALLS[call](model, rows)
    assert (plain(model), bits(vars(model.tables), {})) == before


@pytest.mark.parametrize("where", ["loader", "sampler", "none"])
@pytest.mark.parametrize("call", [extract_features, check_init, assert_init_sane])
def test_random_states_of_a_loader_and_of_the_process(call, where, data):
    torch.manual_seed(0)
    model, generator = Net(), torch.Generator().manual_seed(5)
    if where == "sampler":
        loader = DataLoader(data, 16, sampler=RandomSampler(data, generator=generator))
    else:
        loader = DataLoader(data, 16, shuffle=True, generator=generator if where == "loader" else None)
    before = torch.get_rng_state(), generator.get_state()
    call(model, loader)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(generator.get_state(), before[1])


def test_a_loss_with_weights_of_its_own_that_the_optimizer_trains(rows):
    model, criterion = Net(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.5)
    before = [p.detach().clone() for p in criterion.parameters()]

    def loss(model, batch):
        return F.cross_entropy(criterion(model(batch[0])), batch[1])

    finetune(model, rows, optimizer=optimizer, loss_fn=loss, steps=3)
    assert all(torch.equal(p, was) and p.grad is None for p, was in zip(criterion.parameters(), before, strict=True))
    finetune(
        model,
        rows,
        optimizer=lambda m: torch.optim.SGD([*m.parameters(), *criterion.parameters()], lr=0.5),
        loss_fn=loss,
    )
    assert all(torch.equal(p, was) and p.grad is None for p, was in zip(criterion.parameters(), before, strict=True))


def test_a_loss_that_is_a_module_keeps_its_buffers(rows):
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, model, batch):
            value = F.cross_entropy(model(batch[0]), batch[1])
            self.mean += value.detach()
            return value

    loss = Loss()
    finetune(Net(), rows, loss_fn=loss, steps=3)
    assert loss.mean == 0


def test_a_model_that_shows_only_some_of_its_parameters(rows):
    class Partly(Net):
        def parameters(self, recurse=True):
            return iter(self.classifier.parameters())

    class Equal(nn.Parameter):
        def __eq__(self, other):
            return True

        __hash__ = nn.Parameter.__hash__

    model = Partly()
    model.base.bias = Equal(model.base.bias.detach())
    everything = [model.base.weight, model.base.bias, *model.classifier.parameters()]
    before = [p.detach().clone() for p in everything]
    finetune(model, rows, optimizer=torch.optim.SGD(everything, lr=0.5), steps=3)
    assert all(torch.equal(p.detach(), was) for p, was in zip(everything, before, strict=True))


def test_hooks_registered_in_a_step(rows):
    from torch.nn.modules import module as modules
    from torch.optim import optimizer as optimizers

    model = Net()
    p = model.base.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(model, batch, optimizer, scheduler):
        p.register_hook(lambda g: g)
        p.register_post_accumulate_grad_hook(lambda p: None)
        p.tag = 1
        model.base.register_forward_hook(lambda *a: None)
        optimizer.register_step_pre_hook(lambda *a: None)
        modules.register_module_forward_hook(lambda *a: None)
        optimizers.register_optimizer_step_post_hook(lambda *a: None)
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    finetune(model, rows, step=step, optimizer=optimizer, steps=2)
    assert not p._backward_hooks
    assert not p._post_accumulate_grad_hooks
    assert not vars(p)
    assert not model.base._forward_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not modules._global_forward_hooks
    assert not optimizers._global_optimizer_post_hooks
    F.cross_entropy(model(rows[0][0]), rows[0][1]).backward()  # the gradient arrives without them
    assert p.grad is not None


def test_a_learning_rate_that_a_step_made_a_tensor(rows):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(model, batch, optimizer, scheduler):
        optimizer.param_groups[0]["lr"] = torch.tensor(0.2)
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    finetune(model, rows, step=step, optimizer=optimizer, steps=2)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert type(optimizer.param_groups[0]["lr"]) is float


SWITCHES = {
    "anomaly": (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    ),
    "cudnn": (lambda: torch.backends.cudnn.enabled, lambda: setattr(torch.backends.cudnn, "enabled", False)),
    "attention's fast path": (
        torch.backends.mha.get_fastpath_enabled,
        lambda: torch.backends.mha.set_fastpath_enabled(False),
    ),
    "uninitialized memory": (
        lambda: torch.utils.deterministic.fill_uninitialized_memory,
        lambda: setattr(torch.utils.deterministic, "fill_uninitialized_memory", False),
    ),
    "warnings": (torch.is_warn_always_enabled, lambda: torch.set_warn_always(True)),
    "print options": (lambda: torch._tensor_str.PRINT_OPTS.precision, lambda: torch.set_printoptions(precision=9)),
    "attention's kernels": (torch.backends.cuda.flash_sdp_enabled, lambda: torch.backends.cuda.enable_flash_sdp(False)),
    "numpy's errors": (numpy.geterr, lambda: numpy.seterr(all="ignore")),
    "autocast": (lambda: torch.is_autocast_enabled("cpu"), lambda: torch.set_autocast_enabled("cpu", True)),
    "denormals": (lambda: float(torch.tensor(1e-40)), lambda: torch.set_flush_denormal(True)),
    "numpy's print options": (numpy.get_printoptions, lambda: numpy.set_printoptions(precision=2)),
    "autograd's threads": (
        lambda: torch._C._is_multithreading_enabled(),
        lambda: torch.autograd.set_multithreading_enabled(False),
    ),
    "autocast's cache": (torch.is_autocast_cache_enabled, lambda: torch.set_autocast_cache_enabled(False)),
    "distributions": (
        lambda: torch.distributions.Distribution._validate_args,
        lambda: torch.distributions.Distribution.set_default_validate_args(False),
    ),
    "swapped parameters": (
        torch.__future__.get_swap_module_params_on_conversion,
        lambda: torch.__future__.set_swap_module_params_on_conversion(True),
    ),
    "overwritten parameters": (
        torch.__future__.get_overwrite_module_params_on_conversion,
        lambda: torch.__future__.set_overwrite_module_params_on_conversion(True),
    ),
    "the JIT's optimizer": (
        torch._C._get_graph_executor_optimize,
        lambda: torch._C._set_graph_executor_optimize(False),
    ),
    "sparse invariants": (
        torch.sparse.check_sparse_tensor_invariants.is_enabled,
        torch.sparse.check_sparse_tensor_invariants.enable,
    ),
    "oneDNN's precision": (
        lambda: getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None),
        lambda: (
            hasattr(torch.backends.mkldnn, "matmul") and setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16")
        ),
    ),
    "the default device": (torch.get_default_device, lambda: torch.set_default_device("meta")),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_that_a_metric_sets(name, rows):
    read, change = SWITCHES[name]
    before = read()

    def evaluate(model):
        change()
        return 0.5

    finetune(Net, rows, steps=1, evaluate=evaluate, probes=[])
    assert read() == before


def test_anomaly_mode_of_the_callers_own_is_as_before(rows):
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        finetune(Net, rows, steps=1, probes=[])
        assert (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()) == (True, False)


def test_configs_of_peft_are_the_same_objects(rows):
    peft = pytest.importorskip("peft")

    class Base(Net):
        def forward(self, x):
            return self.classifier(torch.relu(self.base(x)))

    model = peft.get_peft_model(Base(), peft.LoraConfig(target_modules=["base"], modules_to_save=["classifier"]))
    before = {n: {k: id(v) for k, v in vars(m).items()} for n, m in model.named_modules()}
    configs = {name: (id(c), repr(c)) for name, c in model.peft_config.items()}
    empty_watch(model, rows)
    assert {n: {k: id(v) for k, v in vars(m).items()} for n, m in model.named_modules()} == before
    finetune(model, rows, steps=2, lr=1e-2)
    assert {n: {k: id(v) for k, v in vars(m).items()} for n, m in model.named_modules()} == before
    assert {name: (id(c), repr(c)) for name, c in model.peft_config.items()} == configs


# ------------------------------------------------------------------ what cannot be put back is said
class Meter:
    """An object of the user's."""

    def __init__(self):
        self.count, self.deep = 0, {"sum": torch.zeros(2)}


def test_what_an_object_inside_the_model_counts_is_named_in_the_trace(rows):
    class Metered(Net):
        def __init__(self):
            super().__init__()
            self.meter = Meter()

        def forward(self, x):
            self.meter.count += 1
            self.meter.deep["sum"] += 1
            return super().forward(x)

    notes = [n for n in finetune(Metered(), rows, steps=2).notes if "not restored" in n]
    assert len(notes) == 1
    assert "meter.count (0 before, " in notes[0]
    assert "meter.deep" in notes[0]
    assert not [n for n in finetune(Net(), rows, steps=2).notes if "not restored" in n]


# ------------------------------------------------------------------ deterministic
class Noisy(Dataset):
    """Rows with noise from numpy."""

    def __init__(self, data):
        self.data, self.dice = data, numpy.random.default_rng(0)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        x, y = self.data[i]
        return x + torch.from_numpy(self.dice.normal(size=6).astype("float32")), y


class OwnSampler(torch.utils.data.Sampler):
    """An order from python's random."""

    def __init__(self, count):
        self.count, self.dice = count, random.Random(0)

    def __iter__(self):
        order = list(range(self.count))
        self.dice.shuffle(order)
        return iter(order)

    def __len__(self):
        return self.count


def hidden(data):
    dice = random.Random(0)

    class Batches:
        def __iter__(self):
            yield from DataLoader(data, 16, sampler=dice.sample(range(64), 64))

    return Batches()


def test_generators_of_data_sets_and_samplers_are_restored_so_that_a_run_repeats_itself(data):
    for loader in (DataLoader(Noisy(data), 16), DataLoader(data, 16, sampler=OwnSampler(64))):
        first, second = (finetune(Net, loader, steps=3, probes=[]) for _ in range(2))
        assert first.losses == second.losses
        assert repeatable(first).startswith("deterministic")


def test_batches_that_differ_when_they_are_drawn_twice_are_no_deterministic_run(data):
    batches = hidden(data)
    first, second = (finetune(Net, batches, steps=3, probes=[]) for _ in range(2))
    assert first.losses != second.losses
    assert repeatable(first) == ""
    assert any("drawn twice" in note for note in first.notes)


def test_a_shuffling_loader_is_deterministic(data):
    trace = finetune(Net, DataLoader(data, 16, shuffle=True), steps=2, probes=[])
    assert repeatable(trace).startswith("deterministic")


# ------------------------------------------------------------------ threads
def test_two_fine_tunes_in_two_threads_are_those_of_one(rows):
    expected = [finetune(Net, rows, steps=8, seed=s, probes=[]).losses for s in (1, 2)]
    before = torch.get_rng_state()
    found = {}
    threads = [
        threading.Thread(target=lambda s=s: found.update({s: finetune(Net, rows, steps=8, seed=s, probes=[]).losses}))
        for s in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[1], found[2]] == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_a_watched_model_can_be_copied_and_saved_whole():
    """The copies have none of our hooks, and need nothing of ours to be loaded."""
    model, batches = tiny_distilbert(seed=0), toy_batches(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model) as w:
        for batch, labels in batches:
            torch.nn.functional.cross_entropy(model(batch), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            file = io.BytesIO()
            torch.save(model, file)
            copy.deepcopy(model)(batch)
    assert len(w.trace.losses) == 3
    assert b"pytest_ftcheck.instruments.uncompiled" not in file.getvalue()
    file.seek(0)
    loaded = torch.load(file, weights_only=False).eval()
    assert loaded(batches[0][0]).equal(model.eval()(batches[0][0]))


def test_a_watched_model_that_is_saved_whole_names_nothing_of_ours():
    model, file = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), io.BytesIO()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model):
        F.cross_entropy(model(torch.randn(8, 6)), torch.zeros(8, dtype=torch.long)).backward()
        optimizer.step()
        torch.save(model, file)
    assert b"pytest_ftcheck" not in file.getvalue()
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    loaded.load_state_dict(model.state_dict())
    assert loaded.state_dict().keys() == model.state_dict().keys()
