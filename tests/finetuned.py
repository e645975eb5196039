"""Small models that the tests of finetune train, and what must be true of such a run."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import (
    Trace,
)

FAST = {"steps": 3, "lr": 1e-2}


class Net(nn.Module):
    """One tensor in, bare logits out."""

    def __init__(self, out=2, inside=8):
        super().__init__()
        self.body = nn.Linear(6, inside)
        self.classifier = nn.Linear(inside, out)

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x)))


class Keywords(Net):
    """Takes ``x`` by name and maybe labels; ``kind`` says what it returns."""

    def __init__(self, kind, **size):
        super().__init__(**size)
        self.kind = kind

    def forward(self, x, labels=None, scale=1.0):
        from transformers.modeling_outputs import SequenceClassifierOutput

        logits = super().forward(x) * scale
        loss = F.cross_entropy(logits, labels) if labels is not None else None
        return {
            "output": lambda: SequenceClassifierOutput(loss=loss, logits=logits),
            "output without loss": lambda: SequenceClassifierOutput(logits=logits),
            "dict": lambda: {"loss": loss, "logits": logits},
            "dict without loss": lambda: {"logits": logits},
            "tuple": lambda: (loss, logits) if loss is not None else (logits,),
            "tuple without loss": lambda: (logits, torch.zeros(3)),
            "logits": lambda: logits,
        }[self.kind]()


def named(rows, label="labels"):
    return [{"x": x, label: y} for x, y in rows]


def healthy(trace, steps=3):
    """It trained: as many steps as asked for, a finite loss at each, every element of the head moved."""
    assert len(trace.steps) == len(trace.iterations) == len(trace.losses) == steps
    assert all(math.isfinite(v) for v in trace.losses)
    assert trace.stopped is None
    assert trace.backward_error is None
    assert all(t.motion.share_changed > 0.5 for t in trace.tensors if t.part == "head")
    assert Trace.from_json(trace.to_json()) == trace
    return trace


CONFIG = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 2,
    "pad_token_id": 0,
}


ARCHITECTURES = {
    "DistilBert": (
        {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "vocab_size": 200},
        ("pre_classifier", "classifier"),
    ),
    "Bert": (CONFIG, ("classifier",)),
    "Roberta": ({**CONFIG, "max_position_embeddings": 64}, ("classifier",)),
    "Electra": ({**CONFIG, "embedding_size": 32}, ("classifier",)),
    "Albert": ({**CONFIG, "embedding_size": 32}, ("classifier",)),
    "GPT2": ({"vocab_size": 200, "n_embd": 32, "n_layer": 1, "n_head": 2, "pad_token_id": 0}, ("score",)),
    "Llama": (CONFIG, ("score",)),
    "XLNet": (
        {"vocab_size": 200, "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 32, "pad_token_id": 0},
        ("sequence_summary", "logits_proj"),
    ),
    "Funnel": (
        {
            "vocab_size": 200,
            "d_model": 32,
            "block_sizes": [1],
            "n_head": 2,
            "d_head": 16,
            "d_inner": 32,
            "num_decoder_layers": 1,
        },
        ("classifier",),
    ),
    "Bart": (
        {
            "vocab_size": 200,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "pad_token_id": 0,
            "eos_token_id": 3,
        },
        ("classification_head",),
    ),
}


def tiny_hf(name):
    import transformers

    torch.manual_seed(0)
    settings, _ = ARCHITECTURES[name]
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}ForSequenceClassification")(config)


def plain(trace):
    return dataclasses.replace(trace, seconds=0.0, training_seconds=0.0)
