"""A head on the first token, with and without a special token there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, DistilBertConfig, DistilBertModel

from pytest_ftcheck import check_output_depends_on_input, example_trace, finetune, toy_batches
from pytest_ftcheck.checks.inputs.probe.first_tokens import are_words, count_first_tokens
from pytest_ftcheck.checks.inputs.record import FirstTokens, Inputs, WordsMeasurement
from pytest_ftcheck.checks.learning import ENOUGH
from pytest_ftcheck.core.effect import Effect

WITH = [{"input_ids": ids, "attention_mask": mask, "labels": y} for (ids, _, mask), y in toy_batches(2, 32, seed=1)]
WITHOUT = [{**b, "input_ids": b["input_ids"][:, 1:], "attention_mask": b["attention_mask"][:, 1:]} for b in WITH]
LANGUAGES = [{**b, "input_ids": torch.cat([150 + b["labels"][:, None], b["input_ids"][:, 1:]], 1)} for b in WITH]
SIZE = {"vocab_size": 200, "max_position_embeddings": 64}


class Model(nn.Module):
    def __init__(self, pool, frozen=False):
        super().__init__()
        torch.manual_seed(0)
        self.base = DistilBertModel(DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, **SIZE))
        self.base.requires_grad_(not frozen)
        self.head, self.pool = nn.Linear(16, 2), pool

    def forward(self, input_ids, attention_mask):
        hidden = self.base(input_ids, attention_mask=attention_mask)[0]
        return self.head(self.pool(hidden, attention_mask))


def first(hidden, mask):
    return hidden[:, 0]


def mean(hidden, mask):
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def pooler():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(**sizes, **SIZE))


@pytest.mark.parametrize(
    ("model", "batches", "distinct", "alone"),
    [
        (lambda: Model(first), WITHOUT, True, True),
        (lambda: Model(first, frozen=True), WITHOUT, True, True),
        (pooler, WITHOUT, True, True),
        (lambda: Model(mean), WITHOUT, True, False),
        (lambda: Model(first), WITH, False, None),
        (lambda: Model(first), LANGUAGES, False, None),
    ],
    ids=["first", "frozen", "pooler", "mean", "special token", "a token for the language"],
)
def test_what_the_head_reads(model, batches, distinct, alone):
    trace = finetune(model(), batches, steps=2, lr=1e-3, head=None if model is pooler else "head", probes=("inputs",))
    found = trace.measured(Inputs).first_tokens
    assert (are_words(found), found.read_alone) == (distinct, alone)
    verdict = check_output_depends_on_input(trace)
    assert (verdict.status, verdict.fault) == (("advice", "first_token_varies") if alone else ("pass", ""))


def test_padding_on_the_left_is_not_counted():
    padded = [{"input_ids": nn.functional.pad(b["input_ids"], (3, 0)), "labels": b["labels"]} for b in WITHOUT]
    masks = [nn.functional.pad(b["attention_mask"], (3, 0)) for b in WITHOUT]
    found = count_first_tokens([{**b, "attention_mask": m} for b, m in zip(padded, masks, strict=True)], None, None)
    assert found == count_first_tokens(WITHOUT, None, None)
    assert count_first_tokens(WITHOUT[:0], None, None) is None
    assert count_first_tokens([torch.randn(32, 4)], None, None) is None


CHANGES = Effect(0.03, 0.01, 0.02)
WORDS = WordsMeasurement("after", 8, 8, CHANGES, other_words=CHANGES, base="base")


def judged(found, **changes):
    inputs = Inputs(8, words=(WORDS,), first_tokens=found)
    return check_output_depends_on_input(replace(example_trace(), measurements={"inputs": inputs}, **changes))


def test_advice_where_the_run_learns_a_fault_where_it_does_not():
    trace, found = example_trace(), FirstTokens(64, 44, 3, True)
    assert (judged(found).status, judged(found).fault) == ("advice", "first_token_varies")
    assert "64 rows begin with 44 different tokens (the most common one: 3 rows)" in judged(found).headline
    metrics = tuple(replace(m, last=m.first, p_value=1.0) for m in trace.metrics)
    assert judged(found, metrics=metrics, steps=(trace.steps * ENOUGH)[:ENOUGH]).status == "fail"
    assert judged(replace(found, read_alone=False)).status == judged(replace(found, read_alone=None)).status == "pass"
