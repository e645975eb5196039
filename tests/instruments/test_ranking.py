"""The area under the ROC curve: by hand, with ties, under permutation, and where it is not defined."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pytest_ftcheck.instruments.metrics import measure
from pytest_ftcheck.instruments.ranking import ranking


def area_by_hand(scores, on):
    """Share of pairs of a row of the class and one of another that are ranked rightly; ties count half."""
    pairs = [(a, b) for a, x in zip(scores, on, strict=True) if x for b, y in zip(scores, on, strict=True) if not y]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def test_areas_with_ties_are_those_of_all_pairs():
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(5, (40, 3), generator=g).float()
    tags = (torch.rand(40, 3, generator=g) < 0.3).long()
    found = ranking("multi_label", torch.zeros(40, 3), scores, tags.numpy())
    expected = np.mean([area_by_hand(scores[:, j].tolist(), tags[:, j].tolist()) for j in range(3)])
    assert found.last == pytest.approx(expected)
    assert found.first == 0.5


def test_classes_are_ranked_by_their_probability():
    truth = np.array([0, 0, 1, 1, 2, 2] * 4)
    logits = torch.eye(3)[torch.tensor(truth)] + torch.arange(24.0)[:, None] * 10  # a logit that all classes share
    assert ranking("single_label", torch.zeros(24, 3), logits, truth).last == 1.0


def test_labels_that_nothing_ranks_have_a_uniform_p_value():
    g = torch.Generator().manual_seed(1)
    found = [
        ranking("multi_label", x, x, (torch.rand(60, 4, generator=g) < 0.1).long().numpy()).p_value
        for x in (torch.randn(60, 4, generator=g) for _ in range(60))
    ]
    assert 0.3 < np.mean(found) < 0.7
    assert sum(p <= 0.005 for p in found) <= 2


def test_a_rise_is_what_the_run_added():
    g = torch.Generator().manual_seed(2)
    truth = (torch.rand(160, generator=g) < 0.2).long()
    weak = truth + 2 * torch.randn(160, generator=g)
    found = ranking("single_label", weak, weak + 0.05 * torch.randn(160, generator=g), truth.numpy())
    assert found.p_value < 0.05 < found.rise_p_value
    assert ranking("single_label", weak, truth + torch.randn(160, generator=g) / 2, truth.numpy()).rise_p_value == 0.001


def test_where_it_is_not_defined():
    x = torch.arange(8.0)
    assert ranking("regression", x, x, np.arange(8.0)) is None
    assert ranking("single_label", x, x, np.zeros(8, dtype=int)) is None
    assert ranking("single_label", x, x * float("nan"), np.array([0, 1] * 4)) is None
    assert ranking(None, x, x, np.array([0, 1] * 4)) is None


def test_it_is_measured_only_where_all_rows_have_one_prediction():
    labels = torch.tensor([0] * 14 + [1] * 2)
    low = torch.arange(16.0) - 20
    assert measure("single_label", low, low, labels, "held-out rows")[0].ranking.last == 1.0
    assert measure("single_label", low, low + 6, labels, "held-out rows")[0].ranking is None
