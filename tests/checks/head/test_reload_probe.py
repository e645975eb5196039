"""The reload probe on small real models: which tensors that are not saved were drawn at random."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import check_reload_keeps_head, finetune
from pytest_ftcheck.checks.head.probe.reload import looks_random


class Prototypes(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.lin = nn.Linear(16, 16)
        drawn = torch.randn(3, 16)
        if how == "attribute":
            self.prototypes = drawn
        elif how == "smooth":
            self.register_buffer("prototypes", torch.arange(48.0).reshape(3, 16).sin(), persistent=False)
        else:
            self.register_buffer("prototypes", drawn, persistent=how == "saved")

    def forward(self, x):
        return self.lin(x) @ self.prototypes.T


@pytest.mark.parametrize(
    ("how", "fault"),
    [("not saved", "buffer_not_saved"), ("attribute", "buffer_not_saved"), ("saved", ""), ("smooth", "")],
)
def test_random_numbers_that_are_not_saved(how, fault):
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    inputs = [torch.randn(16, 8, generator=g) for _ in range(6)]
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), Prototypes(how))
    trace = finetune(
        model,
        [(x, x[:, :3].argmax(-1)) for x in inputs],
        loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        forward=lambda m, b: m(b[0]),
        head="2",
        steps=4,
        lr=1e-3,
        probes=["loss", "head_state"],
    )
    assert check_reload_keeps_head(trace).fault == fault


def test_tables_do_not_look_random():
    at = torch.arange(32.0)[:, None] / 10000 ** (torch.arange(0, 16, 2) / 16)
    sine = torch.stack([at.sin(), at.cos()], -1).reshape(32, 16)
    for table in (
        sine,
        1 / 10000 ** (torch.arange(0, 64, 2) / 64),
        torch.ones(40),
        torch.full((8, 8), -1e9).triu(1),
        torch.randn(5),
    ):
        assert not looks_random(table)
    found = [looks_random(torch.randn(3, 32, generator=torch.Generator().manual_seed(s))) for s in range(50)]
    assert sum(found) >= 48


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers for it
@pytest.mark.parametrize("kind", ["prompts", "p-tuning"])
def test_prompts_are_saved_as_what_their_encoder_computes(kind):
    import peft
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    settings = {
        "prompts": peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
        "p-tuning": peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=4, encoder_hidden_size=16),
    }[kind]
    g = torch.Generator().manual_seed(1)
    ids = [torch.randint(5, 60, (8, 6), generator=g) for _ in range(4)]
    batches = [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": (x[:, 0] > 30).long()} for x in ids]
    make = lambda: peft.get_peft_model(BertForSequenceClassification(config), settings)  # noqa: E731
    verdict = check_reload_keeps_head(finetune(make, batches, steps=4, lr=1e-2, probes=["loss", "head_state"]))
    assert (verdict.status, verdict.fault) == ("pass", "")
