"""Healthy controls: architectures, heads and tasks. How they are trained otherwise stands in `controls_training`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import controls_training  # noqa: F401
from .cases import (
    WORDS,
    Classifier,
    Run,
    accuracy,
    adamw,
    bert,
    control,
    grades,
    labels_of,
    light,
    logits_of,
    own_loss,
    pack,
    packed,
    reviews,
    sgd,
    squared_error,
    tag_loss,
    textual,
    topics,
)
from .heads import Cosine
from .inputs import TorchEncoder
from .losses import tagging
from .numerics import tabular

DOCS = "transformers docs"
#: Sizes that most configs of transformers understand.
SMALL: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.05,
    "num_labels": 3,
    "pad_token_id": 0,
}


def transformer(
    seed: int, config: str, model: str, *, lr: float = 2e-3, side: str = "right", head: Any = None, **settings: Any
) -> Run:
    """A model of transformers with its own head and its own loss."""
    import transformers

    fields = {k: v for k, v in {**SMALL, **settings}.items() if v is not None}

    def build() -> nn.Module:
        return getattr(transformers, model)(getattr(transformers, config)(**fields))

    made = textual(
        seed,
        build,
        loss_fn=own_loss,
        how={"side": side},
        optimizer=lambda m: adamw(m, lr=lr),
        beliefs={"peak_lr": lr, "trained": (), "dropout": None},
    )
    made.head = head
    return made


@control(
    "architecture", "BERT with its pooler and tanh, the model's own loss", DOCS + ": BertForSequenceClassification"
)
def bert_own_head(seed: int) -> Run:
    return transformer(seed, "BertConfig", "BertForSequenceClassification")


@control("architecture", "RoBERTa: positions count from the padding id", DOCS + ": RobertaForSequenceClassification")
def roberta_own_head(seed: int) -> Run:
    return transformer(seed, "RobertaConfig", "RobertaForSequenceClassification", pad_token_id=0)


@control("architecture", "ALBERT: one layer's weights are used for all layers", DOCS + "; arXiv:1909.11942")
def albert_shares_its_layers(seed: int) -> Run:
    return transformer(
        seed, "AlbertConfig", "AlbertForSequenceClassification", embedding_size=32, classifier_dropout_prob=0.1
    )


@control("architecture", "DeBERTa-v2 with disentangled attention", DOCS + "; arXiv:2006.03654")
def deberta_disentangled(seed: int) -> Run:
    return transformer(
        seed, "DebertaV2Config", "DebertaV2ForSequenceClassification", relative_attention=True,
        pos_att_type=["p2c", "c2p"], max_relative_positions=16, type_vocab_size=0, position_biased_input=False,
    )  # fmt: skip


@control(
    "architecture", "FNet takes no attention mask at all: padding is mixed in by design", DOCS + "; arXiv:2105.03824"
)
def fnet_without_mask(seed: int) -> Run:
    run = transformer(seed, "FNetConfig", "FNetForSequenceClassification", type_vocab_size=2)
    run.batches = [{k: v for k, v in b.items() if k != "attention_mask"} for b in run.batches]
    run.eval_batches = [{k: v for k, v in b.items() if k != "attention_mask"} for b in run.eval_batches]
    run.clean, run.evaluate = run.eval_batches, accuracy(run.eval_batches)
    return run


@control(
    "architecture",
    "Llama: causal, pools the last token that is not padding, no dropout, RMSNorm",
    DOCS + ": LlamaForSequenceClassification",
)
def llama_last_token(seed: int) -> Run:
    return transformer(seed, "LlamaConfig", "LlamaForSequenceClassification", num_key_value_heads=2)


@control("architecture", "OPT: causal, positions from the mask", DOCS + ": OPTForSequenceClassification")
def opt_last_token(seed: int) -> Run:
    return transformer(
        seed, "OPTConfig", "OPTForSequenceClassification", ffn_dim=64, word_embed_proj_dim=32, init_std=0.05
    )


@control("architecture", "XLNet on left-padded texts: the last position is summarised", DOCS + "; arXiv:1906.08237")
def xlnet_left_padding(seed: int) -> Run:
    return transformer(
        seed, "XLNetConfig", "XLNetForSequenceClassification", side="left", d_model=32, n_layer=2, n_head=4, d_inner=64,
        max_position_embeddings=None, hidden_size=None, num_hidden_layers=None, num_attention_heads=None,
    )  # fmt: skip


@control("architecture", "ModernBERT: rotary positions, local attention, no biases", DOCS + "; arXiv:2412.13663")
def modernbert_rotary(seed: int) -> Run:
    return transformer(
        seed, "ModernBertConfig", "ModernBertForSequenceClassification", cls_token_id=1, sep_token_id=2, bos_token_id=1,
        eos_token_id=2, local_attention=8, classifier_pooling="mean",
    )  # fmt: skip


@control("architecture", "MPNet with relative position buckets", DOCS + "; arXiv:2004.09297")
def mpnet_buckets(seed: int) -> Run:
    return transformer(seed, "MPNetConfig", "MPNetForSequenceClassification")


@control(
    "architecture", "BART: an encoder and a decoder, pooled at the end token", DOCS + ": BartForSequenceClassification"
)
def bart_at_the_end_token(seed: int) -> Run:
    return transformer(
        seed, "BartConfig", "BartForSequenceClassification", d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, eos_token_id=2,
        bos_token_id=1, decoder_start_token_id=2, forced_eos_token_id=2, init_std=0.05,
    )  # fmt: skip


class T5Means(Classifier):
    def encode(self, input_ids, attention_mask):
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


@control(
    "architecture",
    "The encoder half of T5: relative positions, RMSNorm, no biases, mean pooling",
    DOCS + ": T5EncoderModel",
)
def t5_encoder_means(seed: int) -> Run:
    def build() -> nn.Module:
        from transformers import T5Config, T5EncoderModel

        config = T5Config(vocab_size=WORDS, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0)
        return T5Means(encoder=T5EncoderModel(config))

    return textual(seed, build)


class Packed(nn.Module):
    """A bidirectional GRU over packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32, padding_idx=0)
        self.encoder = nn.GRU(32, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 3)

    def forward(self, input_ids, attention_mask):
        lengths = attention_mask.sum(1)
        x = nn.utils.rnn.pack_padded_sequence(self.words(input_ids), lengths, batch_first=True, enforce_sorted=False)
        last = self.encoder(x)[1]
        return self.head(torch.cat([last[0], last[1]], -1))


