"""Whether an alteration of the base makes its features worse: measured by a linear layer, judged beside how the run ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from pytest_ftcheck import check_base_computes_its_class, check_pretrained_kept, example_trace, finetune
from pytest_ftcheck.checks.head.base_twin_record import BaseTwin, Difference, TwinComparison
from pytest_ftcheck.checks.head.harm import NOT_MEASURED, harm_of_alteration
from pytest_ftcheck.checks.head.probe.readout import LEAST, compared
from pytest_ftcheck.checks.head.readout_record import Readout

HARMFUL = Readout(256, 204, 640, 0.25, 0.96, 0.60, 100, 8, 0.9)
ALTERED = TwinComparison(
    "bert", "BertModel", 2, 40, 11, 0.02, 7.6e-6, "sdpa", Difference("layer.1", "BertLayer", "output", 0.5)
)


# ---------------------------------------------------------------- the judgement
def harm(readout, **metric):
    trace = example_trace(measurements={"base_twin": BaseTwin((ALTERED,), (), readout)})
    return harm_of_alteration(replace(trace, metrics=(replace(trace.metrics[0], last=0.70, **metric),)))


def test_features_that_are_worse_are_a_fault_where_the_run_ends_below_the_unaltered_ones():
    found = harm(HARMFUL)
    assert found.status == "fail"
    assert found.sentence == (
        " At the start a linear layer on the base's features gets 60 % of 256 rows right, and 96 % on those of the unaltered base "
        "(p = 1.18e-21); the run ends at 70 %."
    )


@pytest.mark.parametrize(
    "change",
    [
        {"altered": 0.80},  # less than a third of what they say
        {"only_unaltered": 9, "only_altered": 3},  # by chance
        {"unaltered": 0.70, "altered": 0.40},  # the run makes up for it
        {"trained": 64},  # the run has read fewer rows than the linear layer
    ],
)
def test_else_it_is_advice(change):
    assert harm(replace(HARMFUL, **change)).status == "advice"


def test_a_metric_of_few_rows_or_of_the_users_own_shows_no_end():
    assert harm(HARMFUL, rows=4).status == "advice"
    assert harm(HARMFUL, source="the user's own").status == "advice"
    assert harm(None).notes == (NOT_MEASURED,)


# ---------------------------------------------------------------- two features
def task(rows=200):
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % 3
    return torch.randn(rows, 24, generator=g) + 2.0 * torch.nn.functional.one_hot(labels, 24), labels, g


def test_noise_instead_of_features_is_worse_and_others_of_the_same_use_are_not():
    x, y, g = task()
    noise = compared(x, torch.randn(x.shape, generator=g), y, 0)
    assert noise.unaltered > 0.8
    assert noise.lost > 0.8
    assert noise.p_value < 1e-6
    for same in (
        5 * x + 3,
        x @ torch.linalg.qr(torch.randn(24, 24, generator=g)).Q,
        x + 0.3 * torch.randn(x.shape, generator=g),
    ):
        assert compared(x, same, y, 0).p_value > 0.001
    assert compared(x, x.clone(), y, 0).change == 0
    assert compared(x, torch.full_like(x, float("nan")), y, 0).lost > 0.8


# ---------------------------------------------------------------- a base
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = BertModel(config)
    for p in model.parameters():
        p.data += 0.01 * torch.randn_like(p)
    model.embeddings.word_embeddings.weight.data.mul_(10)
    at = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(at)
    return at


def loaded(folder):
    torch.manual_seed(1)
    return BertForSequenceClassification.from_pretrained(folder, num_labels=3)


def words(count=12, size=16):
    """The first word, which the class is read off, of 3 groups of 12; then words that say nothing."""
    g = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        first = torch.randint(10, 46, (size, 1), generator=g)
        ids = torch.cat([first, torch.randint(46, 60, (size, 3), generator=g)], 1)
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (first[:, 0] - 10) // 12})
    return found


def measure(model, steps=2):
    return finetune(model, words(), steps=steps, lr=1e-4, probes=["base_twin", "loss"])


def test_zeroed_words_lose_what_they_said_and_unused_ones_nothing(folder):
    model = loaded(folder)
    table = model.bert.embeddings.word_embeddings.weight
    table.data[10:46].zero_()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    state = torch.get_rng_state()
    trace = measure(model, steps=30)
    readout = trace.measurements["base_twin"].readout
    assert (readout.lost > 0.5, readout.p_value < 1e-6) == (True, True), readout
    assert readout.rows >= LEAST
    assert check_pretrained_kept(trace).fault == "pretrained_changed"
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    unused = loaded(folder)
    unused.bert.embeddings.word_embeddings.weight.data[:10].zero_()
    verdict = check_pretrained_kept(measure(unused))
    assert (verdict.status, verdict.notes) == (
        "pass",
        ("1 tensor edited, which changes no feature of 192 rows: bert.embeddings.word_embeddings.weight",),
    )


def test_a_hook_that_hides_the_input_is_undone_for_the_unaltered_features(folder):
    model = loaded(folder)
    handle = model.bert.embeddings.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    trace = measure(model)
    readout = trace.measurements["base_twin"].readout
    assert readout.unaltered > readout.altered + 0.3
    assert list(model.bert.embeddings._forward_hooks) == [handle.id]
    assert check_base_computes_its_class(trace).fault == "base_altered"


def test_an_unaltered_base_pays_nothing(folder):
    assert measure(loaded(folder)).measurements["base_twin"].readout is None


@pytest.mark.parametrize("failing", [RuntimeError, KeyboardInterrupt])
def test_an_interrupt_leaves_weights_and_hooks_as_they_were(folder, monkeypatch, failing):
    def fail(*_):
        raise failing

    model = loaded(folder)
    model.bert.embeddings.word_embeddings.weight.data[10:46].zero_()
    handle = model.bert.embeddings.register_forward_hook(lambda _, __, out: 0.5 * out)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    monkeypatch.setattr("pytest_ftcheck.checks.head.probe.readout._called", fail)
    if failing is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            measure(model)
    else:  # the comparison with the twin stands without it
        found = measure(model).measurements["base_twin"]
        assert (found.readout, found.bases[0].first is not None) == (None, True)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert [key for m in model.modules() for key in (*m._forward_hooks, *m._forward_pre_hooks)] == [handle.id]
