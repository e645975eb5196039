"""Inputs: padding, masks, rows that know of each other, texts that do not arrive."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .cases import Classifier, Run, bert, fault, pack, reviews, textual, two_layers

PADDING = ("padding_ignored",)
ATTENTION = "transformers docs: glossary, attention mask (1 for tokens to attend to)"
TORCH_MASK = "PyTorch docs: torch.nn.MultiheadAttention, key_padding_mask (True: ignored); github.com/pytorch/pytorch/pull/141694"


class MaskInverted(Classifier):
    def encode(self, input_ids, attention_mask):
        return self.encoder(input_ids, attention_mask=1 - attention_mask)[0]


@fault(
    "inputs",
    "The mask is handed over inverted (1 for padding): words attend to the padding and not to each other",
    ATTENTION + "; the convention of torch's key_padding_mask is the opposite",
    (*PADDING, "output_depends_on_input"),
    ("mask", "padding"),
)
def mask_inverted(seed: int) -> Run:
    return textual(seed, MaskInverted, how={"room": 1})


class MaskAsSegments(Classifier):
    def encode(self, input_ids, attention_mask):
        return self.encoder(input_ids, token_type_ids=attention_mask)[0]


@fault(
    "inputs",
    "The mask is given to BERT as token_type_ids: a positional call from another model; nothing is masked",
    "github.com/huggingface/transformers/issues/7510 (names and order of arguments differ between models)",
    PADDING,
    ("mask", "padding"),
)
def mask_given_as_segments(seed: int) -> Run:
    return textual(seed, MaskAsSegments)


class TorchEncoder(nn.Module):
    """torch's own encoder with learnt positions."""

    def __init__(self, width: int = 32, **settings: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(160, width)
        self.places = nn.Embedding(48, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, **{"batch_first": True, **settings})
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def embed(self, input_ids):
        return self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))

    def forward(self, input_ids, attention_mask):
        return (self.layers(self.embed(input_ids), src_key_padding_mask=attention_mask == 0),)


class TorchMaskInverted(TorchEncoder):
    def forward(self, input_ids, attention_mask):
        return (self.layers(self.embed(input_ids), src_key_padding_mask=attention_mask.bool()),)


@fault(
    "inputs",
    "attention_mask.bool() is passed as src_key_padding_mask, where True means 'ignore': all words are ignored",
    TORCH_MASK,
    (*PADDING, "output_depends_on_input"),
    ("mask", "padding"),
)
def torch_mask_inverted(seed: int) -> Run:
    return textual(seed, lambda: Classifier(encoder=TorchMaskInverted()), how={"room": 1})


class MeanOverAll(Classifier):
    def pool(self, hidden, attention_mask):
        return hidden.mean(1)


@fault(
    "inputs",
    "Mean pooling over all positions, padding included: a text's features depend on how long its neighbours are",
    "arXiv:1908.10084 (mean pooling takes the mask into account); github.com/UKPLab/sentence-transformers README",
    PADDING,
    ("padding", "pool"),
)
def mean_over_padding(seed: int) -> Run:
    return textual(seed, MeanOverAll)


class MaxOverAll(Classifier):
    def pool(self, hidden, attention_mask):
        return hidden.max(1).values


@fault(
    "inputs",
    "Max pooling over all positions: padding can have the largest feature",
    "Kim 2014, arXiv:1408.5882 (max over time) without masking; " + ATTENTION,
    PADDING,
    ("padding", "pool"),
)
def max_over_padding(seed: int) -> Run:
    return textual(seed, MaxOverAll)


class LastPosition(Classifier):
    def pool(self, hidden, attention_mask):
        return hidden[:, -1]


@fault(
    "inputs",
    "hidden[:, -1] with right padding: the vector of a padding position is pooled for all but the longest row",
    "transformers: GPT2ForSequenceClassification looks for the last token that is not padding, for this reason",
    PADDING,
    ("padding", "pool", "last"),
)
def last_position_is_padding(seed: int) -> Run:
    return textual(seed, LastPosition)


