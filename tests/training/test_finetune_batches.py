"""The batches that finetune reads: every shape of them, loaders and generators."""

from __future__ import annotations

import dataclasses
from collections import UserDict

import pytest
import torch
from finetuned import FAST, Keywords, Net, healthy, named, tiny_hf
from torch.utils.data import DataLoader, TensorDataset

from pytest_ftcheck import (
    finetune,
    tiny_distilbert,
    toy_batches,
)


# ------------------------------------------------------------------ batches
def test_one_tensor_and_bare_logits(rows):
    reading = healthy(finetune(Net(), rows, **FAST)).reading
    assert dataclasses.astuple(reading) == (
        "one tensor",
        "bare logits",
        "cross-entropy of the logits",
        "single_label",
        2,
        "single label",
        "a class for each row",
    )


@pytest.mark.parametrize("label", ["labels", "label"])
def test_keywords_with_labels(rows, label):
    reading = healthy(finetune(Keywords("logits"), named(rows, label), **FAST)).reading
    assert reading.inputs.startswith("keywords x")
    assert reading.loss == "cross-entropy of the logits"


@pytest.mark.parametrize(
    ("kind", "outputs", "own"),
    [
        ("output", "SequenceClassifierOutput with .loss and .logits", True),
        ("output without loss", "SequenceClassifierOutput with .logits", False),
        ("dict", "a dict with .loss and .logits", True),
        ("dict without loss", "a dict with .logits", False),
        ("tuple", "a tuple of 2", True),
        ("tuple without loss", "a tuple of 2", False),
        ("logits", "bare logits", False),
    ],
)
def test_every_kind_of_output(rows, kind, outputs, own):
    reading = healthy(finetune(Keywords(kind), named(rows), **FAST)).reading
    assert reading.outputs == outputs
    assert reading.loss == ("the model's own" if own else "cross-entropy of the logits")
    assert (reading.task, reading.classes) == ("single_label", 2)


def test_a_mapping_beside_labels(rows):
    assert (
        healthy(finetune(Keywords("logits"), [({"x": x}, y) for x, y in rows], **FAST)).reading.task == "single_label"
    )


def test_batch_encoding():
    from transformers import BatchEncoding

    model = tiny_hf("DistilBert")
    batches = [
        BatchEncoding({"input_ids": ids, "attention_mask": mask, "labels": y}) for (ids, _, mask), y in toy_batches(3)
    ]
    trace = healthy(finetune(model, batches, **FAST))
    assert trace.reading.inputs == "keywords input_ids, attention_mask and labels"
    assert trace.reading.loss == "the model's own"


def test_any_mapping_is_a_batch(rows):
    healthy(finetune(Keywords("logits"), [UserDict(x=x, labels=y) for x, y in rows], **FAST))


def test_keys_that_the_model_does_not_take_are_left_out_and_named(rows):
    trace = finetune(Keywords("output"), [{"x": x, "labels": y, "idx": torch.arange(16)} for x, y in rows], **FAST)
    assert any("idx" in note for note in trace.notes)
    assert "idx" not in trace.reading.inputs


def test_one_tuple():
    trace = healthy(finetune(tiny_distilbert, toy_batches(4), **FAST))
    assert trace.reading.inputs == "one tuple of 3"


class Spread(Net):
    def forward(self, x, factor):
        return super().forward(x * factor)


def test_positional_arguments_from_a_tuple(rows):
    batches = [((x, torch.ones(16, 1)), y) for x, y in rows]
    assert healthy(finetune(Spread(), batches, **FAST)).reading.inputs == "2 positional arguments"


def test_three_element_batches_are_two_inputs_and_the_labels(rows):
    batches = [(x, torch.ones(16, 1), y) for x, y in rows]
    assert healthy(finetune(Spread(), batches, **FAST)).reading.inputs == "2 positional arguments"


def test_lists_are_batches_too(rows):
    """What a DataLoader's default collate gives."""
    batches = [[[x, torch.ones(16, 1)], y] for x, y in rows]
    healthy(finetune(Spread(), batches, **FAST))


def test_a_data_loader(rows):
    data = TensorDataset(torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows]))
    loader = DataLoader(data, batch_size=32, shuffle=True)
    trace = healthy(finetune(Net(), loader, steps=10, lr=1e-2), steps=10)  # 4 batches a pass: it is read again
    assert trace.probe_loss.rows == 64


def test_a_one_shot_generator_that_is_long_enough(rows):
    taken = []

    def endless():
        while True:
            for row in rows:
                taken.append(1)
                yield row

    healthy(finetune(Net(), endless(), **FAST))
    assert len(taken) == 3  # not one more than needed


def test_a_re_iterable_is_read_again_when_it_ends(rows):
    class Twice:
        def __iter__(self):
            return iter(rows[:2])

    healthy(finetune(Net(), Twice(), steps=5, lr=1e-2), steps=5)


def test_batches_come_in_order_and_in_turn(rows):
    seen = []

    def step(model, batch, optimizer, scheduler):
        seen.append(next(i for i, row in enumerate(rows[:3]) if row is batch))
        return 0.0

    finetune(Net(), rows[:3], step=step, steps=7)
    assert seen == [0, 1, 2, 0, 1, 2, 0]
