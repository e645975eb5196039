"""What leads hypothesis: the margin of ``assert_trainable`` shrinks towards the border, has the verdict's sign, and knows two sides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument

from pytest_ftcheck import CheckFailed, InitScheme, assert_trainable, check_trainable, toy_features
from pytest_ftcheck.strategies import Head

FEATURES = toy_features()


def judged(std, lr, head=None):
    head = head or Head(64, 2, widths=[64], dropout=0.2)
    return check_trainable(InitScheme.normal(std).apply(head), FEATURES, lr=lr)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": 1.5}, TypeError, "steps=1.5: expected a whole number"),
        ({"steps": "3"}, TypeError, "steps='3'"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"seed": None}, TypeError, "seed=None: expected a whole number"),
        ({"seed": 1.5}, TypeError, "seed=1.5"),
        ({"seed": 2**64}, ValueError, "seed=.*to 2"),
        ({"lr": -1.0}, ValueError, "lr=-1.0"),
        ({"lr": float("nan")}, ValueError, "lr=nan"),
        ({"batch_size": 2.0}, TypeError, "batch_size=2.0"),
        ({"eval_batches": []}, TypeError, "eval_batches: not an argument"),
        ({"head": "0"}, TypeError, "head"),
        ({"foo": 1}, TypeError, "foo"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        check_trainable(Head(64, 2), FEATURES, **change)


def test_the_margin_shrinks_towards_the_border_and_has_the_verdicts_sign():
    verdicts = [judged(std, 1e-3) for std in (0.01, 0.1, 0.3, 1.0, 10.0)]
    margins = [v.margin for v in verdicts]
    assert margins == sorted(margins, reverse=True)
    assert [v.ok for v in verdicts] == [True, True, True, True, False]
    assert margins[3] > 0 >= margins[4]


def test_a_lucky_untrained_head_is_judged_by_its_loss():
    """Every random direction tells these two classes apart: the untrained head may be right on every row."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(256) % 2
    x = torch.randn(256, 8, generator=g) * 0.01 + (2 * y[:, None] - 1)
    heads = (Head(8, 2, seed=seed) for seed in range(50))
    rows = torch.arange(256)
    lucky = next(h for h in heads if bool((h(x).argmax(1) == y[rows]).all()))
    verdict = check_trainable(lucky, (x, y), lr=1e-2)
    assert verdict.status == "pass"
    assert any("the loss alone decides" in note for note in verdict.notes)
    asleep = check_trainable(lucky, (x, y), lr=0.0)
    assert not asleep.ok


@pytest.mark.parametrize(("std", "side"), [(0.02, "small"), (1.0, "large")])
def test_each_side_of_the_border_is_climbed_by_itself(std, side):
    from hypothesis import target

    used = []

    @settings(max_examples=1, database=None, deadline=None)
    @given(st.just(std))
    def test(value):
        assert_trainable(InitScheme.normal(value).apply(Head(64, 2, widths=[64])), FEATURES, lr=1e-2)
        for label in ("trainable", "trainable, from a loss above the class-prior baseline"):
            try:
                target(0.0, label=label)
            except InvalidArgument:
                used.append(label)

    test()
    assert len(used) == (2 if side == "large" else 1)


def test_a_failure_raises_with_its_margin():
    with pytest.raises(CheckFailed) as failed:
        assert_trainable(InitScheme.normal(30.0).apply(Head(64, 2, widths=[64])), FEATURES)
    assert failed.value.verdict.margin <= 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_head_in_another_dtype(dtype):
    head = InitScheme.kaiming_normal().apply(Head(64, 2, widths=[64]).to(dtype))
    assert check_trainable(head, FEATURES, lr=1e-2).status == "pass"
