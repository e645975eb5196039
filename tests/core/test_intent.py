"""What is declared: validated at once, and against the model's parameter names before any training."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pytest_ftcheck import (
    Intent,
    Recipe,
    Trace,
    check_frozen_stay_frozen,
    check_weights_move,
    finetune,
    tiny_distilbert,
    toy_batches,
    watch,
)
from pytest_ftcheck.core.example_trace import example_trace


@pytest.mark.parametrize(
    ("field", "value", "error", "words"),
    [
        ("task", "binary", ValueError, ["task='binary'", "single_label, multi_label, regression, embedding"]),
        ("schedule", "cosine", ValueError, ["schedule='cosine'", "linear, constant"]),
        ("optimizer", torch.optim.AdamW, TypeError, ["optimizer=", "name of an optimizer class"]),
        ("peak_lr", "5e-5", TypeError, ["peak_lr='5e-5'", "number"]),
        ("peak_lr", -1.0, ValueError, ["peak_lr=-1.0", ">= 0"]),
        ("peak_lr", float("nan"), ValueError, ["peak_lr=nan"]),
        ("max_grad_norm", True, TypeError, ["max_grad_norm=True"]),
        ("warmup_steps", 2.5, TypeError, ["warmup_steps=2.5", "whole number"]),
        ("total_steps", 0, ValueError, ["total_steps=0", ">= 1"]),
        ("accumulation", 0, ValueError, ["accumulation=0", ">= 1"]),
        ("thaw_step", -1, ValueError, ["thaw_step=-1"]),
        ("no_decay", "yes", TypeError, ["no_decay='yes'", "True, False"]),
        ("dropout", 1.0, ValueError, ["dropout=1.0", "rate below 1"]),
        ("dropout", "on", TypeError, ["dropout='on'"]),
        ("trained", [1, 2], TypeError, ["trained[0]=1", "prefix or glob"]),
        ("frozen", 7, TypeError, ["frozen=7"]),
        ("tied", [("a",)], TypeError, ["tied=", "pairs"]),
        ("tied", 3, TypeError, ["tied=3", "pairs"]),
        ("tied", True, TypeError, ["tied=True", "pairs"]),
        ("optimizer", "", ValueError, ["optimizer=''", "AdamW"]),
        ("pretrained", [("a", 1)], TypeError, ["pretrained is a list", "mapping"]),
        ("pretrained", {"a": "b"}, TypeError, ["pretrained['a'] is a str", "tensor"]),
        ("pretrained", {"a": None}, TypeError, ["pretrained['a'] is a NoneType", "tensor"]),
        ("pretrained", {3: 1.0}, TypeError, ["pretrained has the key 3", "parameter name -> tensor"]),
    ],
)
def test_bad_values_are_refused(field, value, error, words):
    with pytest.raises(error) as caught:
        Intent(**{field: value})
    for word in words:
        assert word in str(caught.value)


def test_names_may_be_given_as_one_string():
    assert Intent(trained="classifier").trained == ("classifier",)
    assert Intent(trained=["a", "b"]).trained == ("a", "b")
    assert Intent(tied=[["a", "b"]]).tied == (("a", "b"),)


@pytest.mark.parametrize(
    ("intent", "name", "trained", "frozen"),
    [
        (Intent(), "a.weight", None, False),
        (Intent(trained=""), "a.weight", True, False),
        (Intent(trained="b"), "a.weight", False, False),
        (Intent(trained="", frozen="a"), "a.weight", False, True),
        (Intent(frozen="*.weight"), "a.weight", False, True),
        (Intent(frozen="*.weight"), "a.bias", None, False),
        (Intent(trained="", unused="a"), "a.weight", False, False),
    ],
)
def test_what_is_declared_of_a_tensor(intent, name, trained, frozen):
    assert intent.wants_trained(name) is trained
    assert intent.wants_frozen(name) is frozen


def test_the_declared_learning_rate():
    intent = Intent(peak_lr=1.0, schedule="linear", warmup_steps=2, total_steps=6)
    assert [intent.lr_at(i) for i in range(8)] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert [Intent(peak_lr=1.0, schedule="constant").lr_at(i) for i in (0, 99)] == [1.0, 1.0]
    assert Intent(peak_lr=1.0).lr_at(3) is None
    assert Intent(peak_lr=1.0, schedule="linear").lr_at(3) is None  # of unknown length


def test_declared_lists_the_fields_that_are_set():
    assert Intent().declared == ()
    assert Intent(peak_lr=0.0, no_decay=False, trained="").declared == ("trained", "peak_lr", "no_decay")


def test_the_recipe_fills_in_what_is_not_declared():
    filled = Intent(peak_lr=1.0).filled(Recipe(lr=1e-3, steps=50, warmup=0.1))
    assert (filled.peak_lr, filled.total_steps, filled.warmup_steps) == (1.0, 50, 5)
    assert (filled.optimizer, filled.schedule, filled.max_grad_norm) == ("AdamW", "linear", 1.0)


@pytest.mark.trains
@pytest.mark.parametrize(
    ("intent", "words"),
    [
        (Intent(trained="clasifier"), ["intent.trained='clasifier'", "none of the", "no part (head, base, all)"]),
        (Intent(frozen="tail"), ["intent.frozen='tail'", "head, base, all"]),
        (Intent(frozen=("base_model", "nothing")), ["intent.frozen='nothing'"]),
        (Intent(tied=[("classifier.0.weight", "lm_head.weight")]), ["intent.tied", "lm_head.weight"]),
        (Intent(pretrained={"x": torch.zeros(1)}), ["intent.pretrained"]),
    ],
)
def test_names_that_match_nothing_are_refused_before_training(intent, words):
    model, batches = tiny_distilbert(), toy_batches()[:2]
    optimizer = torch.optim.AdamW(model.parameters())
    for call in (
        lambda: finetune(model, batches, steps=1, intent=intent),
        lambda: watch(model, optimizer, intent=intent),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are compared
            call()
        for word in words:
            assert word in str(caught.value)


NAMES = ["enc.emb.weight", "enc.layer.0.weight", "enc.head.weight", "pooler.bias", "classifier.weight"]


@pytest.mark.parametrize(
    ("given", "head", "expected"),
    [
        ("head", ["classifier"], ("classifier.",)),
        ("base", ["classifier"], ("enc.", "pooler.")),
        ("all", ["classifier"], ("",)),
        ("base", ["enc.head"], ("enc.emb.", "enc.layer.", "pooler.", "classifier.")),
        ("head", ["pooler", "classifier.weight"], ("pooler.", "classifier.weight")),
        (["head", "pooler"], ["classifier"], ("classifier.", "pooler")),
        ("enc", ["classifier"], ("enc",)),
        ("*.weight", ["classifier"], ("*.weight",)),
        ("", ["classifier"], ("",)),
    ],
)
@pytest.mark.parametrize("field", ["trained", "frozen", "unused"])
def test_parts_are_named_as_in_part(field, given, head, expected):
    assert getattr(Intent(**{field: given}).for_model(NAMES, head), field) == expected


def test_a_module_of_that_name_comes_before_the_part():
    names = ["base.weight", "mix.weight", "head.weight"]
    assert Intent(trained="base", frozen="head").for_model(names, ["mix", "head"]).trained == ("base",)
    assert Intent(trained="base").for_model(["base_model.weight", "mix.weight", "out.weight"], ["out"]).trained == (
        "base_model.",
        "mix.",
    )


def test_a_part_that_is_empty_is_refused():
    with pytest.raises(ValueError, match=r"intent.frozen='base': every parameter is in the head"):
        Intent(frozen="base").for_model(["classifier.weight"], ["classifier"])


@pytest.mark.trains
@pytest.mark.parametrize("run", ["finetune", "step", "watch"])
def test_parts_in_a_run(run):
    model, batches = tiny_distilbert(seed=0), toy_batches()[:3]
    model.base_model.requires_grad_(False)
    intent = Intent(trained="head", frozen="base")

    def body(model, batch, optimizer, scheduler):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    def traced():
        if run != "watch":
            step = {"step": body} if run == "step" else {}
            return finetune(model, batches, steps=3, lr=1e-3, intent=intent, probes=["loss"], **step)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        with watch(model, optimizer, intent=intent) as w:
            for batch in batches:
                w.loss(body(model, batch, optimizer, None))
        return w.trace

    trace = traced()
    assert (trace.intent.trained, trace.intent.frozen) == (("classifier.",), ("base_model.",))
    assert check_weights_move(trace).status == "pass"
    assert check_frozen_stay_frozen(trace).status == "pass"
    model.base_model.requires_grad_(True)
    assert check_frozen_stay_frozen(traced()).fault == "not_frozen"


@pytest.mark.trains
def test_the_trace_keeps_the_intent_without_its_tensors():
    model = tiny_distilbert()
    intent = Intent(pretrained={n: p.detach().clone() for n, p in model.named_parameters()}, dropout=True)
    trace = finetune(model, toy_batches()[:2], steps=2, intent=intent, probes=["loss"])
    assert trace.intent is not None
    assert trace.intent.pretrained is None
    assert trace.intent.dropout is True
    assert trace.intent.total_steps == 2  # ours: filled from the recipe
    assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.trains
def test_with_the_users_optimizer_nothing_is_filled_in():
    trace = finetune(
        tiny_distilbert, toy_batches()[:2], steps=2, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1)
    )
    assert trace.intent is None


def test_an_intent_survives_json():
    intent = Intent(trained="a", dropout=0.1, tied=[("a", "b")], no_decay=True, task="regression", head_init=0.02)
    trace = dataclasses.replace(example_trace(), intent=intent)
    assert Trace.from_json(trace.to_json()).intent == intent
    on = dataclasses.replace(example_trace(), intent=Intent(dropout=True))
    assert Trace.from_json(on.to_json()).intent.dropout is True