@control(
    "architecture",
    "A bidirectional GRU with packed sequences; no dropout, no attention",
    "PyTorch docs: pack_padded_sequence",
)
def gru_packed(seed: int) -> Run:
    return textual(seed, Packed, optimizer=lambda m: adamw(m, lr=1e-2), beliefs={"peak_lr": 1e-2, "dropout": False})


class Convolved(nn.Module):
    """Kim's text CNN with the padding masked before the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32, padding_idx=0)
        self.encoder = nn.ModuleList([nn.Conv1d(32, 16, k, padding="same") for k in (2, 3)])
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(32, 3))

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(1)
        x = (self.words(input_ids) * attention_mask.unsqueeze(-1)).transpose(1, 2)
        found = [torch.relu(c(x)).masked_fill(mask == 0, 0).max(-1).values for c in self.encoder]
        return self.head(torch.cat(found, -1))


@control(
    "architecture",
    "A text CNN with masked max pooling and many units that are off for most texts",
    "Kim 2014, arXiv:1408.5882",
)
def text_cnn(seed: int) -> Run:
    return textual(seed, Convolved, optimizer=lambda m: adamw(m, lr=5e-3), beliefs={"peak_lr": 5e-3})


class Bag(nn.Module):
    """fastText: the mean of the word vectors and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.EmbeddingBag(WORDS, 32, padding_idx=0)
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids, attention_mask):
        return self.head(self.encoder(input_ids))


@control("architecture", "fastText: word order means nothing to it, by design", "arXiv:1607.01759 (bag of tricks)")
def bag_of_words(seed: int) -> Run:
    return textual(seed, Bag, optimizer=lambda m: adamw(m, lr=2e-2), beliefs={"peak_lr": 2e-2, "dropout": False})


@control(
    "architecture",
    "torch's own encoder, pre-norm, mask in torch's convention",
    "PyTorch docs: torch.nn.TransformerEncoderLayer (norm_first)",
)
def torch_encoder_pre_norm(seed: int) -> Run:
    return textual(seed, lambda: Classifier(encoder=TorchEncoder(norm_first=True)))


