"""The head that finetune finds, or that is named."""

from __future__ import annotations

import pytest
import torch
from finetuned import ARCHITECTURES, FAST, tiny_hf
from torch import nn

from pytest_ftcheck import (
    finetune,
    toy_batches,
)

# ------------------------------------------------------------------ heads


def hf_batches(count=2):
    return [{"input_ids": ids, "attention_mask": mask, "labels": y} for (ids, _, mask), y in toy_batches(count, 8)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_head_of_every_architecture_is_found(name):
    trace = finetune(tiny_hf(name), hf_batches(), steps=2, lr=1e-3)
    assert set(trace.head) == set(ARCHITECTURES[name][1])
    assert {t.part for t in trace.tensors} == {"head", "base"}
    assert trace.reading.loss == "the model's own"
    assert len(trace.steps) == 2


def test_a_question_answering_head_is_found():
    from transformers import DistilBertForQuestionAnswering

    from pytest_ftcheck.instruments.parameter_roles import find_head

    config = tiny_hf("DistilBert").config
    assert find_head(DistilBertForQuestionAnswering(config), None) == ("qa_outputs",)


def test_start_and_end_positions_need_a_loss_fn_and_then_work():
    from transformers import DistilBertForQuestionAnswering

    model = DistilBertForQuestionAnswering(tiny_hf("DistilBert").config)
    batches = [
        {"input_ids": b["input_ids"], "start_positions": b["labels"], "end_positions": b["labels"] + 1}
        for b in hf_batches()
    ]
    trace = finetune(model, batches, loss_fn=lambda m, b: m(**b).loss, steps=2, lr=1e-3)
    assert len(trace.steps) == 2
    assert trace.head == ("qa_outputs",)


def test_peft_like_names_lead_to_the_shallowest_head():
    class Saved(nn.Module):
        def __init__(self):
            super().__init__()
            self.original_module = nn.Linear(8, 2)
            self.modules_to_save = nn.ModuleDict({"default": nn.Linear(8, 2)})

        def forward(self, h):
            return self.modules_to_save["default"](h)

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 8)
            self.classifier = Saved()

        def forward(self, x):
            return self.classifier(self.body(x))

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_model = nn.Module()
            self.base_model.model = Inner()

        def forward(self, x):
            return self.base_model.model(x)

    trace = finetune(Wrapped(), [(torch.randn(8, 6), torch.arange(8) % 2)], **FAST)
    assert trace.head == ("base_model.model.classifier",)
    assert trace.tensor("base_model.model.classifier.modules_to_save.default.weight").part == "head"


def test_a_head_behind_the_base_model_is_found_whatever_its_name():
    from transformers import DistilBertModel

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = DistilBertModel(tiny_hf("DistilBert").config)
            self.verdict = nn.Linear(32, 2)

        def forward(self, input_ids, attention_mask):
            return self.verdict(self.encoder(input_ids, attention_mask=attention_mask)[0][:, 0])

    trace = finetune(Own(), hf_batches(), steps=2)
    assert trace.head == ("verdict",)
    assert trace.reading.inputs == "keywords input_ids, attention_mask"


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.second(self.first(x))


def test_an_unclear_head_is_an_error_that_lists_the_candidates(rows):
    with pytest.raises(ValueError, match=r"head=None: no head found in Plain.*pass head=.*first, second"):
        finetune(Plain(), rows, **FAST)


@pytest.mark.parametrize("head", ["second", "second.", ["second"], ("second.weight", "second.bias")])
def test_a_head_may_be_named(rows, head):
    trace = finetune(Plain(), rows, head=head, **FAST)
    assert {t.name for t in trace.tensors if t.part == "head"} == {"second.weight", "second.bias"}


def test_an_unknown_head_is_an_error_that_lists_the_candidates(rows):
    with pytest.raises(ValueError, match=r"head='third'.*candidates: first, second"):
        finetune(Plain(), rows, head="third", **FAST)
