"""token_labels_aligned: labels of neighbours, and padding that counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pytest_ftcheck import Intent, check_token_labels_aligned, example_trace, finetune
from pytest_ftcheck.checks.data.token_record import TokenLabels

GOOD = TokenLabels(64, 900, 0, None, {-2: 0.0, -1: 0.05, 0: 0.6, 1: 0.05, 2: -0.01})


def judge(**changes):
    return check_token_labels_aligned(example_trace(measurements={"token_labels": replace(GOOD, **changes)}))


@pytest.mark.parametrize(
    ("explained", "fault"),
    [
        ({-1: 0.05, 0: 0.6, 1: 0.05}, ""),
        ({-1: 0.0, 0: 0.05, 1: 0.6}, "labels_of_neighbours"),
        ({-2: 0.3, 0: -0.01, 1: 0.0}, "labels_of_neighbours"),
        ({-1: 0.0, 0: 0.2, 1: 0.6}, ""),  # punctuation: the next word matters more, but the own one, too
        ({-1: 0.0, 0: 0.0, 1: 0.2}, ""),  # nothing explains much
        ({}, ""),
    ],
)
def test_which_token_a_label_belongs_to(explained, fault):
    assert judge(explained=explained).fault == fault


@pytest.mark.parametrize(
    ("at_padding", "counts", "fault"),
    [(900, True, "padding_taught"), (900, False, ""), (900, None, ""), (18, True, ""), (19, True, "padding_taught")],
)
def test_padding_that_counts(at_padding, counts, fault):
    assert judge(at_padding=at_padding, padding_counts=counts).fault == fault


def test_wording():
    assert str(judge(explained={0: 0.02, 1: 0.55})).splitlines() == [
        "token_labels_aligned: FAIL. Labels are shifted by 1 position: the id of the token 1 position after explains 55 % of the "
        "labels, that of the labelled token 2.0 %.",
        "  cause: labels and tokens are misaligned by 1 position: the labels of words were laid beside the tokens without room for "
        "[CLS], or with room for a token that is not there",
        "  do: align labels by tokenizer(..., is_split_into_words=True).word_ids(), and print one row's tokens beside its labels",
        "  limit: the token's own id explains more than 25 % of what a neighbour's does",
        "  measured: ids and labels of 64 rows; the loss with other labels at the padding",
    ]


def tagged(*, shift=0, padding=-100, outputs=4):
    """Batches of a tagging task: ids 10 to 39 are entities of three kinds, the rest is outside."""
    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(12):
        ids = torch.randint(10, 100, (8, 16), generator=g)
        mask = (torch.arange(16)[None] < torch.randint(8, 17, (8, 1), generator=g)).long()
        labels = torch.where(ids < 40, (ids - 10) // 10 + 1, 0) if outputs == 4 else ids
        labels = torch.where(mask.bool(), labels, -100).roll(-shift, 1)
        labels = torch.where(mask.bool() & (labels != -100), labels, padding)
        batches.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
    return batches


@pytest.mark.trains
@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, ""),
        ({"shift": 1}, "labels_of_neighbours"),
        ({"shift": -1}, "labels_of_neighbours"),
        ({"padding": 0}, "padding_taught"),
        ({"outputs": 100, "shift": 1}, ""),  # next-token prediction: labels are ids
    ],
)
def test_a_real_tagger(changes, fault):
    from transformers import DistilBertConfig, DistilBertForTokenClassification

    config = DistilBertConfig(
        vocab_size=100,
        dim=16,
        n_layers=1,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=32,
        num_labels=changes.get("outputs", 4),
    )
    trace = finetune(
        lambda: DistilBertForTokenClassification(config),
        tagged(**changes),
        steps=2,
        probes=["token_labels"],
        intent=Intent(pad_token_id=0),
    )
    verdict = check_token_labels_aligned(trace)
    assert (verdict.status, verdict.fault) == ("fail" if fault else "pass", fault)


@pytest.mark.trains
def test_one_label_a_row_does_not_apply():
    from pytest_ftcheck import tiny_distilbert, toy_batches

    trace = finetune(tiny_distilbert(), toy_batches(), steps=1, probes=["token_labels"])
    assert check_token_labels_aligned(trace).status == "skipped"


@pytest.mark.trains
@pytest.mark.parametrize(("padding", "fault"), [(-100, ""), (0, "padding_taught")])
def test_a_decoders_labels(padding, fault):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(3):
        ids, labels = torch.randint(5, 60, (4, 10), generator=g), torch.randint(5, 60, (4, 8), generator=g)
        labels[:, 5], labels[:, 6:] = 1, padding
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    trace = finetune(lambda: T5ForConditionalGeneration(config), batches, steps=1, probes=["token_labels"])
    assert check_token_labels_aligned(trace).fault == fault
