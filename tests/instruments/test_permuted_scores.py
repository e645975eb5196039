"""Scores of permuted labels: computed all at once, and equal to those computed one by one."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_ftcheck.instruments import metrics


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (5, 2), (40, 3), (30, 50)])
@pytest.mark.parametrize("cells", [metrics.CELLS, 1, 100])
def test_permutations_are_scored_as_one_by_one(rows, classes, cells, monkeypatch):
    monkeypatch.setattr(metrics, "CELLS", cells)  # in one piece, or in many
    rng = np.random.default_rng(1)
    truth, guess = rng.integers(0, classes, (2, rows))
    orders = np.random.default_rng(0)
    shuffled = [truth[orders.permutation(rows)] for _ in range(metrics.PERMUTATIONS)]
    found = metrics._permuted_scores("single_label", guess, truth)
    for name, fn in metrics._CLASSIFICATION.items():
        assert found[name] == pytest.approx([fn(guess, t) for t in shuffled], abs=1e-14)


def test_tags_and_numbers_too():
    rng = np.random.default_rng(1)
    tags, values = rng.integers(0, 2, (12, 3)), rng.normal(size=12)
    assert {len(v) for v in metrics._permuted_scores("multi_label", tags[::-1], tags).values()} == {
        metrics.PERMUTATIONS
    }
    scores = metrics._permuted_scores("regression", values, values)["r_squared"]
    assert max(scores) < 1
    assert np.mean(scores) == pytest.approx(-1, abs=0.1)  # twice the variance away
