"""Tasks that a tiny model of any architecture learns within some sixty steps, and their batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .batches import device_of, to_device
from .configs import config_of
from .on_cpu import on_cpu
from .tasks import IGNORED, earlier
from .undisturbed import quiet

#: Classes of a tiny model.
CLASSES = 3
#: Batches of a task, rows in each, longest row, keywords in every row.
_BATCHES, _ROWS, _LENGTH, _KEYWORDS = 6, 8, 16, 5
_CHARACTERS = 128
#: The first id that is a word: special tokens usually come before. That of the mask token.
_FIRST, _MASK = 10, 3
#: Different keywords of a class, if the vocabulary is large enough.
_WORDS = 8
#: Classes in the labels, at most.
_MOST_CLASSES = 8
#: Where the question of a row ends.
_QUESTION = 3
#: Answers to choose from.
_CHOICES = 4
#: Topics of the texts of language models, and the words of each, which follow each other in turn.
_TOPICS, _WORDS_OF_TOPIC = 6, 4
#: Share of the words that are masked, as in BERT's training.
_MASKED = 0.15
#: Tokens of the longest target of seq2seq, its last one included.
_TARGET = 7
#: Relative difference up to which a model's own loss is one that was computed from its logits.
SAME_LOSS = 1e-3
#: Side of an image, and of its patches.
_SIDE, _PATCH = 16, 8

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TinyTask:
    """A task that transformers has classes for."""

    #: ``MODEL_FOR_..._MAPPING_NAMES`` of transformers.
    mapping: str
    #: Batches for a model with this config.
    batches: Callable[[Any], list[Batch]]
    #: Settings of the model's config that the task needs.
    config: Mapping[str, Any] = field(default_factory=dict)
    #: Arguments of ``finetune`` that it needs.
    arguments: Mapping[str, Any] = field(default_factory=dict)
    #: Whether its inputs are token ids, and not images.
    reads_text: bool = True


# ---------------------------------------------------------------------- rows of token ids
class _Text:
    """Draws rows of 9 to 16 token ids for a model with this config, the same ones each time."""

    def __init__(self, config: Any) -> None:
        self.config = config.get_text_config() if hasattr(config, "get_text_config") else config
        # CANINE reads characters, and has no vocabulary
        size = getattr(self.config, "vocab_size", None) or (
            _CHARACTERS if hasattr(self.config, "num_hash_buckets") else None
        )
        if not isinstance(size, int):
            raise ValueError("the model's config has no vocab_size: pass batches")
        self.size = size
        pad, end = (self._token(name) for name in ("pad_token_id", "eos_token_id"))
        self.pad, self.end = 0 if pad is None else pad, 2 if end is None else end
        self.g = torch.Generator().manual_seed(0)

    def _token(self, name: str) -> int | None:
        found = getattr(self.config, name, None)
        if isinstance(found, (list, tuple)):  # Llama 3 has several
            found = found[0] if found else None
        return found if isinstance(found, int) and 0 <= found < self.size else None

    def require(self, words: int, purpose: str) -> None:
        """``ValueError`` unless the vocabulary has so many words."""
        if self.size - _FIRST < words:
            raise ValueError(f"the model's vocabulary of {self.size} words is too small for {purpose}: pass batches")

    def classes(self, count: int) -> torch.Tensor:
        """A class for each row: all of them in random order, so that each batch with enough rows has every class."""
        return (torch.arange(_ROWS) % count)[torch.randperm(_ROWS, generator=self.g)]

    def draw(self, first: int, last: int, *shape: int) -> torch.Tensor:
        """Numbers from ``first`` to ``last - 1``."""
        return torch.randint(first, last, shape, generator=self.g)

    def lengths(self, rows: int = _ROWS) -> torch.Tensor:
        """The length of each row; the first one is as long as a row can be."""
        length = self.draw(_LENGTH // 2 + 1, _LENGTH + 1, rows)
        length[0] = _LENGTH
        return length

    def batch(self, ids: torch.Tensor, length: torch.Tensor, **labels: torch.Tensor) -> Batch:
        """The ids cut to their lengths, ended and padded on the right, with their mask; and the labels."""
        ids[torch.arange(len(ids)), length - 1] = self.end
        mask = (torch.arange(ids.shape[1]) < length[:, None]).long()
        ids = torch.where(mask.bool(), ids, torch.tensor(self.pad))
        return {"input_ids": ids, "attention_mask": mask, **labels} | self._views(ids, mask)

    def _views(self, ids: torch.Tensor, mask: torch.Tensor) -> Batch:
        """Further inputs of RoCBERT, and the place of each word on its page for models of documents."""
        views = {}
        for part in ("shape", "pronunciation"):
            if isinstance(count := getattr(self.config, f"{part}_vocab_size", None), int):
                views[f"input_{part}_ids"] = self.draw(0, count, *ids.shape) * mask
        if isinstance(places := getattr(self.config, "max_2d_position_embeddings", None), int):
            corners = self.draw(0, places // 2, 2, *ids.shape, 2)
            views["bbox"] = torch.cat([corners[0], corners[0] + corners[1]], dim=-1) * mask[..., None]
        elif hasattr(self.config, "dim_bbox"):  # BROS takes shares of the page
            corners = torch.rand(2, *ids.shape, 2, generator=self.g) / 2
            views["bbox"] = torch.cat([corners[0], corners[0] + corners[1]], dim=-1) * mask[..., None]
        return views


def _inside(batch: Batch, labels: torch.Tensor) -> torch.Tensor:
    """Labels of tokens; -100 at padding and at special tokens."""
    real = batch["attention_mask"].bool() & (batch["input_ids"] >= _FIRST)
    return torch.where(real, labels, torch.tensor(IGNORED))


# ---------------------------------------------------------------------- classification
@on_cpu
def keyword_batches(config: Any) -> list[Batch]:
    """Six batches of eight rows for a model with this config: 9 to 16 tokens, padded on the right, five of them indicate the class.

    The words are drawn from the config's vocabulary, the labels fit its ``num_labels`` and ``problem_type``. The same config gives
    the same batches.

    :param config: of a transformers model; needs ``vocab_size``, uses ``pad_token_id`` and ``eos_token_id``.
    :raises ValueError: the vocabulary is unknown or too small for the task.

    >>> from transformers import DistilBertConfig
    >>> batch = keyword_batches(DistilBertConfig(vocab_size=100))[0]
    >>> batch["input_ids"].shape, sorted(set(batch["labels"].tolist()))
    (torch.Size([8, 16]), [0, 1])
    """
    text = _Text(config)
    outputs = int(getattr(config, "num_labels", 2))
    classes = min(max(outputs, 2), _MOST_CLASSES)
    text.require(2 * classes, f"{classes} classes")
    words = min(_WORDS, (text.size - _FIRST) // (2 * classes))
    batches = []
    for _ in range(_BATCHES):
        labels = text.classes(classes)
        ids = text.draw(_FIRST + words * classes, text.size, _ROWS, _LENGTH)
        ids[:, 1 : 1 + _KEYWORDS] = _FIRST + words * labels[:, None] + text.draw(0, words, _ROWS, _KEYWORDS)
        kind = getattr(config, "problem_type", None)
        batches.append(text.batch(ids, text.lengths(), labels=_labels(labels, outputs, kind)))
    return batches


def _labels(classes: torch.Tensor, outputs: int, kind: str | None) -> torch.Tensor:
    if kind == "multi_label_classification":
        return nn.functional.one_hot(classes, outputs).float()
    if outputs == 1:  # transformers then computes a regression
        return classes.float() * 2 - 1
    return classes


@on_cpu
def tagged_batches(config: Any) -> list[Batch]:
    """Token classification: the class of a token is the group of words that it is of.

    >>> from transformers import DistilBertConfig
    >>> batch = tagged_batches(DistilBertConfig(vocab_size=100, num_labels=3))[0]
    >>> batch["labels"].shape, sorted(set(batch["labels"].flatten().tolist()))
    (torch.Size([8, 16]), [-100, 0, 1, 2])
    """
    text = _Text(config)
    classes = min(max(int(getattr(config, "num_labels", 2)), 2), _MOST_CLASSES)
    text.require(classes, f"{classes} classes")
    words = min(_WORDS, (text.size - _FIRST) // classes)
    batches = []
    for _ in range(_BATCHES):
        kinds = text.draw(0, classes, _ROWS, _LENGTH)
        batch = text.batch(_FIRST + words * kinds + text.draw(0, words, _ROWS, _LENGTH), text.lengths())
        batches.append({**batch, "labels": _inside(batch, kinds)})
    return batches


@on_cpu
def answer_batches(config: Any) -> list[Batch]:
    """Extractive question answering: a question, two separators, a context; the answer begins with a word of one group and ends with one
    of another.

    >>> from transformers import DistilBertConfig
    >>> batch = answer_batches(DistilBertConfig(vocab_size=100))[0]
    >>> bool((batch["start_positions"] < batch["end_positions"]).all())
    True
    """
    text = _Text(config)
    text.require(3, "answers")
    words = min(_WORDS, (text.size - _FIRST) // 3)
    row = torch.arange(_ROWS)
    batches = []
    for _ in range(_BATCHES):
        ids, length = text.draw(_FIRST + 2 * words, text.size, _ROWS, _LENGTH), text.lengths()
        ids[:, _QUESTION : _QUESTION + 2] = text.end
        size, context = text.draw(1, 3, _ROWS), _QUESTION + 2
        start = context + (torch.rand(_ROWS, generator=text.g) * (length - 1 - size - context)).long()
        ids[row, start] = _FIRST + text.draw(0, words, _ROWS)
        ids[row, start + size] = _FIRST + words + text.draw(0, words, _ROWS)
        batches.append(text.batch(ids, length, start_positions=start, end_positions=start + size))
    return batches


@on_cpu
def choice_batches(config: Any) -> list[Batch]:
    """Multiple choice: one of four texts has words of a group of its own.

    >>> from transformers import DistilBertConfig
    >>> choice_batches(DistilBertConfig(vocab_size=100))[0]["input_ids"].shape
    torch.Size([8, 4, 16])
    """
    text = _Text(config)
    text.require(4, "a choice")
    words = min(_WORDS, (text.size - _FIRST) // 4)
    batches = []
    for _ in range(_BATCHES):
        right = text.classes(_CHOICES)
        chosen = nn.functional.one_hot(right, _CHOICES)[..., None]
        ids = text.draw(_FIRST + 2 * words, text.size, _ROWS, _CHOICES, _LENGTH)
        ids[..., 1 : 1 + _KEYWORDS] = _FIRST + words * chosen + text.draw(0, words, _ROWS, _CHOICES, _KEYWORDS)
        batch = text.batch(ids.reshape(-1, _LENGTH), text.lengths(_ROWS * _CHOICES))
        of_row = {name: value.reshape(_ROWS, _CHOICES, *value.shape[1:]) for name, value in batch.items()}
        batches.append({**of_row, "labels": right})
    return batches


# ---------------------------------------------------------------------- language models
def _topic_rows(text: _Text, words: int) -> torch.Tensor:
    """Rows in which the words of one topic follow each other in turn, beginning with any of them."""
    text.require(_TOPICS * words, "texts")
    topic, first = text.draw(0, _TOPICS, _ROWS, 1), text.draw(0, words, _ROWS, 1)
    return _FIRST + words * topic + (first + torch.arange(_LENGTH)) % words


@on_cpu
def next_word_batches(config: Any) -> list[Batch]:
    """Causal language modelling: each word determines the next; labels are the ids, -100 at the padding.

    >>> from transformers import GPT2Config
    >>> batch = next_word_batches(GPT2Config(vocab_size=100))[0]
    >>> bool((batch["labels"] == batch["input_ids"])[batch["attention_mask"] == 1].all())
    True
    """
    text, batches = _Text(config), []
    for _ in range(_BATCHES):
        batch = text.batch(_topic_rows(text, _WORDS_OF_TOPIC), text.lengths())
        labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], torch.tensor(IGNORED))
        batches.append({**batch, "labels": labels})
    return batches


@on_cpu
def masked_batches(config: Any) -> list[Batch]:
    """Masked language modelling: two words in turn, so that those beside it determine a masked one.

    >>> from transformers import DistilBertConfig
    >>> batch = masked_batches(DistilBertConfig(vocab_size=100))[0]
    >>> bool(((batch["labels"] >= 0) == (batch["input_ids"] == 3)).all())
    True
    """
    text, batches = _Text(config), []
    for _ in range(_BATCHES):
        batch = text.batch(_topic_rows(text, 2), text.lengths())
        ids = batch["input_ids"]
        hidden = (torch.rand(ids.shape, generator=text.g) < _MASKED) & (ids >= _FIRST)
        hidden[:, 2] = True  # in each row at least one
        labels = torch.where(hidden, ids, torch.tensor(IGNORED))
        batches.append({**batch, "input_ids": torch.where(hidden, torch.tensor(_MASK), ids), "labels": labels})
    return batches


def labels_for(model: nn.Module, batches: list[Batch]) -> list[Batch]:
    """The same batches, with a mask of later positions for a model that takes one. Labels are the next words where the model's own loss
    compares each position with its own label.

    Most of the causal classes of transformers compare it with the label of the next position; BART's and its relatives' do not.

    >>> from transformers import BartConfig, BartForCausalLM, GPT2Config, GPT2LMHeadModel
    >>> sizes = {"vocab_size": 100, "d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    >>> for model in (BartForCausalLM(BartConfig(**sizes)), GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=12, n_layer=1))):
    ...     batch = batches_for(model)[0]
    ...     print(bool((batch["labels"] == batch["input_ids"])[:, 0].all()))
    False
    True
    """
    # XLNet sees the whole text unless it is told otherwise
    if "perm_mask" in inspect.signature(type(model).forward).parameters:
        batches = [{**batch, "perm_mask": _later(batch["input_ids"])} for batch in batches]
    first = to_device(batches[0], device_of(model))
    labels = first["labels"]
    try:
        with quiet(model):
            found = model(**first)
            own = float(found["loss"])
            at_place, of_next = (
                float(nn.functional.cross_entropy(found["logits"].flatten(0, 1).float(), y.flatten()))
                for y in (labels, earlier(labels, 1))
            )
    except Exception:  # noqa: BLE001 - a model that needs other inputs says so where it is used
        return batches
    if abs(own - at_place) > min(abs(own - of_next), SAME_LOSS * own):
        return batches
    return [{**batch, "labels": earlier(batch["labels"], 1)} for batch in batches]


@on_cpu
def _later(ids: torch.Tensor) -> torch.Tensor:
    """``(rows, positions, positions)``: 1 where the second position comes after the first."""
    width = ids.shape[1]
    return torch.ones(len(ids), width, width).triu(1)


@on_cpu
def phrase_batches(config: Any) -> list[Batch]:
    """Seq2seq: keywords of the source determine the phrase that is the target, of four to six words and an end token.

    >>> from transformers import T5Config
    >>> batch = phrase_batches(T5Config(vocab_size=100))[0]
    >>> batch["labels"].shape, bool((batch["labels"] == 1).any(1).all())  # the id of T5's end token
    (torch.Size([8, 7]), True)
    """
    text = _Text(config)
    text.require(CLASSES * (1 + _TARGET) + 1, "phrases")
    words = min(_WORDS, (text.size - _FIRST - CLASSES * _TARGET) // (2 * CLASSES))
    phrases = _FIRST + words * CLASSES
    batches = []
    for _ in range(_BATCHES):
        chosen = text.classes(CLASSES)
        ids = text.draw(phrases + CLASSES * _TARGET, text.size, _ROWS, _LENGTH)
        ids[:, 1 : 1 + _KEYWORDS] = _FIRST + words * chosen[:, None] + text.draw(0, words, _ROWS, _KEYWORDS)
        length = text.draw(4, _TARGET, _ROWS)
        target = phrases + _TARGET * chosen[:, None] + torch.arange(_TARGET)
        target = torch.where(torch.arange(_TARGET) < length[:, None], target, torch.tensor(IGNORED))
        target[torch.arange(_ROWS), length] = text.end
        batches.append(text.batch(ids, text.lengths(), labels=target))
    return batches


# ---------------------------------------------------------------------- images
@on_cpu
def image_batches(config: Any) -> list[Batch]:
    """Image classification: noise, and one brighter stripe, whose place is the class.

    >>> from transformers import ViTConfig
    >>> image_batches(ViTConfig(image_size=16, num_labels=3))[0]["pixel_values"].shape
    torch.Size([8, 3, 16, 16])
    """
    classes = min(max(int(getattr(config, "num_labels", 2)), 2), _MOST_CLASSES)
    side, channels = getattr(config, "image_size", _SIDE), int(getattr(config, "num_channels", 3))
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(_BATCHES):
        labels = (torch.arange(_ROWS) % classes)[torch.randperm(_ROWS, generator=g)]
        pixels = torch.randn(_ROWS, channels, height, width, generator=g)
        stripe = torch.arange(width) * classes // width == labels[:, None]
        batches.append({"pixel_values": pixels + stripe[:, None, None].float(), "labels": labels})
    return batches


#: The task of a tiny model whose name gives none.
DEFAULT = "text-classification"
#: Names as in transformers' pipelines, where those have one.
TASKS: Mapping[str, TinyTask] = {
    DEFAULT: TinyTask("SEQUENCE_CLASSIFICATION", keyword_batches),
    "token-classification": TinyTask("TOKEN_CLASSIFICATION", tagged_batches),
    "question-answering": TinyTask("QUESTION_ANSWERING", answer_batches, {"num_labels": 2}),
    "multiple-choice": TinyTask("MULTIPLE_CHOICE", choice_batches),
    "masked-lm": TinyTask("MASKED_LM", masked_batches, arguments={"lr": 3e-3}),
    "causal-lm": TinyTask("CAUSAL_LM", next_word_batches, {"is_decoder": True}, arguments={"lr": 3e-3}),
    "seq2seq": TinyTask("SEQ_TO_SEQ_CAUSAL_LM", phrase_batches),
    "image-classification": TinyTask(
        "IMAGE_CLASSIFICATION", image_batches, {"image_size": _SIDE, "patch_size": _PATCH}, reads_text=False
    ),
}


def batches_for(model: nn.Module) -> list[Batch]:
    """Batches for a model of transformers, of the task that its class is for; for another model with a config those of classification.

    :raises ValueError: the model has no config, or a vocabulary that is too small.

    >>> from transformers import DistilBertConfig, DistilBertForTokenClassification
    >>> sorted(batches_for(DistilBertForTokenClassification(DistilBertConfig(n_layers=1)))[0])
    ['attention_mask', 'input_ids', 'labels']
    """
    from transformers.models.auto import modeling_auto

    config = config_of(model)
    if config is None:
        raise ValueError(f"{type(model).__name__} has no config to make batches from")
    classes = {c.__name__ for c in type(model).__mro__}
    for task in TASKS.values():
        names = getattr(modeling_auto, f"MODEL_FOR_{task.mapping}_MAPPING_NAMES")
        if classes & {name if isinstance(name, str) else name[0] for name in names.values()}:
            batches = task.batches(config)
            return labels_for(model, batches) if task.batches is next_word_batches else batches
    return keyword_batches(config)
