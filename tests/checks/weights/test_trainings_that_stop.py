"""Real small trainings that stop in the middle, in two ways of running, and healthy ones beside them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pytest_ftcheck import (
    check_lr_follows_schedule,
    check_training_continues,
    finetune,
    tiny_distilbert,
    toy_batches,
    watch,
)

pytestmark = pytest.mark.trains

BATCHES = toy_batches()
STEPS, STOP = 36, 10


def loop(model, optimizer, *, after=lambda i: None, steps=lambda i: True, factor=lambda i: 1.0, last=STEPS):
    """A training by hand; ``after``: what happens between backward and the step of iteration i."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def body(i):
        inputs, labels = BATCHES[i % len(BATCHES)]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        after(i)
        if steps(i):
            optimizer.step()
            scheduler.step()
        return loss

    return body, last


def parts(model):
    return {"head": list(model.classifier.parameters()), "base": list(model.base_model.parameters())}


def clear(parameters):
    def after(i):
        for p in parameters if i >= STOP else ():
            p.grad = None

    return after


def thaw(parameters):
    def after(i):
        for p in parameters:
            p.requires_grad_(i >= STOP)

    return after


CASES = {
    "no step after iteration 10": (lambda p, o: {"steps": lambda i: i <= STOP}, "steps_stop"),
    "gradients set to None": (lambda p, o: {"after": clear(p["head"] + p["base"])}, "grads_stop"),
    "those of the head set to None": (lambda p, o: {"after": clear(p["head"])}, "grads_stop"),
    "the optimizer loses its only group": (
        lambda p, o: {"after": lambda i: o.param_groups[0].update(params=[]) if i == STOP else None},
        "updates_stop",
    ),
    "linear decay to zero": (lambda p, o: {"factor": lambda i: 1 - i / STEPS}, ""),
    "a warm-up": (lambda p, o: {"factor": lambda i: min(1.0, i / 20)}, ""),
    "the base is thawed": (lambda p, o: {"after": thaw(p["base"])}, ""),
    "accumulation over 12": (lambda p, o: {"steps": lambda i: i % 12 == 11}, ""),
    "the user stops early": (lambda p, o: {"last": 14}, ""),
}


def in_finetune(case):
    model = tiny_distilbert(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    body, last = loop(model, optimizer, **case(parts(model), optimizer))
    count = iter(range(last))
    return finetune(model, BATCHES, optimizer=optimizer, step=lambda *_: body(next(count)), steps=last, probes=[])


def in_watch(case):
    model = tiny_distilbert(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    body, last = loop(model, optimizer, **case(parts(model), optimizer))
    with watch(model, optimizer) as w:
        for i in range(last):
            body(i)
    return w.trace


@pytest.mark.parametrize("run", [in_finetune, in_watch])
@pytest.mark.parametrize("name", CASES)
def test_what_stops_is_named_and_what_only_looks_like_it_is_not(run, name):
    case, fault = CASES[name]
    verdict = check_training_continues(run(case))
    assert verdict.fault == fault, verdict
    assert (verdict.status == "fail") is bool(fault)
    if fault:
        assert f"{STOP if fault == 'steps_stop' else 'From step'}" in verdict.headline


def test_a_schedule_that_reaches_zero_early_is_named_by_the_check_of_the_schedule():
    trace = in_finetune(lambda p, o: {"factor": lambda i: max(0.0, 1 - i / STOP)})
    assert check_training_continues(trace).status == "pass"
    assert check_lr_follows_schedule(trace).fault == "decays_too_early"
