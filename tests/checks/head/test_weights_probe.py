"""What is declared of the stored weights is judged in every run: outside the budget, whatever ``probes=`` names, and without batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pytest_ftcheck import (
    Intent,
    Trace,
    assert_healthy,
    check_head_init,
    check_pretrained_kept,
    diagnose,
    finetune,
    tiny_distilbert,
    toy_batches,
    watch,
)
from pytest_ftcheck.checks.head.record import Head, HeadWeights, Pretrained
from pytest_ftcheck.core.verdict import CheckFailed

NAMES = ["base_model.embeddings.word_embeddings.weight", "classifier.0.weight"]


def by_finetune(model: nn.Module, intent: Intent, **options: Any) -> Trace:
    return finetune(model, toy_batches(), steps=2, lr=1e-3, intent=intent, **options)


def over_budget(model: nn.Module, intent: Intent) -> Trace:
    """One step of one row: hardly any probe is within the budget."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pytest_ftcheck.instruments.work.FREE", 0.0)
        trace = finetune(model, toy_batches(1), steps=1, lr=1e-3, intent=intent)
    assert trace.measured(Head) is None
    assert "of the budget" in trace.skipped["head_state"]
    return trace


def by_probes(model: nn.Module, intent: Intent) -> Trace:
    return by_finetune(model, intent, probes=["loss"])


def by_step(model: nn.Module, intent: Intent) -> Trace:
    """The user's step, and batches that cannot be read."""

    def step(model, batch, optimizer, scheduler):
        optimizer.zero_grad()
        inputs, labels = batch.pair
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss

    class Unreadable:
        def __init__(self, pair):
            self.pair = pair

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [Unreadable(pair) for pair in toy_batches(2)]
    trace = finetune(model, batches, steps=2, step=step, optimizer=optimizer, intent=intent)
    assert trace.reading.inputs == "not read"
    assert trace.skipped["inputs"] == "the batches could not be read"
    return trace


def by_watch(model: nn.Module, intent: Intent) -> Trace:
    """A watched loop without a probe batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, optimizer, intent=intent) as w:
        for inputs, labels in toy_batches()[:2]:
            optimizer.zero_grad()
            w.loss(nn.functional.cross_entropy(model(inputs), labels)).backward()
            optimizer.step()
    assert w.trace.skipped["head_state"] == "watch has no probe_batch"
    return w.trace


RUNS = pytest.mark.parametrize("run", [by_finetune, over_budget, by_probes, by_step, by_watch])


def pretrained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if k.startswith("base_model.")}


@RUNS
def test_overwritten_pretrained_values_are_found(run):
    model = tiny_distilbert(seed=0)
    intent = Intent(pretrained=pretrained(model))
    assert check_pretrained_kept(run(model, intent)).status == "pass"
    nn.init.normal_(model.base_model.transformer.layer[1].ffn.lin1.weight, std=0.02)
    trace = run(model, intent)
    assert check_pretrained_kept(trace).fault == "pretrained_partly_lost"
    assert diagnose(trace).status == "unhealthy"
    with pytest.raises(CheckFailed, match="pretrained"):
        assert_healthy(trace)


@RUNS
def test_a_declared_start_is_judged(run):
    model = tiny_distilbert(seed=0)
    assert check_head_init(run(model, Intent(head_init=0.02))).status == "pass"
    trace = run(model, Intent(head_init=0.1))
    assert check_head_init(trace).fault == "head_init_initializer_range"
    assert diagnose(trace).status == "unhealthy"
    assert check_head_init(run(model, Intent())).status == "pass"


@RUNS
def test_memory_that_was_never_written_is_found_without_a_declaration(run):
    model = tiny_distilbert(seed=0)
    with torch.no_grad():
        model.classifier[0].weight[0, 0] = float("inf")
    assert check_head_init(run(model, Intent())).fault == "head_uninitialised"


@RUNS
def test_without_a_declaration_there_is_nothing_to_compare(run):
    trace = run(tiny_distilbert(seed=0), Intent())
    assert trace.measured(Pretrained) is None
    assert "pretrained" in trace.not_applicable
    verdict = check_pretrained_kept(trace)
    assert (verdict.status, verdict.unmeasured) == ("skipped", "")
    assert "no pretrained values were declared" in verdict.headline


def test_a_time_limit_leaves_nothing_declared_unjudged():
    model = tiny_distilbert(seed=0)
    declared = {k: torch.randn_like(v) for k, v in pretrained(model).items()}
    trace = by_finetune(model, Intent(pretrained=declared, head_init=0.1), max_seconds=1e-9)
    assert trace.stopped is not None
    assert check_pretrained_kept(trace).fault == "pretrained_not_loaded"
    assert check_head_init(trace).fault == "head_init_initializer_range"


def test_values_that_cannot_be_compared_are_no_pass():
    class Unmovable(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.Tensor.to:
                raise RuntimeError("not on this device")
            return super().__torch_function__(func, types, args, kwargs)

    model = tiny_distilbert(seed=0)
    declared = {k: v.as_subclass(Unmovable) for k, v in pretrained(model).items()}
    trace = by_finetune(model, Intent(pretrained=declared))
    (verdict,) = [v for v in diagnose(trace).verdicts if v.check == "pretrained_kept"]
    assert verdict.status == "inconclusive"
    assert "not on this device" in verdict.headline


def test_a_frozen_copy_of_the_head_is_no_layer_of_it():
    """As PEFT keeps the original beside the copy that it trains."""

    class Copied(nn.Module):
        def __init__(self):
            super().__init__()
            self.original_module, self.copy = nn.Linear(6, 2), nn.Linear(6, 2)
            self.original_module.requires_grad_(False)
            nn.init.normal_(self.copy.weight, std=0.02)
            nn.init.zeros_(self.copy.bias)

        def forward(self, x):
            return self.copy(x)

    model = nn.Sequential()
    model.add_module("body", nn.Linear(6, 6))
    model.add_module("classifier", Copied())
    batches = [(torch.randn(8, 6), torch.randint(2, (8,))) for _ in range(2)]
    trace = finetune(model, batches, steps=2, intent=Intent(head_init=0.02), probes=[])
    assert [la.name for la in trace.measured(HeadWeights).layers] == ["classifier.copy"]
    assert check_head_init(trace).status == "pass"


def test_it_travels_as_json():
    model = tiny_distilbert(seed=0)
    trace = by_finetune(model, Intent(pretrained=pretrained(model)), probes=[])
    assert Trace.from_json(trace.to_json()) == trace
    assert trace.intent.pretrained is None
