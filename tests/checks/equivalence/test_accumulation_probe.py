"""Micro-batches of small real models: healthy ones agree up to rounding, each fault is found for its own reason."""

from __future__ import annotations

import pytest
import torch
from equivalent_models import (
    Words,
    loss_of,
    run,
    same_state,
    state_of,
    t5,
    t5_batches,
    tagger,
    token_batches,
    with_layer,
)
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import (
    Intent,
    check_accumulation_matches_large_batch,
    finetune,
    tiny_distilbert,
    toy_batches,
    watch,
)
from pytest_ftcheck.checks.equivalence.record import Accumulation

pytestmark = pytest.mark.trains


def judged(model, batches=None, **options):
    trace = run("accumulation", model, batches, **options)
    return check_accumulation_matches_large_batch(trace), trace.measured(Accumulation)


# ------------------------------------------------------------------------------------------ healthy
@pytest.mark.parametrize("model", [lambda: tiny_distilbert(seed=0), Words], ids=["distilbert", "lstm"])
def test_a_loss_that_is_a_mean_over_rows(model):
    v, found = judged(model)
    assert v.status == "pass"
    assert found.rows == (4, 4, 4, 4)
    assert found.accumulated.errors["rows"] < 1e-5
    assert found.accumulated.fit == pytest.approx((0.25,) * 4, abs=1e-3)


@pytest.mark.parametrize("size", [2, 3, 7, 17])
def test_rows_that_do_not_divide_evenly(size):
    v, found = judged(lambda: tiny_distilbert(seed=0), toy_batches(size=size), steps=2)
    assert v.status == "pass"
    assert sum(found.rows) == size
    assert found.accumulated.errors["rows"] < 1e-5


@pytest.mark.parametrize(("model", "batches"), [(tagger, token_batches), (t5, t5_batches)], ids=["tagger", "t5"])
def test_a_mean_over_tokens_is_weighted_by_tokens(model, batches):
    v, found = judged(model, batches())
    assert v.status == "pass"
    assert len(set(found.labels)) > 1
    assert found.accumulated.errors["labels"] < 1e-5
    assert found.accumulated.errors["rows"] > 1e-3
    assert "weigh each micro-batch by its labels" in v.notes[0]


def test_a_causal_model_counts_the_labels_behind_the_first():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=200, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    v, found = judged(lambda: GPT2LMHeadModel(config), t5_batches())
    assert v.status == "pass"
    assert "weighted by shifted labels" in v.headline
    assert found.accumulated.errors["shifted labels"] < 1e-5


def test_batch_normalisation_is_named_and_no_failure():
    v, found = judged(with_layer(lambda: nn.BatchNorm1d(32)))
    assert (v.status, v.fault) == ("advice", "statistics_of_micro_batches")
    assert found.statistics == ("classifier.1",)
    assert found.accumulated.averaged[1] > 0.01
    assert found.fixed_statistics.averaged[1] < 1e-5


def test_frozen_statistics_make_no_difference():
    def make():
        model = with_layer(lambda: nn.BatchNorm1d(32))()
        for p in model.classifier[1].parameters():
            p.requires_grad_(False)
        model.classifier[1].eval()
        return model

    v, found = judged(make)
    assert v.status == "pass"
    assert found.statistics == ()


def test_layer_and_group_normalisation_make_no_difference():
    assert judged(with_layer(lambda: nn.GroupNorm(4, 32)))[0].status == "pass"
    assert judged(with_layer(lambda: nn.LayerNorm(32)))[0].status == "pass"


def test_class_weights_are_no_failure():
    weights = torch.tensor([1.0, 5.0])
    v, found = judged(
        lambda: tiny_distilbert(seed=0), loss_fn=loss_of(lambda z, y: F.cross_entropy(z, y, weight=weights))
    )
    assert (v.status, v.fault) == ("advice", "weights_of_micro_batches_differ")
    labels = next(y for _, y in toy_batches(1))
    total = [float(weights[labels[i : i + 4]].sum()) for i in range(0, 16, 4)]
    assert found.accumulated.fit == pytest.approx([t / sum(total) for t in total], abs=1e-3)


def test_a_penalty_on_the_weights_is_the_same_in_every_micro_batch():
    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1]) + 0.01 * sum(p.square().sum() for p in model.parameters())

    assert judged(lambda: tiny_distilbert(seed=0), loss_fn=loss)[0].status == "pass"


