"""Which tokens are trained: read off the labels, and off the gradient where the loss has a mask of its own."""

from __future__ import annotations

import pytest
from torch.nn import functional as F

from pytest_ftcheck import finetune
from pytest_ftcheck.checks.data.token_record import TokenLabels
from pytest_ftcheck.instruments.tiny_architectures import tiny
from pytest_ftcheck.instruments.tiny_tasks import batches_for

PROMPT = 5


def trained(kind, task, change=None, **options):
    model = tiny(kind, task)
    batches = batches_for(model)
    for batch in batches if change is not None else ():
        change(batch)
    trace = finetune(model, batches, steps=1, probes=["token_labels"], **options)
    found = trace.measured(TokenLabels)
    assert found is not None, trace.skipped
    return found.trained


def shares(found):
    return {kind: found.taught[kind] / count for kind, count in found.tokens.items()}


def mask_prompt(batch):
    batch["labels"][:, :PROMPT] = -100


@pytest.mark.trains
def test_a_prompt_an_answer_and_padding():
    found = trained("gpt2", "causal-lm", mask_prompt)
    assert shares(found) == {"padding": 0, "special": 1, "prompt": 0, "text": 1}
    longest, shortest = found.shown
    assert longest.kinds == ("prompt",) * PROMPT + ("text",) * 10 + ("special",)
    assert all(longest.attended)
    length = sum(shortest.attended)
    assert shortest.kinds[PROMPT:] == ("text",) * (length - PROMPT - 1) + ("special",) + ("padding",) * (16 - length)
    assert shortest.taught == (False,) * PROMPT + (True,) * (length - PROMPT) + (False,) * (16 - length)


@pytest.mark.trains
def test_the_first_token_of_a_causal_model_is_never_predicted():
    found = trained("gpt2", "causal-lm")
    assert [row.taught[0] for row in found.shown] == [False, False]
    assert shares(found)["text"] == 1 - found.rows / found.tokens["text"]
    assert "prompt" not in found.tokens


@pytest.mark.trains
def test_padding_that_is_taught_and_masked_tokens():
    def label_padding(batch):
        batch["labels"][batch["attention_mask"] == 0] = 0

    assert shares(trained("distilbert", "token-classification", label_padding)) == {
        "padding": 1,
        "special": 0,
        "text": 1,
    }
    masked = trained("distilbert", "masked-lm")
    assert "prompt" not in masked.tokens
    assert 0.1 < shares(masked)["text"] < 0.3


@pytest.mark.trains
def test_a_mask_of_the_users_own_is_seen_in_the_gradient():
    """The labels are everywhere, and the loss leaves out the prompt: what counts is what has a gradient."""

    def loss(model, batch):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, PROMPT - 1 : -1]
        return F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, PROMPT:])

    found = trained("gpt2", "causal-lm", loss_fn=loss)
    assert found.rows == 2
    assert shares(found) == {"padding": 0, "special": 1, "prompt": 0, "text": 1}


@pytest.mark.trains
def test_the_answer_of_a_seq2seq_model():
    found = trained("t5", "seq2seq")
    assert shares(found) == {"padding": 0, "special": 1, "text": 1}


def test_long_rows_are_cut():
    from pytest_ftcheck.checks.data.probe.trained_tokens import MOST_TOKENS, _cut
    from pytest_ftcheck.checks.data.trained_tokens_record import TokenRow

    count = MOST_TOKENS + 3
    row = _cut(TokenRow(tuple(range(count)), ("text",) * count, (True,) * count, (True,) * count))
    assert (len(row.ids), len(row.taught), row.left_out) == (MOST_TOKENS, MOST_TOKENS, 3)
