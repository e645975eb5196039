"""Labels of tokens in batches of different widths are labelled rows like any others."""

from __future__ import annotations

import pytest
import torch

from pytest_ftcheck import check_batches_sound, diagnose, finetune
from pytest_ftcheck.checks.data.record import Data
from pytest_ftcheck.instruments.tiny_architectures import tiny
from pytest_ftcheck.instruments.tiny_tasks import batches_for


def tagger():
    return tiny("distilbert", "token-classification")


def batches(*, varied, label=None):
    found = []
    for i, batch in enumerate(batches_for(tagger())):
        cut = {k: v[:, : 16 - i % 3 if varied else 16].contiguous() for k, v in batch.items()}
        if label is not None:
            cut["labels"] = torch.where(cut["labels"] >= 0, label, -100)
        found.append(cut)
    return found


def data(rows):
    trace = finetune(tagger, rows, lr=1e-3, steps=1, probes=["data"])
    return trace, trace.measured(Data)


@pytest.mark.parametrize("varied", [False, True])
def test_every_label_ignored_is_the_first_cause(varied):
    trace = finetune(tagger, batches(varied=varied, label=-100), lr=1e-3, steps=4)
    assert trace.reading.task == "single_label"
    first, *others = diagnose(trace).causes
    assert first.fault == "labels_all_ignored"
    assert not others


@pytest.mark.parametrize("varied", [False, True])
def test_one_class_only_is_found(varied):
    trace, found = data(batches(varied=varied, label=1))
    assert found.constant
    assert check_batches_sound(trace).fault == "one_class_only"


def test_counts_are_those_of_equal_widths():
    healthy, wide = data(batches(varied=True))
    assert check_batches_sound(healthy).status == "pass"
    assert wide.counts == tuple(sum(int((b["labels"] == c).sum()) for b in batches(varied=True)) for c in range(3))
    assert wide.untested == "the test needs 100 distinct labelled rows, and 48 were read"
