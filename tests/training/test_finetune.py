"""finetune records what happened: device, dtype, time, seeds, modes."""

from __future__ import annotations

import math
import random
import time

import pytest
import torch
from finetuned import FAST, Net, healthy, plain
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pytest_ftcheck import (
    Recipe,
    finetune,
    tiny_distilbert,
    toy_batches,
)
from pytest_ftcheck.core import events


# ------------------------------------------------------------------ device, dtype, time
def test_dtype_converts_the_parameters(rows):
    trace = healthy(finetune(Net(), [(x.double(), y) for x, y in rows], dtype="float64", **FAST))
    assert {t.dtype for t in trace.tensors} == {"float64"}
    assert trace.environment["dtype"] == "float64"


def test_the_device_is_named(rows):
    assert finetune(Net(), rows, device="cpu", **FAST).environment["device"] == "cpu"


def test_autocast_runs_the_forward_pass_in_bfloat16(rows):
    seen = set()

    class Looks(Net):
        def forward(self, x):
            out = super().forward(x)
            if self.training:
                seen.add(out.dtype)
            return out

    trace = healthy(finetune(Looks(), rows, autocast="bfloat16", **FAST))
    assert seen == {torch.bfloat16}
    assert {t.dtype for t in trace.tensors} == {"float32"}


def test_max_seconds_ends_the_run_and_says_so(rows):
    trace = finetune(Net(), rows, steps=100_000, lr=1e-4, max_seconds=0.2)
    assert 0 < len(trace.steps) < 100_000
    assert "max_seconds=0.2" in trace.stopped
    assert trace.probe_loss.points[-1].step == len(trace.steps)


def test_a_loss_that_stays_nan_ends_the_run(rows):
    trace = finetune(Net(), rows, loss_fn=lambda m, b: m(b[0]).sum() * math.nan, steps=50)
    assert len(trace.iterations) == 3
    assert "not finite" in trace.stopped
    assert trace.tensor("classifier.weight").gradients.first_nonfinite == 0


def test_a_warm_up_longer_than_the_run_is_a_note(rows):
    assert any("warm-up of 50 steps" in n for n in finetune(Net(), rows, steps=3, warmup=50).notes)


# ------------------------------------------------------------------ seeds
def test_the_same_seed_gives_the_same_numbers_bit_for_bit():
    def run(seed):
        random.random(), torch.rand(7)  # whatever state the caller is in
        return plain(finetune(tiny_distilbert, toy_batches(4), steps=4, lr=1e-3, seed=seed))

    first = run(3)
    assert run(3) == first
    assert run(4) != first


def test_a_shuffling_loader_is_seeded_too(rows):
    data = TensorDataset(torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows]))
    model = Net()

    def run(seed=0):
        return finetune(model, DataLoader(data, 16, shuffle=True), seed=seed, **FAST).losses

    first = run()
    assert run() == first
    assert run(1) != first


def test_a_factory_is_called_under_the_seed_and_an_instance_is_used_as_it_is(rows):
    made = [finetune(Net, rows, seed=s, lr=0.0, steps=1).tensor("body.weight").first.std for s in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


def test_watching_does_not_change_the_training(rows):
    """The recipe's own loop, written out by hand, gives the same losses to the last bit."""

    class Drops(Net):
        def forward(self, x):
            return self.classifier(F.dropout(torch.relu(self.body(x)), 0.5, self.training))

    recipe = Recipe(steps=5, lr=1e-2, seed=7)
    trace = finetune(Drops, rows, recipe)
    torch.manual_seed(7)
    model = Drops()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    losses = []
    for i, (x, y) in enumerate(rows[:5]):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(i)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert list(trace.losses) == losses


# ------------------------------------------------------------------ the rest
def test_fields_of_the_recipe_are_keywords(rows):
    trace = finetune(Net(), rows, Recipe(lr=1e-3, steps=9), steps=2)
    assert (trace.recipe.lr, trace.recipe.steps) == (1e-3, 2)
    assert trace.source == "finetune"


def test_shared_parameters_are_one_tensor(rows):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6, bias=False)
            self.b = nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight
            self.classifier = nn.Linear(6, 2)

        def forward(self, x):
            return self.classifier(self.b(torch.tanh(self.a(x))))

    trace = healthy(finetune(Tied(), rows, **FAST))
    assert len(trace.tensors) == 3
    assert trace.tensor("b.weight") is trace.tensor("a.weight")
    assert trace.tensor("a.weight").aliases == ("b.weight",)


def test_a_parameter_of_no_element_or_no_gradient_does_no_harm(rows):
    class Odd(Net):
        def __init__(self):
            super().__init__()
            self.empty = nn.Parameter(torch.zeros(0))
            self.scalar = nn.Parameter(torch.tensor(1.0))
            self.unused = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return super().forward(x) * self.scalar

    trace = healthy(finetune(Odd(), rows, **FAST))
    assert trace.tensor("unused").gradients.none == 3
    assert trace.tensor("scalar").motion.share_changed == 1


def test_the_listener_hears_progress_and_the_trace(rows):
    heard = []

    class Ear:
        def progress(self, done, total, loss):
            heard.append((done, total))

        def traced(self, trace):
            heard.append(trace)

    with events.listening(Ear()):
        trace = finetune(Net(), rows, **FAST)
    assert heard.pop() is trace
    assert [done for done, _ in heard] == sorted({done for done, _ in heard})
    assert heard[-1] == (3, 3)
    assert {total for _, total in heard} == {3}


def test_a_trace_of_many_steps_stays_small(rows):
    trace = finetune(nn.Sequential(nn.Linear(6, 2)), rows, head="0", steps=2500, lr=1e-4, probes=())
    assert len(trace.steps) == 2500
    assert len(trace.recorded) <= 1024
    assert len(trace.tensors[0].grad_norms) == len(trace.recorded)
    assert len(trace.to_json()) < 2e6


def test_twenty_steps_of_the_default_take_about_a_second():
    finetune(tiny_distilbert, toy_batches(), steps=1)  # what is imported the first time
    began = time.process_time()
    trace = finetune(tiny_distilbert, toy_batches())
    seconds = time.process_time() - began  # not by the clock: other processes hold this one up
    assert len(trace.steps) == 20
    assert seconds < 10  # on any machine; about 0.5 s on two idle cores


# ------------------------------------------------------------------ modes
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("asleep", [True, False])
def test_a_frozen_module_that_came_in_eval_stays_in_it(rows, frozen, asleep):
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.1)), nn.Linear(8, 2))
    model[0].requires_grad_(not frozen)
    if asleep:
        model.eval()
    modes = []
    model.register_forward_hook(lambda m, *_: modes.append([part.training for part in (m, *m[0], m[1])]))
    trace = finetune(model, rows, head="1", steps=2, probes=[])
    awake = not (frozen and asleep)
    assert [True, awake, awake, awake, True] in modes
    assert next(b for b in trace.buffers if b.name.endswith("running_mean")).unchanged is not awake