@control("architecture", "A table of floats and an MLP; there are no tokens at all", "PyTorch tutorials: quickstart")
def table_of_floats(seed: int) -> Run:
    return tabular(seed, optimizer=lambda m: adamw(m, lr=5e-3), beliefs={"peak_lr": 5e-3})


# ------------------------------------------------------------------------------------------ heads
def headed(seed: int, head: Any, **more: Any) -> Run:
    return textual(seed, lambda: Classifier(head=head()), **more)


@control("head", "A cosine classifier with the usual scale of 16", "arXiv:1801.09414 (CosFace)")
def cosine_with_scale(seed: int) -> Run:
    return headed(seed, lambda: Cosine(32, 3, 16.0))


@control(
    "head",
    "BatchNorm in the head, batches of 16: in training rows depend on each other, in evaluation not",
    "PyTorch docs: torch.nn.BatchNorm1d",
)
def batch_norm_in_the_head(seed: int) -> Run:
    return headed(seed, lambda: nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)))


@control(
    "head",
    "Two linear layers with nothing between: more parameters than needed, and harmless",
    "github.com/huggingface/transformers/issues/3062",
)
def two_linear_layers(seed: int) -> Run:
    return headed(seed, lambda: nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 3)))


@control(
    "head",
    "Weight normalisation in the head: parameters are recomputed by a parametrisation",
    "PyTorch docs: torch.nn.utils.parametrizations.weight_norm",
)
def weight_norm_head(seed: int) -> Run:
    return headed(
        seed,
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)), nn.Tanh(), nn.Linear(32, 3)),
    )


@control(
    "head",
    "The output layer starts at zero: in the first step nothing below it has a gradient",
    "github.com/pytorch/vision/issues/5804; arXiv:1901.09321",
)
def output_layer_from_zero(seed: int) -> Run:
    def build() -> nn.Module:
        net = Classifier()
        nn.init.zeros_(net.head[3].weight)
        nn.init.zeros_(net.head[3].bias)
        return net

    return textual(seed, build)


@control(
    "head", "Class embeddings tied to the encoder's word embeddings, one tensor under two names", "arXiv:1608.05859"
)
def tied_class_embeddings(seed: int) -> Run:
    from .wiring import TIED, Described

    return textual(seed, lambda: Described(tie=True), beliefs=TIED)


