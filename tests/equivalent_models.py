"""Small real models on which the probes of `checks/equivalence` are tried, and what must be as before afterwards."""

from __future__ import annotations

import torch
from torch import nn

from pytest_ftcheck import finetune, tiny_distilbert, toy_batches


class Words(nn.Module):
    """An LSTM over the toy task's words; ``stateful`` keeps its last state for the next batch."""

    def __init__(self, *, stateful=False, detached=True):
        super().__init__()
        self.words = nn.Embedding(200, 32)
        self.lstm = nn.LSTM(32, 32, num_layers=2, dropout=0.1)
        self.classifier = nn.Linear(32, 2)
        self.stateful, self.detached, self.last = stateful, detached, None

    def forward(self, inputs):
        words = self.words(inputs[0]).transpose(0, 1)
        before = self.last if self.last is not None and self.last[0].shape[1] == words.shape[1] else None
        outputs, state = self.lstm(words, before)
        if self.stateful:
            self.last = tuple(s.detach() if self.detached else s for s in state)
        return self.classifier(outputs[-1])


def with_layer(layer):
    """A tiny DistilBERT whose head has this layer inside."""

    def make():
        model = tiny_distilbert(seed=0)
        model.classifier = nn.Sequential(nn.Linear(64, 32), layer(), nn.ReLU(), nn.Linear(32, 2))
        return model

    return make


def tagger():
    """A tiny DistilBERT that labels every token, as transformers has it."""
    from transformers import DistilBertConfig, DistilBertForTokenClassification

    return DistilBertForTokenClassification(
        DistilBertConfig(vocab_size=200, dim=32, n_layers=1, n_heads=2, hidden_dim=64, num_labels=3)
    )


def token_batches(count=4):
    """Batches of the toy task with a label a token; padding is not counted, and later rows of a batch are longer."""
    batches = []
    for (ids, length, mask), _ in toy_batches(count):
        order = length.argsort()
        ids, mask = ids[order], mask[order]
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": (ids % 3).masked_fill(mask == 0, -100)})
    return batches


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=200, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
        )
    )  # fmt: skip


def t5_batches(count=4):
    return [{**b, "labels": b["input_ids"].masked_fill(b["attention_mask"] == 0, -100)} for b in token_batches(count)]


def loss_of(function):
    """A ``loss_fn`` from a function of logits and labels."""
    return lambda model, batch: function(model(batch[0]), batch[1])


def run(probe, model, batches=None, **options):
    """A fine-tune with this probe alone; a few steps with a learning rate that moves a new head."""
    if "optimizer" not in options:
        options.setdefault("lr", 1e-3)
    return finetune(model, batches or toy_batches(), **{"steps": 12, "probes": [probe], **options})


def state_of(model):
    """Every tensor, mode, flag, gradient and plain attribute of a model, to be compared with itself later."""
    return {
        "tensors": {
            n: (t.data_ptr(), t.detach().clone()) for n, t in [*model.named_parameters(), *model.named_buffers()]
        },
        "flags": {n: (p.requires_grad, p.grad) for n, p in model.named_parameters()},
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "plain": [{k: v for k, v in vars(m).items() if isinstance(v, (int, float, str))} for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def same_state(a, b):
    tensors = all(
        a["tensors"][n][0] == b["tensors"][n][0] and torch.equal(a["tensors"][n][1], b["tensors"][n][1])
        for n in a["tensors"]
    )
    return (
        tensors
        and torch.equal(a["random"], b["random"])
        and all(a[k] == b[k] for k in ("flags", "modes", "hooks", "plain"))
    )
