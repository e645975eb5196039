"""answers_inside_text: spans of extractive question answering."""

from __future__ import annotations

import pytest
import torch

from pytest_ftcheck import check_answers_inside_text, example_trace, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.checks.data.answer_record import AnswerSpans


@pytest.mark.parametrize(
    ("swapped", "outside", "fault"),
    [(0, 0, ""), (0, 20, ""), (0, 21, "answers_outside"), (20, 0, ""), (21, 0, "answers_reversed")],
)
def test_the_limits(swapped, outside, fault):
    spans = AnswerSpans(100, swapped, outside, (70, 73, 48))
    assert check_answers_inside_text(example_trace(measurements={"answer_spans": spans})).fault == fault


def test_wording():
    spans = AnswerSpans(64, 0, 48, (70, 73, 21))
    assert str(check_answers_inside_text(example_trace(measurements={"answer_spans": spans}))).splitlines() == [
        "answers_inside_text: FAIL. The answer lies outside the tokens in 75 % of 64 rows: one goes from 70 to 73 in a row of 21 tokens.",
        "  cause: positions are offsets in characters or words of the text, not of tokens in the input; the loss silently ignores those "
        "beyond the row",
        "  do: map them with the tokenizer's offset_mapping or char_to_token(), for the tokens of question and context together",
        "  limit: at most 20 %, which truncation may cut off",
        "  measured: start_positions and end_positions beside the attention mask",
    ]


@pytest.mark.trains
@pytest.mark.parametrize(
    ("factor", "side", "fault"), [(1, "right", ""), (1, "left", ""), (6, "right", "answers_outside")]
)
def test_a_real_model(factor, side, fault):
    from transformers import BertConfig, BertForQuestionAnswering

    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(3):
        ids = torch.randint(5, 60, (8, 12), generator=g)
        mask = torch.ones_like(ids)
        mask[:4, slice(8, None) if side == "right" else slice(0, 4)] = 0
        start = torch.randint(4, 7, (8,), generator=g)
        batches.append(
            {
                "input_ids": ids * mask,
                "attention_mask": mask,
                "start_positions": factor * start,
                "end_positions": factor * start + 1,
            }
        )
    config = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    trace = finetune(
        lambda: BertForQuestionAnswering(config),
        batches,
        steps=1,
        loss_fn=lambda m, b: m(**b).loss,
        probes=["answer_spans"],
    )
    assert check_answers_inside_text(trace).fault == fault


@pytest.mark.trains
def test_other_batches_do_not_apply():
    trace = finetune(tiny_distilbert(), toy_batches(), steps=1, probes=["answer_spans"])
    assert check_answers_inside_text(trace).status == "skipped"
