"""Tokens and other tasks: what each position is taught, where answers are, what a CTC loss gets."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from .cases import PAD, SEP, Run, fault, logits_of
from .tasks import (
    IGNORED,
    SPAN,
    answers,
    causal_lm,
    choices,
    ctc,
    masked_lm,
    of_bert,
    relabelled,
    speech,
    token_classes,
    translation,
)

LM = "transformers docs: causal language modelling (labels are shifted inside the model)"
TARGETS = ("lm_targets_aligned",)
TOKENS = ("token_labels_aligned",)


# ------------------------------------------------------------------------------------------ language models
@fault(
    "tokens",
    "The labels are shifted by the data collator, and once more by the model: each position is taught the word after the next",
    LM,
    TARGETS,
    ("shifted_twice",),
    shows=lambda s: s.after < 0.3,
)
def labels_shifted_twice(seed: int) -> Run:
    return relabelled(causal_lm(seed), lambda b: {**b, "labels": F.pad(b["labels"][:, 1:], (0, 1), value=IGNORED)})


@fault(
    "tokens",
    "A loss by hand compares logits and labels without a shift: each position is taught the word that it reads",
    LM,
    TARGETS,
    ("not_shifted",),
    shows=lambda s: s.after < 0.3,
)
def labels_never_shifted(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        return F.cross_entropy(logits_of(model, batch).flatten(0, 1), batch["labels"].flatten())

    return causal_lm(seed, loss_fn=loss_fn)


@fault(
    "tokens",
    "BertLMHeadModel without is_decoder=True is taught the next word, and reads it",
    "transformers docs: BertLMHeadModel (is_decoder)",
    TARGETS,
    ("next_token_visible",),
)
def next_word_in_sight(seed: int) -> Run:
    return causal_lm(seed, of_bert("LMHeadModel"))


@fault(
    "tokens",
    "The padding id is the end token's, and the collator hides both: the end of a text is never taught",
    "github.com/huggingface/transformers/issues/22794 (pad_token = eos_token; the model never stops)",
    TARGETS,
    ("end_never_taught",),
)
def end_token_never_taught(seed: int) -> Run:
    def hidden(batch: dict[str, Any]) -> dict[str, Any]:
        ids = torch.where(batch["input_ids"] == PAD, SEP, batch["input_ids"])
        return {**batch, "input_ids": ids, "labels": torch.where(ids == SEP, IGNORED, ids)}

    run = relabelled(causal_lm(seed), hidden)
    run.model.config.pad_token_id = SEP
    return run


@fault(
    "tokens",
    "The masked language model is taught every word, the visible ones included: it learns to copy",
    "transformers docs: DataCollatorForLanguageModeling (labels are -100 where nothing is masked)",
    TARGETS,
    ("labels_at_visible",),
    shows=lambda s: s.after < 0.6,
)
def visible_words_taught(seed: int) -> Run:
    def every_word(batch: dict[str, Any]) -> dict[str, Any]:
        labels = torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"])
        return {**batch, "labels": labels.masked_fill(batch["attention_mask"] == 0, IGNORED)}

    return relabelled(masked_lm(seed), every_word)


@fault(
    "tokens",
    "Labels are made before [CLS] is put in front: they lie one position beside the masked words",
    "transformers docs: DataCollatorForLanguageModeling",
    TARGETS,
    ("labels_beside_masked",),
)
def labels_one_beside_the_masks(seed: int) -> Run:
    return relabelled(masked_lm(seed), lambda b: {**b, "labels": b["labels"].roll(1, 1)})


@fault(
    "tokens",
    "decoder_input_ids are the labels themselves: the decoder reads at each position what it is to say",
    "transformers docs: decoder_input_ids (shift_tokens_right)",
    TARGETS,
    ("not_shifted",),
)
def decoder_reads_its_answer(seed: int) -> Run:
    return relabelled(translation(seed), lambda b: {**b, "decoder_input_ids": b["labels"].clamp(min=0)})


@fault(
    "tokens",
    "The target texts are padded with the padding id and not with -100: the decoder is taught to write padding",
    "transformers docs: DataCollatorForSeq2Seq (label_pad_token_id)",
    TOKENS,
    ("padding_taught",),
)
def padded_targets_taught(seed: int) -> Run:
    return relabelled(translation(seed), lambda b: {**b, "labels": b["labels"].masked_fill(b["labels"] < 0, PAD)})


# ------------------------------------------------------------------------------------------ labels for words
@fault(
    "tokens",
    "Labels of words are laid beside the tokens without room for [CLS]: each token has its right neighbour's label",
    "transformers docs: token classification (word_ids)",
    TOKENS,
    ("labels_of_neighbours",),
    shows=lambda s: s.after < 0.75,
)
def labels_of_the_next_word(seed: int) -> Run:
    def shifted(batch: dict[str, Any]) -> dict[str, Any]:
        labels = batch["labels"].roll(-1, 1)
        return {**batch, "labels": labels.masked_fill(batch["attention_mask"] == 0, IGNORED)}

    return relabelled(token_classes(seed), shifted)


@fault(
    "tokens",
    "Labels are padded with 0, which is the class of an ordinary word",
    "transformers docs: DataCollatorForTokenClassification (label_pad_token_id)",
    TOKENS,
    ("padding_taught",),
)
def padding_has_a_class(seed: int) -> Run:
    return relabelled(
        token_classes(seed), lambda b: {**b, "labels": b["labels"].masked_fill(b["attention_mask"] == 0, 0)}
    )


# ------------------------------------------------------------------------------------------ answers and choices
def _moved(change: Any) -> Any:
    return lambda b: {**b, **dict(zip(SPAN, change(b["start_positions"], b["end_positions"]), strict=True))}


@fault(
    "tokens",
    "The answer's place is counted in characters, not in tokens",
    "transformers docs: question answering (offset_mapping)",
    ("answers_inside_text",),
    ("answers_outside",),
    shows=lambda s: s.after < 0.3,
)
def answers_counted_in_characters(seed: int) -> Run:
    return relabelled(answers(seed), _moved(lambda start, end: (3 * start, 3 * end)))


@fault(
    "tokens",
    "Start and end of the answer are exchanged in the collate function",
    "transformers docs: question answering",
    ("answers_inside_text",),
    ("answers_reversed",),
    shows=lambda s: s.after < 0.1,
)
def answers_end_before_they_begin(seed: int) -> Run:
    return relabelled(answers(seed), _moved(lambda start, end: (end, start)))


@fault(
    "tokens",
    "The choices are shuffled, and the number of the right one is not: it points at a text at random",
    "transformers docs: multiple choice",
    ("labels_learnable", "loss_decreases"),
    ("label",),
    shows=lambda s: s.after < 0.6,
)
def choices_shuffled_without_their_label(seed: int) -> Run:
    g = torch.Generator().manual_seed(seed)

    def shuffled(batch: dict[str, Any]) -> dict[str, Any]:
        order = torch.stack([torch.randperm(3, generator=g) for _ in batch["labels"]])
        at = torch.arange(len(order))[:, None]
        return {**batch, **{k: batch[k][at, order] for k in ("input_ids", "attention_mask")}}

    return relabelled(choices(seed), shuffled)


# ------------------------------------------------------------------------------------------ sounds
CTC = "PyTorch docs: torch.nn.CTCLoss"


@fault(
    "tokens",
    "ctc_loss is given logits, not their log_softmax: it falls below zero and without end",
    CTC + " (log_probs: the logarithmized probabilities)",
    ("loss_matches_task",),
    ("ctc_on_logits",),
    shows=lambda s: min(s.losses) < 0,
)
def ctc_of_raw_logits(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        labels = batch["labels"]
        return F.ctc_loss(
            model(batch["x"]).transpose(0, 1), labels.clamp(min=0), batch["frames"], (labels != IGNORED).sum(1)
        )

    return speech(seed, loss_fn, steps=40)


@fault(
    "tokens",
    "All target lengths are the padded one: the padding, 0 as the blank is, counts as letters",
    CTC + " (targets cannot be blank)",
    ("loss_matches_task",),
    ("ctc_blank_in_targets",),
)
def ctc_taught_the_padding(seed: int) -> Run:
    def loss_fn(model: Any, batch: Any) -> Any:
        return ctc(
            model, {**batch, "labels": batch["labels"].clamp(min=0), "frames": torch.full((len(batch["x"]),), 16)}
        )

    return speech(seed, loss_fn, steps=40)