class Recurrent(nn.Module):
    """A GRU that reads on through the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(160, 32)
        self.encoder = nn.GRU(32, 32, batch_first=True)
        self.head = two_layers(32, 3)

    def forward(self, input_ids, attention_mask):
        return self.head(self.encoder(self.words(input_ids))[1][-1])


@fault(
    "inputs",
    "A GRU runs over the padding and its last state is used: pack_padded_sequence was forgotten",
    "PyTorch docs: torch.nn.utils.rnn.pack_padded_sequence",
    PADDING,
    ("padding",),
)
def gru_reads_the_padding(seed: int) -> Run:
    return textual(seed, Recurrent)


def mask_of_the_wrong_id(batches: list[Any]) -> list[Any]:
    return [{**b, "attention_mask": (b["input_ids"] != 1).long()} for b in batches]


@fault(
    "inputs",
    "The mask is computed as ids != 1 (RoBERTa's padding id); here padding is 0, and the mask hides [CLS] instead",
    "RoBERTa pads with 1, BERT with 0 (transformers docs: RobertaConfig.pad_token_id, BertConfig.pad_token_id)",
    ("padding_ignored", "batches_sound"),
    ("mask", "padding"),
)
def mask_of_another_tokenizer(seed: int) -> Run:
    run = textual(seed)
    run.batches, run.eval_batches = mask_of_the_wrong_id(run.batches), mask_of_the_wrong_id(run.eval_batches)
    return run


class PooledOverRows(Classifier):
    """Attention pooling whose weights are normalised over the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(32, 1)

    def pool(self, hidden, attention_mask):
        scores = self.score(hidden).masked_fill(attention_mask.unsqueeze(-1) == 0, -1e9)
        return (scores.softmax(0) * hidden).sum(1)


@fault(
    "inputs",
    "Attention pooling with softmax(dim=0): the weights are shared out between the rows of the batch",
    "PyTorch docs: torch.nn.functional.softmax (dim)",
    ("rows_independent", "padding_ignored"),
    ("row", "batch"),
)
def pooling_over_the_batch(seed: int) -> Run:
    return textual(seed, PooledOverRows)


class RowsForWords(TorchEncoder):
    def __init__(self) -> None:
        super().__init__(batch_first=False)

    def forward(self, input_ids, attention_mask):
        return (self.layers(self.embed(input_ids)),)


@fault(
    "inputs",
    "nn.TransformerEncoder without batch_first gets (rows, words, width): it attends between the rows of the batch",
    "PyTorch docs: torch.nn.TransformerEncoderLayer (batch_first=False by default)",
    ("rows_independent",),
    ("row", "batch"),
)
def attends_between_rows(seed: int) -> Run:
    return textual(seed, lambda: Classifier(encoder=RowsForWords()))


class Standardised(Classifier):
    def pool(self, hidden, attention_mask):
        x = super().pool(hidden, attention_mask)
        return (x - x.mean(0)) / (x.std(0) + 1e-5)


@fault(
    "inputs",
    "Features are standardised with the mean and deviation of the batch at hand, in evaluation as well",
    "PyTorch docs: torch.nn.BatchNorm1d (running statistics in evaluation); arXiv:1702.03275 (dependence on the batch)",
    ("rows_independent",),
    ("row", "batch"),
)
def standardised_by_the_batch(seed: int) -> Run:
    return textual(seed, Standardised)


class Swapped(Classifier):
    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(attention_mask, attention_mask=(input_ids != 0).long())[0]
        return self.head(self.pool(hidden, attention_mask))


@fault(
    "inputs",
    "ids and mask are swapped in a positional call: the model reads a text of ones and sees nothing but its length",
    "github.com/huggingface/transformers/issues/7510 (order of positional arguments)",
    ("output_depends_on_input", "padding_ignored", "loss_decreases", "metric_improves"),
    ("input", "words", "text"),
    shows=lambda s: s.after < 0.6,
)
def ids_and_mask_swapped(seed: int) -> Run:
    return textual(seed, Swapped)


class OverFeatures(Classifier):
    """LayerNorm's output has mean zero over the features: what is left is the same for every text."""

    def __init__(self) -> None:
        super().__init__(head=two_layers(32, 3))
        self.widen = nn.Linear(24, 32)

    def pool(self, hidden, attention_mask):
        flat = hidden.mean(-1)
        return self.widen(nn.functional.pad(flat, (0, 24 - flat.shape[1])))


@fault(
    "inputs",
    "mean(-1) for mean(1): the features are averaged instead of the words, right behind a LayerNorm that makes this 0",
    "PyTorch docs: torch.nn.LayerNorm (zero mean over the last dimension); wrong axis in a reduction (arXiv:1910.11015)",
    (
        "output_depends_on_input",
        "padding_ignored",
        "loss_decreases",
        "metric_improves",
        "grads_reach_depth",
        "grads_nonzero",
    ),
    ("input", "depend", "constant", "gradient"),
    shows=lambda s: s.after < 0.65,
)
def averaged_over_features(seed: int) -> Run:
    return textual(seed, OverFeatures)


