"""Healthy fine-tunes of other tasks: labels for tokens, places of answers, choices, images, sounds and preferences; faults take these."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_ftcheck import Intent

from .cases import PAD, SEP, WORDS, Run, adamw, own_loss, packed, reviews, standard_step
from .losses import tagged

MASK, IGNORED = 4, -100
#: Topics of the texts of language models; the words of each follow each other in turn.
TOPICS = 10
SIZE = 16
#: Sizes of a small BERT.
SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 48,
    "initializer_range": 0.05,
}


def fine_tune(
    seed: int,
    build: Callable[[], nn.Module],
    make: Callable[[torch.Generator, int], Any],
    *,
    loss_fn: Any = own_loss,
    lr: float = 2e-3,
    steps: int = 40,
    head: Any = None,
    score: Callable[[Any, Any], float] | None = None,
    **beliefs: Any,
) -> Run:
    """Twenty batches of ``make`` to train on and six held-out ones; ``score`` is the share of right answers of a batch."""
    torch.manual_seed(seed)
    model = build()
    model.train()
    g = torch.Generator().manual_seed(100 + seed)
    batches, held_out = [make(g, SIZE) for _ in range(20)], [make(g, SIZE) for _ in range(6)]
    told = {"optimizer": "AdamW", "peak_lr": lr, "weight_decay": 0.01, "schedule": "constant", **beliefs}
    run = Run(
        model,
        batches,
        adamw(model, lr=lr),
        step=standard_step(loss_fn),
        loss_fn=loss_fn,
        eval_batches=held_out,
        head=head,
        steps=steps,
        intent=Intent(**told),
    )
    run.score = scored(score or _of_logits, copy.deepcopy(held_out))
    return run


def scored(score: Callable[[Any, Any], float], batches: list[Any]) -> Callable[[Any], float]:
    """The mean of ``score`` over clean held-out batches, in evaluation mode."""

    def evaluate(model: Any) -> float:
        training = model.training
        model.eval()
        with torch.no_grad():
            value = sum(score(model, b) for b in batches) / len(batches)
        model.train(training)
        return value

    return evaluate


def _of_logits(model: Any, batch: Any) -> float:
    found = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    return _share(found, batch["labels"])


def _share(logits: Any, labels: Any) -> float:
    kept = labels != IGNORED
    return float((logits.argmax(-1) == labels)[kept].float().mean())


def _of_the_next(model: Any, batch: Any) -> float:
    found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    kept = torch.where(batch["attention_mask"].bool(), batch["input_ids"], IGNORED)
    return _share(found[:, :-1], kept[:, 1:])


def relabelled(run: Run, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Run:
    """The same run with other batches, held-out ones included."""
    run.batches, run.eval_batches = [change(b) for b in run.batches], [change(b) for b in run.eval_batches]
    return run


def of_bert(task: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, f"Bert{task}")(transformers.BertConfig(**SMALL, **settings))

    return build


# ------------------------------------------------------------------------------------------ language models
def _turns(g: torch.Generator, rows: int, words: int) -> dict[str, Any]:
    """Rows of 9 to 16 tokens, in which the words of one topic follow each other in turn; the end token comes last."""
    topic, first = torch.randint(TOPICS, (rows, 1), generator=g), torch.randint(words, (rows, 1), generator=g)
    ids = 20 + words * topic + (first + torch.arange(16)) % words
    length = torch.randint(9, 17, (rows,), generator=g)
    ids[torch.arange(rows), length - 1] = SEP
    mask = (torch.arange(16) < length[:, None]).long()
    return {"input_ids": torch.where(mask.bool(), ids, PAD), "attention_mask": mask}


def _next_words(g: torch.Generator, rows: int) -> dict[str, Any]:
    batch = _turns(g, rows, 4)
    return {**batch, "labels": torch.where(batch["attention_mask"].bool(), batch["input_ids"], IGNORED)}


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 48, "initializer_range": 0.05}
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, bos_token_id=1, eos_token_id=SEP, pad_token_id=PAD, **sizes))


def causal_lm(seed: int, build: Any = gpt2, **more: Any) -> Run:
    return fine_tune(seed, build, _next_words, score=_of_the_next, **{"lr": 5e-3, **more})


def _masked_words(g: torch.Generator, rows: int) -> dict[str, Any]:
    batch = _turns(g, rows, 2)
    ids = batch["input_ids"]
    hidden = (torch.rand(ids.shape, generator=g) < 0.15) & (ids >= 20)
    hidden[:, 2] = True  # in each row at least one
    labels = torch.where(hidden, ids, IGNORED)
    return {**batch, "input_ids": torch.where(hidden, MASK, ids), "labels": labels}


def masked_lm(seed: int, **more: Any) -> Run:
    return fine_tune(seed, of_bert("ForMaskedLM"), _masked_words, **{"lr": 5e-3, **more})


def _phrases(g: torch.Generator, rows: int) -> dict[str, Any]:
    """The class of a text determines the phrase that is its target, of four to six words and an end token."""
    texts = reviews(int(torch.randint(1 << 30, (1,), generator=g)), rows)
    batch = packed(texts, rows)[0]
    kinds = batch["labels"]
    length = torch.randint(4, 7, (rows,), generator=g)
    target = 100 + 7 * kinds[:, None] + torch.arange(7)
    target = torch.where(torch.arange(7) < length[:, None], target, IGNORED)
    target[torch.arange(rows), length] = SEP
    return {**batch, "labels": target}


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    ids = {"pad_token_id": PAD, "eos_token_id": SEP, "decoder_start_token_id": PAD}
    return T5ForConditionalGeneration(T5Config(vocab_size=WORDS, **ids, **sizes))


def _of_the_target(model: Any, batch: Any) -> float:
    return _share(model(**batch).logits, batch["labels"])


def translation(seed: int, **more: Any) -> Run:
    return fine_tune(seed, t5, _phrases, score=_of_the_target, **{"lr": 3e-3, **more})


# ------------------------------------------------------------------------------------------ labels for words, answers, choices
def _words_of_texts(g: torch.Generator, rows: int) -> dict[str, Any]:
    return tagged(packed(reviews(int(torch.randint(1 << 30, (1,), generator=g)), rows), rows))[0]


def token_classes(seed: int, **more: Any) -> Run:
    return fine_tune(seed, of_bert("ForTokenClassification", num_labels=4), _words_of_texts, **{"lr": 3e-3, **more})


SPAN = ("start_positions", "end_positions")


def _questions(g: torch.Generator, rows: int) -> dict[str, Any]:
    """A question of two words, two separators, and a context whose answer begins with a word of one group and ends with one of another."""
    ids, length = torch.randint(70, WORDS, (rows, 16), generator=g), torch.randint(10, 17, (rows,), generator=g)
    ids[:, 0], ids[:, 3:5] = 1, SEP
    size = torch.randint(1, 3, (rows,), generator=g)
    start = 5 + (torch.rand(rows, generator=g) * (length - 1 - size - 5)).long()
    at = torch.arange(rows)
    ids[at, start], ids[at, start + size] = (low + torch.randint(10, (rows,), generator=g) for low in (20, 30))
    ids[at, length - 1] = SEP
    mask = (torch.arange(16) < length[:, None]).long()
    ids = torch.where(mask.bool(), ids, PAD)
    return {"input_ids": ids, "attention_mask": mask, "start_positions": start, "end_positions": start + size}


def _of_answers(model: Any, batch: Any) -> float:
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    starts, ends = (s.argmax(-1) == batch[k] for s, k in zip((out.start_logits, out.end_logits), SPAN, strict=True))
    return float((starts & ends).float().mean())


def answers(seed: int, **more: Any) -> Run:
    return fine_tune(seed, of_bert("ForQuestionAnswering"), _questions, score=_of_answers, **{"lr": 3e-3, **more})


def _choices(g: torch.Generator, rows: int) -> dict[str, Any]:
    """One of three texts has words of a group of its own."""
    right = torch.randint(3, (rows,), generator=g)
    ids = torch.randint(70, WORDS, (rows, 3, 10), generator=g)
    chosen = F.one_hot(right, 3)[..., None]
    ids[..., 1:5] = 20 + 10 * chosen + torch.randint(10, (rows, 3, 4), generator=g)
    ids[..., 0] = 1
    length = torch.randint(7, 11, (rows, 3, 1), generator=g)
    mask = (torch.arange(10) < length).long()
    return {"input_ids": torch.where(mask.bool(), ids, PAD), "attention_mask": mask, "labels": right}


def choices(seed: int, **more: Any) -> Run:
    return fine_tune(seed, of_bert("ForMultipleChoice"), _choices, **more)


# ------------------------------------------------------------------------------------------ images, sounds
def _stripes(g: torch.Generator, rows: int) -> dict[str, Any]:
    """Noise, and one brighter stripe, whose place is the class."""
    labels = torch.randint(3, (rows,), generator=g)
    stripe = (torch.arange(16) * 3 // 16 == labels[:, None]).float()
    return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=g) + stripe[:, None, None], "labels": labels}


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {k: v for k, v in SMALL.items() if k not in ("vocab_size", "max_position_embeddings")}
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=3, **sizes))


def images(seed: int, build: Any = vit, make: Any = _stripes, **more: Any) -> Run:
    return fine_tune(seed, build, make, **{"lr": 3e-3, **more})


class Listener(nn.Module):
    """Scores five letters and the blank, number 0, for each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.GRU(8, 32, batch_first=True, bidirectional=True), nn.Linear(64, 6)

    def forward(self, x):
        return self.head(self.encoder(x)[0])


