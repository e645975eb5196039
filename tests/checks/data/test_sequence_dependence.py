"""Do labels depend on inputs, where a row has many of them? Healthy rules are found, and exchanged labels are not; without any model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pytest_ftcheck.checks.data.probe.exchange_gain import measure_answer_gain, measure_source_gain
from pytest_ftcheck.checks.data.probe.sequence_dependence import _blocks, _exchanges, measure_sequence_dependence
from pytest_ftcheck.instruments.row_hashes import Rows

COUNT = 320


def measured(texts, labels, unit):
    width = max(map(len, texts))
    rows = Rows(
        ids=[np.asarray(t) for t in texts],
        columns=[np.arange(len(t)) for t in texts],
        widths=[width] * len(texts),
        batch=[0] * len(texts),
    )
    table = np.full((len(texts), width if unit == "token" else max(map(len, labels))), -100)
    for row, own in zip(table, labels, strict=True):
        row[: len(own)] = own
    return measure_sequence_dependence(rows, table, unit)[0]


def texts(seed=0, words=200):
    """Rows of 8 to 23 words, some of them far more frequent than others."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, words + 1)
    return [10 + rng.choice(words, rng.integers(8, 24), p=share / share.sum()) for _ in range(COUNT)]


def shuffled(labels, seed=0):
    """Each label at another place of any row."""
    flat = np.random.default_rng(seed).permutation(np.concatenate(labels))
    return np.split(flat, np.cumsum([len(own) for own in labels])[:-1])


TAGS = {
    "own word": lambda x: (x % 17 == 0).astype(int),
    "rare word": lambda x: (x >= 190).astype(int),
    "word five places before": lambda x: np.r_[[0] * 5, x[:-5] % 3],
    "exclusive or of two words": lambda x: np.r_[0, (x[1:] + x[:-1]) % 2],
    "seen before": lambda x: np.array([int(word in x[:i]) for i, word in enumerate(x)]),
    "rarest word of the row": lambda x: np.full(len(x), int(x.max() > 150)),
    "the words themselves": lambda x: x,
}


@pytest.mark.parametrize("rule", TAGS)
def test_labels_of_tokens_that_follow_a_rule(rule):
    found = measured(texts(), [TAGS[rule](x) for x in texts()], "token")
    assert found.unit == "token"
    assert found.simulated == 0, found.p_values


@pytest.mark.parametrize("rule", ["own word", "the words themselves"])
def test_shuffled_labels_of_tokens(rule):
    found = measured(texts(), shuffled([TAGS[rule](x) for x in texts()], seed=1), "token")
    assert (found.rows, found.detected) == (COUNT, 6)
    assert min(found.p_values.values()) > 0.002


def test_labels_of_other_rows():
    others = [np.resize(x, len(own)) for x, own in zip([*texts()[1:], texts()[0]], texts(), strict=True)]
    assert measured(texts(), others, "token").detected == 6


def numbers(text):
    return [10 + int(c) for c in text]


def sums(rng):
    pairs = rng.integers(0, 1000, (COUNT, 2))
    return [numbers(f"{a:03d}{b:03d}") for a, b in pairs], [numbers(f"{a + b:04d}") for a, b in pairs]


def words(change):
    def make(rng):
        sources = [rng.integers(10, 36, rng.integers(6, 12)) for _ in range(COUNT)]
        return sources, [change(x) for x in sources]

    return make


TARGETS = {
    "a sum of two numbers": sums,
    "another alphabet": words(lambda x: 100 + x * 7 % 26),
    "reversed": words(lambda x: x[::-1]),
    "the last word": words(lambda x: 100 + x[-1:]),
    "parities": words(lambda x: 100 + np.cumsum(x) % 2),
}


@pytest.mark.parametrize("rule", TARGETS)
def test_targets_that_follow_a_rule(rule):
    found = measured(*TARGETS[rule](np.random.default_rng(0)), "target")
    assert (found.unit, found.simulated) == ("target", 0)


@pytest.mark.parametrize("rule", ["another alphabet", "reversed", "parities"])
def test_targets_of_other_rows(rule):
    rng = np.random.default_rng(0)
    sources, targets = TARGETS[rule](rng)
    found = measured(sources, [targets[i] for i in rng.permutation(COUNT)], "target")
    assert found.detected == 6
    assert min(found.p_values.values()) > 0.002


