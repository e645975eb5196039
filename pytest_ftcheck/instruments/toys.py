"""A tiny DistilBERT with a two-layer head, and a task that it can learn: no download needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..core import arguments
from ..core.formatting import as_given, one_line
from .on_cpu import on_cpu

if TYPE_CHECKING:
    from transformers import DistilBertConfig

VOCABULARY = 200
PAD, UNK, CLS, SEP = 0, 1, 2, 3
_FIRST_KEYWORD, _KEYWORDS, _FIRST_FILLER = 10, 8, 80
_WORDS = (5, 13)
#: Rows of `toy_batches`, which are made one by one: so many take some seconds.
MOST_ROWS = 100_000


class TinyClassifier(nn.Module):
    """``DistilBertModel`` and a two-layer head on its first token.

    ``forward`` takes one tuple ``(ids, length, attention_mask)`` and returns bare logits ``(rows, classes)``.
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
    """A classifier on a DistilBERT with random weights: 2 layers, width 64, 83,000 parameters, a two-layer head.

    :param classes: number of classes, >= 2.
    :param seed: seed of the weights, which are then made on the CPU; None: torch's current random state and default device
        (:func:`finetune` seeds a factory).
    :param config: fields of ``transformers.DistilBertConfig`` to change, e.g. ``n_layers=1``.

    >>> sum(p.numel() for p in tiny_distilbert().classifier.parameters())
    4290
    """
    from transformers import DistilBertConfig

    arguments.whole("classes", classes, least=2, most=arguments.MOST_ITEMS)
    arguments.seed("seed", seed, optional=True)
    settings = {
        "vocab_size": VOCABULARY,
        "dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 128,
        "max_position_embeddings": 64,
        **config,
    }
    made = _config(DistilBertConfig, settings, config)
    if seed is None:
        return TinyClassifier(made, classes)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # of no other device: their states are the user's
        return TinyClassifier(made, classes)


def _config(kind: type[DistilBertConfig], settings: dict[str, Any], given: dict[str, Any]) -> DistilBertConfig:
    """The config; what transformers says of a wrong field names neither the field nor its value.

    :raises TypeError, ValueError: names the field.
    """
    default = kind()
    known = default.to_dict()
    for name, value in given.items():
        if name not in known and not any(hasattr(default, n) for n in (name, f"_{name}")):
            raise TypeError(f"{name}={as_given(value)}: DistilBertConfig has no field of this name")
        _check_field(name, value, known.get(name))
    for sizes in (("vocab_size", "dim"), ("max_position_embeddings", "dim"), ("hidden_dim", "dim", "n_layers")):
        arguments.together("weights", **{name: settings[name] for name in sizes})
    arguments.together(
        "weights", arguments.MOST_NUMBERS // settings["dim"], dim=settings["dim"], n_layers=settings["n_layers"]
    )
    if settings["dim"] % settings["n_heads"]:
        name = "n_heads" if "n_heads" in given else "dim"
        raise ValueError(f"{name}={settings[name]}: expected a dim ({settings['dim']}) that n_heads divides")
    try:
        return kind(**settings)
    except Exception as error:  # noqa: BLE001 - transformers 5 validates fields by exceptions of its own
        why = one_line(str(error), 200)
        raise ValueError(f"{', '.join(given)}: DistilBertConfig refuses them: {why}") from None


def _check_field(name: str, value: Any, default: Any) -> None:
    """The value has the type of the field's default."""
    if isinstance(default, bool):
        arguments.flag(name, value)
    elif isinstance(default, int) and default > 0:
        arguments.whole(name, value, least=1)
    elif isinstance(default, (int, float)):
        arguments.number(name, value, least=0, most=1 if "dropout" in name else None)
    elif name == "activation" and not callable(value):
        from transformers.activations import ACT2FN

        arguments.one_of(name, value, tuple(ACT2FN))


@on_cpu
def toy_batches(
    batches: int = 16, size: int = 16, *, classes: int = 2, seed: int = 0, keywords: float = 0.5
) -> list[tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Batches of a text-like classification task: ``((ids, length, attention_mask), labels)``.

    A row is ``[CLS] word ... [SEP]``, 5 to 12 words, padded to the longest row of its batch. A share ``keywords`` of its words
    indicate its class, the others are noise. Another seed gives other rows of the same task: use one for held-out batches.

    :param batches: number of batches.  :param size: rows in each.  :param classes: 2 to 8.
    :param keywords: share of the words that indicate the class, above 0 and at most 1.

    >>> (ids, length, mask), labels = toy_batches(1, 4)[0]
    >>> bool((mask.sum(1) == length).all()), sorted(set(labels.tolist()))
    (True, [0, 1])
    """
    arguments.whole("batches", batches, least=1, most=arguments.MOST_ITEMS)
    arguments.whole("size", size, least=1, most=arguments.MOST_ITEMS)
    arguments.whole("classes", classes, least=2, most=8)
    arguments.number("keywords", keywords, above=0, most=1)
    arguments.seed("seed", seed)
    arguments.together("rows", MOST_ROWS, batches=batches, size=size)
    g = torch.Generator().manual_seed(seed)
    # all classes in random order: each batch with enough rows has every class
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