class Attentive(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(32, 1)

    def pool(self, hidden, attention_mask):
        scores = self.score(hidden).squeeze(-1).masked_fill(attention_mask == 0, torch.finfo(hidden.dtype).min)
        return (scores.softmax(-1).unsqueeze(-1) * hidden).sum(1)


@control(
    "head",
    "Attention pooling with the padding masked; the scorer's bias has no gradient but rounding",
    "arXiv:1703.03130 (self-attentive embedding)",
)
def attention_pooling(seed: int) -> Run:
    return textual(seed, Attentive)


class MultiSample(Classifier):
    """Five dropout masks on the same features; the logits are averaged."""

    def forward(self, input_ids, attention_mask):
        x = self.pool(self.encode(input_ids, attention_mask), attention_mask)
        return torch.stack([self.head(F.dropout(x, 0.4, self.training)) for _ in range(5)]).mean(0)


@control("head", "Multi-sample dropout: the head runs five times in each step", "arXiv:1905.09788")
def multi_sample_dropout(seed: int) -> Run:
    return textual(seed, MultiSample)


@control("head", "Soft-capped logits, 30 * tanh(z / 30)", "arXiv:2408.00118 (Gemma 2)")
def soft_capped_logits(seed: int) -> Run:
    class Capped(Classifier):
        def forward(self, input_ids, attention_mask):
            return 30 * torch.tanh(super().forward(input_ids, attention_mask) / 30)

    return textual(seed, Capped)


@control(
    "head", "log_softmax in the model and NLLLoss outside: the standard's other way", "PyTorch docs: torch.nn.NLLLoss"
)
def log_softmax_and_nll(seed: int) -> Run:
    class Logged(Classifier):
        def forward(self, input_ids, attention_mask):
            return F.log_softmax(super().forward(input_ids, attention_mask), -1)

    return textual(seed, Logged, loss_fn=lambda m, b: F.nll_loss(logits_of(m, b), b["labels"]))


@control(
    "head",
    "Three classes in the data, five outputs: two are spare",
    "num_labels of a larger label set (transformers docs)",
)
def spare_outputs(seed: int) -> Run:
    return textual(seed, lambda: Classifier(5))


# ------------------------------------------------------------------------------------------ tasks and data
@control("task", "Regression on standardised marks, one linear output", "PyTorch docs: torch.nn.MSELoss")
def regression_standardised(seed: int) -> Run:
    return textual(seed, lambda: Classifier(1), rows=grades, loss_fn=squared_error, beliefs={"task": "regression"})


@control("task", "Regression with Huber's loss", "PyTorch docs: torch.nn.HuberLoss")
def regression_huber(seed: int) -> Run:
    return textual(
        seed, lambda: Classifier(1), rows=grades, beliefs={"task": "regression"},
        loss_fn=lambda m, b: F.huber_loss(logits_of(m, b).squeeze(-1), b["labels"]),
    )  # fmt: skip


@control(
    "task", "Three tags, each on or off; positives weighted up", "PyTorch docs: torch.nn.BCEWithLogitsLoss (pos_weight)"
)
def tags_with_positive_weight(seed: int) -> Run:
    weight = torch.tensor([1.9, 1.9, 1.9])
    return textual(
        seed, rows=topics, steps=80, beliefs={"task": "multi_label", "total_steps": 80},
        loss_fn=lambda m, b: F.binary_cross_entropy_with_logits(logits_of(m, b), b["labels"], pos_weight=weight),
    )  # fmt: skip


@control("task", "Three tags, plain BCE with logits", "PyTorch docs: torch.nn.BCEWithLogitsLoss")
def tags_plain(seed: int) -> Run:
    return textual(seed, rows=topics, loss_fn=tag_loss, steps=80, beliefs={"task": "multi_label", "total_steps": 80})


@control("task", "A label for every word, -100 on padding and special tokens", DOCS + ": token classification")
def word_labels(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        return F.cross_entropy(logits_of(model, batch).flatten(0, 1), batch["labels"].flatten())

    return tagging(seed, loss_fn)


@control("task", "Two classes, one logit, float labels in a column", "PyTorch docs: torch.nn.BCEWithLogitsLoss")
def one_logit_in_a_column(seed: int) -> Run:
    run = textual(seed, lambda: Classifier(1), rows=lambda s, n: reviews(s, n, 2), loss_fn=tag_loss)
    for b in [*run.batches, *run.eval_batches]:
        b["labels"] = b["labels"].float().unsqueeze(1)
    return run


@control(
    "task", "Seven in ten rows are of one class, treated with class weights", "PyTorch docs: CrossEntropyLoss (weight)"
)
def imbalance_treated(seed: int) -> Run:
    weight = torch.tensor([1 / 0.7, 1 / 0.15, 1 / 0.15]) / 3
    return textual(
        seed, rows=lambda s, n: reviews(s, n, weights=[0.7, 0.15, 0.15]), steps=60, beliefs={"total_steps": 60},
        loss_fn=lambda m, b: F.cross_entropy(logits_of(m, b), b["labels"], weight=weight),
    )  # fmt: skip


@control(
    "task",
    "Seven in ten rows are of one class, untreated: the loss starts above the prior's entropy",
    "arXiv:1710.05381 (class imbalance)",
)
def imbalance_untreated(seed: int) -> Run:
    return textual(
        seed, rows=lambda s, n: reviews(s, n, weights=[0.7, 0.15, 0.15]), steps=60, beliefs={"total_steps": 60}
    )


@control(
    "task",
    "Which of two words comes first: word order takes longer than this run",
    "hard on purpose; arXiv:2006.04884 on slow starts",
    slow=True,
)
def word_order(seed: int) -> Run:
    from .inputs import ordered

    return textual(seed, lambda: Classifier(2), rows=ordered)


@control(
    "task",
    "Whether the number of a word's occurrences is odd: parity is hard, nothing is broken",
    "arXiv:2207.08799 (learning parity)",
    slow=True,
)
def parity_of_a_word(seed: int) -> Run:
    def rows(s: int, n: int) -> Any:
        g = torch.Generator().manual_seed(s)
        made: list[Any] = []
        for words, _ in reviews(s + 1, n):
            count = int(torch.randint(0, 5, (1,), generator=g))
            text = [w if w != 150 else 151 for w in words] + [150] * count
            made.append(([text[i] for i in torch.randperm(len(text), generator=g).tolist()], count % 2))
        return made

    return textual(seed, lambda: Classifier(2), rows=rows)


@control(
    "data",
    "A third of the labels is noise: the loss ends high, and the model learns the rest",
    "arXiv:1611.03530",
    slow=True,
)
def a_third_of_the_labels_is_noise(seed: int) -> Run:
    def rows(s: int, n: int) -> Any:
        g = torch.Generator().manual_seed(s + 3)
        return [
            (words, int(torch.randint(3, (1,), generator=g)) if float(torch.rand(1, generator=g)) < 0.33 else y)
            for words, y in reviews(s, n)
        ]

    return textual(seed, rows=rows)


@control("data", "A shuffling DataLoader with a collate function", "PyTorch docs: torch.utils.data.DataLoader")
def shuffling_loader(seed: int) -> Run:
    run = textual(seed)
    g = torch.Generator().manual_seed(seed)
    run.batches = torch.utils.data.DataLoader(
        reviews(100 + seed, 320), batch_size=16, shuffle=True, generator=g, collate_fn=pack, drop_last=True
    )
    return run


def loaded(seed: int, rows: Any, steps: int, **settings: Any) -> Run:
    """A DataLoader over rows of the toy language, for so many steps."""
    run = textual(seed, steps=steps)
    g = torch.Generator().manual_seed(seed)
    how = {"shuffle": True, **settings} if "sampler" not in settings else settings
    run.batches = torch.utils.data.DataLoader(rows, generator=g, **{"batch_size": 16, "collate_fn": pack, **how})
    return run


@control("data", "64 rows in batches of eight for twenty epochs", "PyTorch docs: torch.utils.data.DataLoader")
def a_small_set_for_many_epochs(seed: int) -> Run:
    return loaded(seed, reviews(100 + seed, 64), 160, batch_size=8)


@control(
    "data", "A small set is repeated twenty times in one epoch: rows * 20", "tf.data.Dataset.repeat; ConcatDataset"
)
def a_small_set_repeated_in_one_epoch(seed: int) -> Run:
    return loaded(seed, reviews(100 + seed, 64) * 20, 80)


@control("data", "A healthy set over six epochs", "PyTorch docs: torch.utils.data.DataLoader")
def six_epochs(seed: int) -> Run:
    return loaded(seed, reviews(100 + seed, 320), 120)


@control(
    "data",
    "A rare class is drawn as often as the others, with replacement",
    "PyTorch docs: torch.utils.data.WeightedRandomSampler",
)
def weighted_for_a_rare_class(seed: int) -> Run:
    rows = reviews(100 + seed, 320, weights=[0.48, 0.48, 0.04])
    counts = torch.bincount(torch.tensor([y for _, y in rows]), minlength=3).clamp(min=1)
    g = torch.Generator().manual_seed(seed)
    weights = [1 / float(counts[y]) for _, y in rows]
    return loaded(seed, rows, 40, sampler=torch.utils.data.WeightedRandomSampler(weights, 320, generator=g))


@control(
    "data",
    "A fold of 96 rows out of 3,200, for seven epochs",
    "PyTorch docs: torch.utils.data.SubsetRandomSampler; cross-validation",
)
def a_fold_of_a_large_set(seed: int) -> Run:
    g = torch.Generator().manual_seed(seed)
    return loaded(
        seed, reviews(100 + seed, 3200), 42, sampler=torch.utils.data.SubsetRandomSampler(range(96), generator=g)
    )


@control(
    "data",
    "Each visit of a row flips its label with a probability of 15 %: noise against overfitting",
    "arXiv:1605.00055 (DisturbLabel)",
    slow=True,
)
def label_noise_drawn_at_each_visit(seed: int) -> Run:
    g = torch.Generator().manual_seed(seed + 4)

    def noisy(rows: Any) -> Any:
        return pack(
            [
                (words, int(torch.randint(3, (1,), generator=g)) if float(torch.rand(1, generator=g)) < 0.15 else y)
                for words, y in rows
            ]
        )

    return loaded(seed, reviews(100 + seed, 320), 80, collate_fn=noisy)


@control(
    "data", "Each visit of a row leaves out some of its words: the inputs differ, the label stays", "arXiv:1901.11196"
)
def words_dropped_at_each_visit(seed: int) -> Run:
    g = torch.Generator().manual_seed(seed + 5)

    def dropped(rows: Any) -> Any:
        return pack([([w for w in words if float(torch.rand(1, generator=g)) < 0.9] or words, y) for words, y in rows])

    return loaded(seed, reviews(100 + seed, 320), 80, collate_fn=dropped)


@control(
    "data",
    "Annotators disagree: an eighth of the texts is there twice, with two labels, over three epochs",
    "arXiv:2103.14749; disagreement in SNLI",
)
def annotators_disagree_over_epochs(seed: int) -> Run:
    rows = reviews(100 + seed, 280)
    return loaded(seed, rows + [(words, (y + 1) % 3) for words, y in rows[:40]], 60)


class Tupled(nn.Module):
    """The founding question's call: one tuple of ids, length and mask."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model = bert()
        self.classifier = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))

    def forward(self, input_):
        ids, _length, mask = input_
        hidden = self.base_model(ids, attention_mask=mask)[0] * mask.unsqueeze(-1)
        return self.classifier(hidden.sum(1) / mask.sum(1, keepdim=True))


@control(
    "data",
    "Batches are ((ids, length, mask), labels), as in the founding question",
    "datascience.stackexchange.com: 'Should weight distribution change more when fine-tuning transformers-based classifier?'",
)
def tuple_batches(seed: int) -> Run:
    run = textual(seed, Tupled, evaluate=lambda m: 0.0)

    def tuples(batches: list[Any]) -> list[Any]:
        return [((b["input_ids"], b["attention_mask"].sum(1), b["attention_mask"]), b["labels"]) for b in batches]

    run.batches, run.eval_batches = tuples(run.batches), tuples(run.eval_batches)
    run.clean, run.head, run.evaluate = run.eval_batches, "classifier", accuracy(run.eval_batches)
    return run


@control(
    "data",
    "Texts of similar length are put into one batch: batches are not random, and their widths differ",
    "sentence-transformers and fairseq batch by length",
)
def batched_by_length(seed: int) -> Run:
    return textual(seed, rows=lambda s, n: sorted(reviews(s, n), key=lambda r: len(r[0])))


@control("data", "A curriculum: the rows with most cue words come first", "Bengio et al. 2009 (curriculum learning)")
def curriculum(seed: int) -> Run:
    def rows(s: int, n: int) -> Any:
        return sorted(reviews(s, n), key=lambda r: -sum(w < 70 for w in r[0]))

    return textual(seed, rows=rows)


@control("data", "All texts have one length; nothing is padded", "packed or truncated corpora")
def nothing_padded(seed: int) -> Run:
    def rows(s: int, n: int) -> Any:
        return [((words * 3)[:10], y) for words, y in reviews(s, n)]

    return textual(seed, rows=rows)


@control("data", "A small data set seen twice within the run: every batch comes back", "PyTorch tutorials: epochs")
def five_batches_again_and_again(seed: int) -> Run:
    return textual(seed, count=5)


@control(
    "data",
    "Texts are padded to 32 on the left for a model that counts positions from the mask",
    "transformers docs: padding side",
)
def padded_on_the_left(seed: int) -> Run:
    return textual(
        seed,
        light,
        how={"side": "left", "room": 10},
        optimizer=sgd,
        beliefs={"optimizer": "SGD", "peak_lr": 0.3, "weight_decay": 0.0},
    )


@control(
    "data",
    "Held-out rows come from another domain (other filler words): the accuracy is lower, honestly",
    "arXiv:2012.07421 (WILDS)",
)
def held_out_from_elsewhere(seed: int) -> Run:
    run = textual(seed)
    rows = [([w if w < 70 else 70 + (w - 70) % 20 for w in words], y) for words, y in reviews(50_000 + seed, 96)]
    run.eval_batches = packed(rows)
    run.clean, run.evaluate = run.eval_batches, accuracy(run.eval_batches)
    return run


@control(
    "task",
    "The author's own metric is a macro F1, which no default metric equals on these rows",
    "scikit-learn docs: f1_score",
)
def macro_f1_of_the_author(seed: int) -> Run:
    run = textual(seed)

    def evaluate(model: Any) -> float:
        training = model.training
        model.eval()
        with torch.no_grad():
            found = torch.cat([logits_of(model, b).argmax(-1) for b in run.eval_batches])
        model.train(training)
        true = torch.cat([labels_of(b) for b in run.eval_batches])
        scores = []
        for c in range(3):
            hit = ((found == c) & (true == c)).sum()
            scores.append(float(2 * hit / max(1, int((found == c).sum() + (true == c).sum()))))
        return sum(scores) / 3

    run.evaluate = evaluate
    return run