def _spoken(g: torch.Generator, rows: int) -> dict[str, Any]:
    """Two to four letters a row, four frames each."""
    book = torch.randn(6, 8, generator=torch.Generator().manual_seed(7))
    count, letters = torch.randint(2, 5, (rows,), generator=g), torch.randint(1, 6, (rows, 4), generator=g)
    x = book[letters.repeat_interleave(4, 1)] + 0.3 * torch.randn(rows, 16, 8, generator=g)
    return {"x": x, "labels": letters.masked_fill(torch.arange(4) >= count[:, None], IGNORED), "frames": 4 * count}


def ctc(model: Any, batch: Any) -> Any:
    labels = batch["labels"]
    log_probs = model(batch["x"]).log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probs, labels.clamp(min=0), batch["frames"], (labels != IGNORED).sum(1))


def _of_frames(model: Any, batch: Any) -> float:
    """Share of the rows whose letters come out as they were spoken: repetitions merged, blanks dropped."""
    right = 0
    for found, frames, labels in zip(model(batch["x"]).argmax(-1), batch["frames"], batch["labels"], strict=True):
        merged = torch.unique_consecutive(found[:frames])
        right += merged[merged > 0].tolist() == torch.unique_consecutive(labels[labels > 0]).tolist()
    return right / len(batch["x"])