# ------------------------------------------------------------------------------------------ faults
def test_a_summed_loss():
    v, found = judged(
        lambda: tiny_distilbert(seed=0), loss_fn=loss_of(lambda z, y: F.cross_entropy(z, y, reduction="sum"))
    )
    assert (v.status, v.fault) == ("fail", "sum_reduction")
    assert found.accumulated.errors["sum"] < 1e-5


def balance(z, y):
    """Cross-entropy, and a penalty on the predictions' mean over the batch."""
    return F.cross_entropy(z, y) + z.softmax(-1).mean(0).square().sum()


def by_root(z, y):
    return F.cross_entropy(z, y, reduction="sum") / len(y) ** 0.5


@pytest.mark.parametrize("loss", [balance, by_root])
def test_a_term_that_is_no_mean_over_rows(loss):
    v, _ = judged(lambda: tiny_distilbert(seed=0), loss_fn=loss_of(loss))
    assert (v.status, v.fault) == ("fail", "loss_not_a_mean")


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)


def test_a_module_that_mixes_rows_is_named():
    v, found = judged(with_layer(Centred))
    assert (v.status, v.fault) == ("fail", "rows_mixed")
    assert (found.mixes_rows, found.mixes_rows_class) == ("classifier.1", "Centred")


def test_an_lstm_that_keeps_its_state():
    v, found = judged(lambda: Words(stateful=True))
    assert (v.status, v.fault) == ("fail", "state_carried_over")
    assert found.carried == ("last",)
    assert found.accumulated.averaged[1] < 1e-5


def test_an_lstm_that_keeps_its_graph():
    v, found = judged(lambda: Words(stateful=True, detached=False), steps=1)
    assert (v.status, v.fault) == ("fail", "state_carried_over")
    assert "backward through the graph a second time" in v.headline
    assert found.carried == ("last",)


# ------------------------------------------------------------------------------------------ what is left alone
@pytest.mark.parametrize("batch_norm", [False, True])
def test_everything_is_as_before(batch_norm):
    model = (with_layer(lambda: nn.BatchNorm1d(32)) if batch_norm else lambda: Words(stateful=True))()
    before = state_of(model)
    run("accumulation", model)
    assert same_state(before, state_of(model))
    assert getattr(model, "last", None) is None


def test_the_training_is_the_same_with_and_without_it():
    losses = [run(probe, lambda: tiny_distilbert(seed=0)).losses for probe in ("loss", "accumulation")]
    assert losses[0] == losses[1]


def test_everything_is_as_before_when_the_loss_raises():
    calls = []

    def loss(model, batch):
        calls.append(len(batch[1]))
        if len(batch[1]) == 4:
            raise KeyboardInterrupt
        return F.cross_entropy(model(batch[0]), batch[1])

    model = tiny_distilbert(seed=0)
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        run("accumulation", model, loss_fn=loss)
    assert 4 in calls
    assert same_state(before, state_of(model))


# ------------------------------------------------------------------------------------------ what does not apply
def test_batches_that_cannot_be_divided():
    trace = run("accumulation", lambda: tiny_distilbert(seed=0), toy_batches(size=1))
    assert "single row" in trace.skipped["accumulation"]
    assert check_accumulation_matches_large_batch(trace).status == "skipped"
    extra = [{"x": torch.randn(8, 6), "scale": torch.ones(3), "labels": torch.arange(8) % 2} for _ in range(4)]

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = nn.Linear(6, 2)

        def forward(self, x, scale):
            return self.classifier(x) * scale[0]

    assert (
        "another length than its rows" in run("accumulation", Scaled, extra, head="classifier").skipped["accumulation"]
    )


def test_as_many_micro_batches_as_are_declared():
    _, found = judged(lambda: tiny_distilbert(seed=0), intent=Intent(accumulation=8))
    assert found.rows == (2,) * 8


def test_a_watched_loop():
    model, batches = tiny_distilbert(seed=0), toy_batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, optimizer, probe_batch=batches[0], probes=["accumulation"]) as w:
        for inputs, labels in batches[:4]:
            optimizer.zero_grad()
            w.loss(F.cross_entropy(model(inputs), labels)).backward()
            optimizer.step()
    assert check_accumulation_matches_large_batch(w.trace).status == "pass"


def test_it_runs_only_when_it_is_named_or_asked_for():
    trace = finetune(lambda: tiny_distilbert(seed=0), toy_batches(), lr=1e-3, steps=2)
    assert trace.measured(Accumulation) is None
    assert check_accumulation_matches_large_batch(trace).status == "pass"
