"""Reference metrics."""

from __future__ import annotations

import pytest
import torch

from pytest_ftcheck.instruments.metrics import references


def test_metrics_of_single_classes():
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 1, 2, 2])]
    found = references("single_label", logits, torch.tensor([0, 1, 1, 1, 2, 0]))
    assert found["recall of class 1"] == pytest.approx(2 / 3)
    assert found["precision of class 1"] == 1
    assert found["precision of class 2"] == 0.5
    assert found["F1 of class 0"] == 0.5
    many = references("single_label", torch.eye(11), torch.arange(11))
    assert not any("of class" in name for name in many)