class MetaOnly(Classifier):
    """Text features beside the length of the text; concatenation takes the length twice."""

    def __init__(self) -> None:
        super().__init__(
            head=two_layers(2, 3) if False else nn.Sequential(nn.Linear(2, 16), nn.GELU(), nn.Linear(16, 3))
        )

    def pool(self, hidden, attention_mask):
        length = attention_mask.sum(1, keepdim=True).float() / 10
        super().pool(hidden, attention_mask)
        return torch.cat([length, length], -1)


@fault(
    "inputs",
    "torch.cat([meta, meta]) for torch.cat([text, meta]): the text features are computed and not used",
    "arXiv:1910.11015 (taxonomy: wrong input to a layer); Karpathy 2019 (input-independent baseline)",
    ("output_depends_on_input", "grads_nonzero", "weights_move"),
    ("input", "no gradient", "text", "words"),
    shows=lambda s: s.after < 0.6,
)
def metadata_twice(seed: int) -> Run:
    return textual(seed, MetaOnly)


def cut(batches: list[Any], width: int) -> list[Any]:
    return [{k: (v[:, :width] if k != "labels" else v) for k, v in b.items()} for b in batches]


@fault(
    "inputs",
    "max_length=2: all that is left of a text is [CLS] and its first word",
    "transformers docs: padding and truncation (max_length counts special tokens)",
    ("batches_sound", "labels_learnable", "output_depends_on_input", "metric_improves"),
    ("trunc", "short", "length"),
    shows=lambda s: s.losses[-1] > 0.6,
)
def truncated_to_one_word(seed: int) -> Run:
    run = textual(seed)
    run.batches, run.eval_batches = cut(run.batches, 2), cut(run.eval_batches, 2)
    run.evaluate = None
    return run


def prompts(batches: list[Any]) -> list[Any]:
    out = []
    for b in batches:
        rows = [([99, 98, 97, 96, 95], y) for y in b["labels"].tolist()]
        out.append(pack(rows))
    return out


@fault(
    "inputs",
    "The column with the instruction is tokenised instead of the one with the text: all rows are the same",
    "A Recipe for Training Neural Networks (Karpathy 2019): look at the data just before it goes into the net",
    ("batches_sound", "output_depends_on_input", "labels_learnable"),
    ("same", "identical", "text", "input", "duplicate"),
    shows=lambda s: s.after < 0.6,
)
def wrong_column_tokenised(seed: int) -> Run:
    run = textual(seed)
    run.batches, run.eval_batches = prompts(run.batches), prompts(run.eval_batches)
    return run


class NoPositions(Classifier):
    def encode(self, input_ids, attention_mask):
        places = torch.zeros_like(input_ids)
        return self.encoder(input_ids, attention_mask=attention_mask, position_ids=places)[0]


def ordered(seed: int, n: int) -> list[Any]:
    """Which of two signal words comes first."""
    g = torch.Generator().manual_seed(seed)
    rows: list[Any] = []
    for words, _ in reviews(seed + 7, n):
        kind = int(torch.randint(2, (1,), generator=g))
        at = sorted(torch.randperm(len(words), generator=g)[:2].tolist())
        text = [w if w >= 70 else w + 60 for w in words]
        text[at[0]], text[at[1]] = (20, 30) if kind else (30, 20)
        rows.append((text, kind))
    return rows


@fault(
    "inputs",
    "position_ids are all zero in a task about word order: the model sees a bag of words",
    "arXiv:1706.03762, section 3.5 (without positions attention has no notion of order)",
    ("output_depends_on_input", "loss_decreases", "labels_learnable"),
    ("position", "order"),
    uncatchable="a bag of words is a legitimate model, and word order takes more than 40 steps to learn in a sound one",
    shows=lambda s: s.after < 0.7,
)
def positions_all_zero(seed: int) -> Run:
    return textual(seed, lambda: NoPositions(2), rows=ordered)


class OneLayerTooFew(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = bert(layers=1)
        self.head = two_layers(32, 3)

    def forward(self, input_ids, attention_mask):
        out = self.encoder(input_ids, attention_mask=attention_mask)[0]
        return self.head(out[0].expand(len(input_ids), -1, -1)[:, 0])


@fault(
    "inputs",
    "outputs[0] is taken twice: every row of the batch gets the features of the first",
    "transformers docs: model outputs as tuples (outputs[0] is the last hidden state)",
    ("rows_independent", "output_depends_on_input", "loss_decreases", "metric_improves"),
    ("row", "batch"),
    shows=lambda s: s.after < 0.6,
)
def first_row_for_all(seed: int) -> Run:
    return textual(seed, OneLayerTooFew)
