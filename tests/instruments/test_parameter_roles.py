"""Which parameters are the head's: as given, by name, and by what lies beside a pretrained base."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_ftcheck import check_head_init, finetune, tiny_distilbert, toy_batches, watch
from pytest_ftcheck.instruments.parameter_roles import find_head, outside_head

transformers = pytest.importorskip("transformers")
SIZE = {"vocab_size": 64, "num_labels": 2, "pad_token_id": 0}


def distilbert(base=False):
    config = transformers.DistilBertConfig(**SIZE, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    return (transformers.DistilBertModel if base else transformers.DistilBertForSequenceClassification)(config)


def deberta():
    config = transformers.DebertaV2Config(
        **SIZE, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    return transformers.DebertaV2ForSequenceClassification(config)


class Own(nn.Module):
    """A model of one's own around a base of transformers."""

    def __init__(self):
        super().__init__()
        self.types = nn.Embedding(2, 16)
        self.base, self.mix, self.norm, self.classifier = (
            distilbert(base=True),
            nn.Sequential(nn.Linear(16, 16), nn.Tanh()),
            nn.LayerNorm(16),
            nn.Linear(16, 2),
        )

    def forward(self, input_ids, attention_mask):
        hidden = self.base(input_ids, attention_mask=attention_mask)[0][:, 0] + self.types.weight[0]
        return self.classifier(self.norm(self.mix(hidden)))


@pytest.mark.parametrize(
    ("model", "head", "outside"),
    [
        (distilbert, "classifier", ("pre_classifier",)),
        (distilbert, ["pre_classifier", "classifier"], ()),
        (deberta, "classifier", ("pooler",)),
        (Own, "classifier", ("mix",)),
        (Own, ["mix", "classifier"], ()),
        (tiny_distilbert, "classifier", ()),
        (lambda: nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Linear(4, 2)}), "head", ()),
    ],
)
def test_new_modules_that_the_head_leaves_out(model, head, outside):
    made = model()
    assert outside_head(made, find_head(made, head)) == outside


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (distilbert, ("pre_classifier", "classifier")),
        (deberta, ("pooler", "classifier")),
        (Own, ("mix", "classifier")),
        (tiny_distilbert, ("classifier",)),
    ],
)
def test_the_head_that_is_found_has_all_that_is_new(model, head):
    assert find_head(model(), None) == head


def test_frozen_modules_are_left_as_they_are():
    model = Own()
    model.mix.requires_grad_(False)
    assert outside_head(model, ("classifier",)) == ()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_under_peft():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"])
    model = peft.get_peft_model(distilbert(), config)
    both = ("base_model.model.pre_classifier", "base_model.model.classifier")
    assert find_head(model, None) == both
    assert outside_head(model, both) == ()
    assert outside_head(model, both[1:]) == both[:1]
    prompted = peft.get_peft_model(
        distilbert(),
        peft.PromptEncoderConfig(
            task_type="SEQ_CLS",
            num_virtual_tokens=2,
            token_dim=16,
            num_layers=1,
            num_attention_heads=2,
            encoder_hidden_size=8,
        ),
    )
    assert not any("prompt" in n for n in outside_head(prompted, find_head(prompted, "base_model.classifier")))


# ---------------------------------------------------------------------------------------- in a run
def rows():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 64, (2, 8, 6), generator=g)
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": torch.arange(8) % 2} for i in ids]


def by_finetune(head):
    return finetune(distilbert(), rows(), steps=2, head=head)


def by_step(head):
    def step(model, batch, optimizer, scheduler):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        return loss

    return finetune(distilbert(), rows(), steps=2, head=head, step=step)


def by_watch(head):
    model = distilbert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watch(model, optimizer, head=head) as w:
        for batch in rows():
            optimizer.zero_grad()
            w.loss(model(**batch).loss).backward()
            optimizer.step()
    return w.trace


@pytest.mark.parametrize("run", [by_finetune, by_step, by_watch])
def test_a_head_that_is_named_in_part_is_noted_and_an_advice(run):
    trace = run("classifier")
    assert any("pre_classifier is counted to the base" in note for note in trace.notes)
    verdict = check_head_init(trace)
    assert (verdict.status, verdict.fault) == ("advice", "head_incomplete")
    assert "pre_classifier is not part of the head as declared" in verdict.headline
    for head in (None, ["pre_classifier", "classifier"]):
        trace = run(head)
        assert trace.head == ("pre_classifier", "classifier")
        assert not any("pre_classifier" in note for note in trace.notes)
        assert check_head_init(trace).status == "pass"


def test_toy_models_have_no_such_note():
    assert (
        finetune(tiny_distilbert, toy_batches(), steps=1).notes
        == finetune(tiny_distilbert, toy_batches(), steps=1, head="classifier").notes
    )
