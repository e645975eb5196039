"""A small DistilBERT with the founding question's head, and a task it can truly learn: a default that needs no download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import DistilBertConfig

VOCABULARY = 200
PAD, UNK, CLS, SEP = 0, 1, 2, 3
_FIRST_KEYWORD, _KEYWORDS, _FIRST_FILLER = 10, 8, 80
_WORDS = (5, 13)


class TinyClassifier(nn.Module):
    """The classifier of the founding question: ``DistilBertModel``, first token, two-layer head.

    ``forward`` takes ONE TUPLE ``(ids, length, attention_mask)`` and returns bare logits ``(rows, classes)``.
    """

    def __init__(self, config: DistilBertConfig, classes: int, std: float = 0.02) -> None:
        super().__init__()
        from transformers import DistilBertModel

        self.base_model = DistilBertModel(config)
        self.classifier = nn.Sequential(
            nn.Linear(config.dim, config.dim), nn.ReLU(), nn.Dropout(0.2), nn.Linear(config.dim, classes)
        )
        for layer in self.classifier:
            if isinstance(layer, nn.Linear):
                layer.weight.data.normal_(mean=0.0, std=std)
                layer.bias.data.zero_()

    def forward(self, input_: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Logits of a batch."""
        ids, _length, mask = input_
        logits: torch.Tensor = self.classifier(self.base_model(ids, attention_mask=mask)[0][:, 0])
        return logits


def tiny_distilbert(classes: int = 2, *, seed: int | None = None, **config: Any) -> TinyClassifier:
    """The founding question's classifier on a DistilBERT made from a config: 2 layers, width 64, 83,000 parameters.

    :param classes: number of classes, >= 2.
    :param seed: seed of the weights; None: torch's current random state, as any model (:func:`finetune` seeds a factory).
    :param config: fields of ``transformers.DistilBertConfig`` to change, e.g. ``n_layers=1``.

    >>> sum(p.numel() for p in tiny_distilbert().classifier.parameters())
    4290
    """
    from transformers import DistilBertConfig

    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(f"classes={classes!r}: expected a whole number >= 2")
    settings = {
        "vocab_size": VOCABULARY,
        "dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 128,
        "max_position_embeddings": 64,
        **config,
    }
    if seed is None:
        return TinyClassifier(DistilBertConfig(**settings), classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyClassifier(DistilBertConfig(**settings), classes)


def toy_batches(
    batches: int = 16, size: int = 16, *, classes: int = 2, seed: int = 0, keywords: float = 0.5
) -> list[tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Batches of a text-like classification task: ``((ids, length, attention_mask), labels)``.

    A row is ``[CLS] word ... [SEP]``, 5 to 12 words, padded to the longest row of its batch. A share ``keywords`` of its words
    belong to its class, the others say nothing. Other seeds make other rows of the same language: use one for held-out batches.

    :param batches: number of batches.  :param size: rows in each.  :param classes: 2 to 8.
    :param keywords: share of the words that tell the class, above 0 and up to 1.

    >>> (ids, length, mask), labels = toy_batches(1, 4)[0]
    >>> bool((mask.sum(1) == length).all()), sorted(set(labels.tolist()))
    (True, [0, 1])
    """
    for name, value, low, high in (
        ("batches", batches, 1, None),
        ("size", size, 1, None),
        ("classes", classes, 2, 8),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high and value > high):
            raise ValueError(
                f"{name}={value!r}: expected a whole number >= {low}" + (f" and <= {high}" if high else "")
            )
    if not 0 < keywords <= 1:
        raise ValueError(f"keywords={keywords!r}: expected a share above 0 and up to 1")
    g = torch.Generator().manual_seed(seed)
    # classes take turns in random order: no batch is without one, as long as it has room
    out = []
    for _ in range(batches):
        labels = (torch.arange(size) % classes)[torch.randperm(size, generator=g)]
        rows = [_sentence(int(y), keywords, g) for y in labels]
        length = torch.tensor([len(r) for r in rows])
        ids = torch.full((size, int(length.max())), PAD)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        out.append(((ids, length, (ids != PAD).long()), labels))
    return out


def _sentence(label: int, share: float, g: torch.Generator) -> list[int]:
    words = torch.randint(_FIRST_FILLER, VOCABULARY, (int(torch.randint(*_WORDS, (1,), generator=g)),), generator=g)
    count = max(1, round(len(words) * share))
    where = torch.randperm(len(words), generator=g)[:count]
    words[where] = _FIRST_KEYWORD + _KEYWORDS * label + torch.randint(_KEYWORDS, (count,), generator=g)
    return [CLS, *words.tolist(), SEP]