def answers(rows, follow, seed=0):
    """Places of a word above 150 and of the one after it; or any two neighbouring places."""
    rng = np.random.default_rng(seed)
    starts = [int(x[:-1].argmax()) if follow else int(rng.integers(len(x) - 1)) for x in rows]
    return [[start, start + 1] for start in starts]


def test_places_of_answers():
    found = measured(texts(), answers(texts(), follow=True), "answer")
    assert (found.unit, found.simulated) == ("answer", 0)
    found = measured(texts(), answers(texts(), follow=False), "answer")
    assert found.detected == 6
    assert min(found.p_values.values()) > 0.002


def test_answers_outside_the_text_do_not_count():
    places = answers(texts(), follow=True)
    places[:100] = [[-100, -100]] * 100
    assert measured(texts(), places, "answer").rows == COUNT - 100


def test_too_few_rows_and_labels_that_belong_to_no_token():
    few = measure_sequence_dependence(
        Rows(ids=[np.arange(9)], columns=[np.arange(9)], widths=[9], batch=[0]), np.zeros((1, 9), dtype=int), "token"
    )
    assert few == (None, "the test needs 100 distinct labelled rows, and 1 were read")
    rows = Rows(ids=texts(), columns=[np.arange(len(x)) for x in texts()], widths=[23] * COUNT, batch=[0] * COUNT)
    assert measure_sequence_dependence(rows, np.zeros((COUNT, 4), dtype=int), "token")[0] is None


def test_rows_are_exchanged_with_rows_of_their_length():
    lengths = np.random.default_rng(0).integers(9, 12, 300)
    blocks = _blocks(lengths)
    assert [set(lengths[block]) for block in blocks] == [{9}, {10}, {11}]
    orders = _exchanges(blocks, 300, 20, np.random.default_rng(0))
    assert (lengths[orders] == lengths).all()
    assert (np.sort(orders, axis=1) == np.arange(300)).all()
    assert [len(block) for block in _blocks(np.arange(40))] == [16, 24]


# ---------------------------------------------------------------------------------------- what a trained model prefers
def reader_of(logits):
    return SimpleNamespace(model=nn.Linear(1, 1), logits=logits, targets=lambda labels: labels)


def batches(count, make):
    g = torch.Generator().manual_seed(0)
    return [make(torch.randint(2, 12, (8, 6), generator=g)) for _ in range(count)]


@pytest.mark.parametrize("uses", [True, False])
def test_a_decoder_that_uses_its_source(uses):
    """The target is the source. One model copies, the other says the same whatever the source is."""
    held_out = batches(4, lambda ids: {"input_ids": ids, "labels": ids})
    copies = reader_of(lambda b: nn.functional.one_hot(b["input_ids"], 12).float() * uses)
    gain = measure_source_gain(copies, held_out, torch.device("cpu"))
    assert gain > 10 if uses else gain == 0
    assert measure_source_gain(copies, held_out[:0], torch.device("cpu")) is None


def test_the_decoders_own_ids_stay_with_the_target():
    """A language model of the targets alone: another source changes nothing."""
    held_out = batches(4, lambda ids: {"input_ids": ids, "decoder_input_ids": ids.roll(1, 1), "labels": ids})
    decoder = reader_of(lambda b: nn.functional.one_hot(b["decoder_input_ids"].roll(-1, 1), 12).float())
    assert measure_source_gain(decoder, held_out, torch.device("cpu")) == 0


@pytest.mark.parametrize("finds", [True, False])
def test_a_model_that_finds_answers(finds):
    """The answer is at the largest id. One model finds it, the other prefers early places in every row."""

    def make(ids):
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.argmax(1)[:, None].repeat(1, 2)}

    early = -torch.arange(6.0)
    reader = reader_of(lambda b: (b["input_ids"].float() if finds else early.expand(8, 6))[:, None].repeat(1, 2, 1))
    gain = measure_answer_gain(reader, batches(6, make), torch.device("cpu"), None)
    assert gain > 3.5 if finds else abs(gain) < 1e-6
