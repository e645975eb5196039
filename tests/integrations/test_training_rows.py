"""Rows of a training set for the probe batch."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from pytest_ftcheck.integrations.training_rows import LEAST_ROWS, ROWS, TOKENS, training_rows


def loader(width, count=200, dtype=torch.long):
    rows = [{"input_ids": torch.full((width,), i, dtype=dtype), "labels": torch.tensor(i)} for i in range(count)]
    return DataLoader(rows, batch_size=4, shuffle=True)


@pytest.mark.parametrize(
    ("width", "rows"), [(12, ROWS), (TOKENS // ROWS, ROWS), (1024, 32), (1500, 16), (TOKENS, LEAST_ROWS)]
)
def test_fewer_rows_are_taken_of_long_ones(width, rows):
    batch = training_rows(loader(width))
    assert len(batch["labels"]) == rows
    assert batch["input_ids"].numel() <= max(TOKENS, LEAST_ROWS * width)
    assert len(set(batch["labels"].tolist())) == rows  # from all over the set, each once
    assert int(batch["labels"].max()) - int(batch["labels"].min()) > 100


def test_numbers_that_are_no_tokens_are_not_counted():
    assert len(training_rows(loader(4096, dtype=torch.float))["labels"]) == ROWS


def test_a_small_set_is_taken_whole():
    assert len(training_rows(loader(12, count=5))["labels"]) == 5
