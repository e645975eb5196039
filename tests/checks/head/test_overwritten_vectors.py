"""base_computes_its_class: gains of norms and biases that no training leaves behind, and starts that must not count as such."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from pytest_ftcheck import (
    Intent,
    check_base_computes_its_class,
    diagnose,
    example_trace,
    finetune,
    tiny_distilbert,
    toy_batches,
)
from pytest_ftcheck.checks.head.base_twin_record import BaseTwin, FilledVector, TwinComparison, VectorStarts
from pytest_ftcheck.checks.head.record import Pretrained
from pytest_ftcheck.instruments.tiny_architectures import tiny
from pytest_ftcheck.instruments.tiny_tasks import keyword_batches

SAME = TwinComparison("bert", "BertModel", 2, 40, 40, 0.0, 7.6e-6)


def judge(vectors, *, learns=True, **measurements):
    trace = example_trace(measurements={"base_twin": BaseTwin((replace(SAME, vectors=vectors),)), **measurements})
    if not learns:
        points = tuple(replace(p, reference=0.7) for p in trace.probe_loss.points)
        metrics = (replace(trace.metrics[0], last=0.5, baseline=0.5),)
        trace = replace(trace, probe_loss=replace(trace.probe_loss, points=points), metrics=metrics)
    return check_base_computes_its_class(trace)


def filled(value, of_class):
    return VectorStarts(240, 0, (FilledVector("embeddings.LayerNorm.weight", value, of_class),))


@pytest.mark.parametrize(
    ("vectors", "status"),
    [
        (filled(20.0, 1.0), "fail"),
        (filled(3.0, 0.0), "fail"),
        (filled(float("nan"), 0.0), "fail"),
        (filled(1.51, 1.0), "fail"),
        (filled(1.49, 1.0), "pass"),
        (filled(0.51, 1.0), "pass"),
        (VectorStarts(240, 60), "fail"),
        (VectorStarts(240, 59), "pass"),
        (VectorStarts(99, 50), "pass"),  # too few to tell
        (None, "pass"),
    ],
)
def test_the_limits(vectors, status):
    verdict = judge(vectors, learns=False)
    assert verdict.status == status
    assert verdict.fault == ("base_vectors_overwritten" if status == "fail" else "")
    assert judge(vectors).status == ("advice" if status == "fail" else "pass")


def test_what_was_compared_with_a_checkpoint_is_left_to_that_comparison():
    assert judge(filled(20.0, 1.0), learns=False, pretrained=Pretrained(40, 40)).status == "pass"


def test_wording():
    assert judge(filled(20.0, 1.0), learns=False).headline == (
        "1 gain or bias vector of bert start filled with another value than BertModel gives: embeddings.LayerNorm.weight with 20.0 in "
        "place of 1.00."
    )
    assert (
        judge(VectorStarts(240, 115)).headline
        == "48 % of the 240 gains of norms in bert start below 0; BertModel starts them at 1."
    )


# ---------------------------------------------------------------- real models
def norms(model, change):
    with torch.no_grad():
        for module in model.base_model.modules():
            if isinstance(module, nn.LayerNorm):
                change(module)
    return model


def everything_at_random(model):
    for p in model.parameters():
        nn.init.normal_(p, 0, 0.02)
    return model


def start(model, batches=None, **settings):
    batches = toy_batches(4, 8) if batches is None else batches
    trace = finetune(model, batches, steps=1, probes=["base_twin", "loss"], **settings)
    (base,) = trace.measured(BaseTwin).bases
    return trace, base.vectors


@pytest.mark.trains
@pytest.mark.parametrize(
    "change",
    [
        lambda m: norms(m, lambda norm: norm.weight.mul_(20)),
        lambda m: norms(m, lambda norm: norm.bias.add_(3)),
        everything_at_random,
    ],
)
def test_overwritten_vectors_are_named(change):
    verdict = check_base_computes_its_class(start(change(tiny_distilbert(seed=0)))[0])
    assert verdict.fault == "base_vectors_overwritten"


@pytest.mark.trains
def test_the_cause_of_outputs_that_lost_the_input():
    """Signals die in gains of 0.02; nothing is wrong with the mask."""
    trace = finetune(everything_at_random(tiny_distilbert(seed=0)), toy_batches(), steps=20, lr=1e-3)
    assert diagnose(trace).causes[0].fault == "base_vectors_overwritten"


@pytest.mark.trains
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m,
        lambda m: norms(m, lambda norm: norm.weight.normal_(0.8, 0.2)),  # as a training leaves them
        lambda m: (
            m.base_model.apply(lambda part: isinstance(part, nn.Linear) and nn.init.xavier_uniform_(part.weight)) and m
        ),
    ],
)
def test_sound_starts_are_silent(change):
    assert check_base_computes_its_class(start(change(tiny_distilbert(seed=0)))[0]).status == "pass"


@pytest.mark.trains
@pytest.mark.parametrize("kind", ["gemma", "llama"])  # gains of 1 + weight, and no norm of torch's
def test_other_norms_start_as_their_class_says(kind):
    torch.manual_seed(0)
    model = tiny(kind)
    trace, vectors = start(model, keyword_batches(model.config))
    assert (vectors.filled, vectors.negative) == ((), 0)
    assert check_base_computes_its_class(trace).status == "pass"


@pytest.mark.trains
def test_declared_values_are_compared_by_the_other_check():
    model = tiny_distilbert(seed=0)
    declared = {n: v.clone() for n, v in model.base_model.state_dict(prefix="base_model.").items()}
    trace, _ = start(norms(model, lambda norm: norm.weight.mul_(20)), intent=Intent(pretrained=declared))
    assert check_base_computes_its_class(trace).status == "pass"