def speech(seed: int, loss_fn: Any = ctc, **more: Any) -> Run:
    how = {"lr": 5e-3, "steps": 60, "head": "head", "score": _of_frames, **more}
    return fine_tune(seed, Listener, _spoken, loss_fn=loss_fn, **how)


# ------------------------------------------------------------------------------------------ preferences
class Writer(nn.Module):
    """A small causal language model."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body, self.head = (
            nn.Embedding(WORDS, 16),
            nn.GRU(16, 32, batch_first=True),
            nn.Linear(32, WORDS),
        )

    def forward(self, ids):
        return self.head(self.body(self.words(ids))[0])


def _preferences(g: torch.Generator, rows: int) -> dict[str, Any]:
    prompt, good, bad = (torch.randint(low, low + 30, (rows, 6), generator=g) for low in (20, 60, 100))
    return {"chosen": torch.cat([prompt, good], 1), "rejected": torch.cat([prompt, bad], 1)}


def log_probability(model: Any, ids: Any) -> Any:
    z = model(ids)[:, 5:-1].log_softmax(-1)
    return z.gather(-1, ids[:, 6:, None]).squeeze(-1).sum(1)


def margin(model: Any, batch: Any) -> Any:
    return log_probability(model, batch["chosen"]) - log_probability(model, batch["rejected"])


def preferences(seed: int) -> Run:
    before: list[Any] = []

    def dpo(model: Any, batch: Any) -> Any:
        with torch.no_grad():
            reference = margin(before[0], batch)
        return -F.logsigmoid(0.1 * (margin(model, batch) - reference)).mean()

    run = fine_tune(
        seed,
        Writer,
        _preferences,
        loss_fn=dpo,
        head="head",
        score=lambda m, b: float((margin(m, b) > 5).float().mean()),
    )
    before.append(copy.deepcopy(run.model).eval().requires_grad_(False))
    return run
