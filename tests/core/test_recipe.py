"""A recipe refuses invalid values, and its schedule has the right numbers."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from pytest_ftcheck.core.recipe import AUTOCASTS, DTYPES, OPTIMIZERS, SCHEDULES, Recipe


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("optimizer", "AdamW", ValueError),
        ("optimizer", None, ValueError),
        ("optimizer", ["adamw"], ValueError),
        ("schedule", "cosine", ValueError),
        ("dtype", "fp16", ValueError),
        ("dtype", 16, ValueError),
        ("autocast", "float32", ValueError),
        ("autocast", True, ValueError),
        ("device", 0, TypeError),
        *(
            (field, value, error)
            for field in ("lr", "weight_decay", "warmup", "max_grad_norm", "max_seconds")
            for value, error in (
                (-1e-9, ValueError),
                (math.nan, ValueError),
                (math.inf, ValueError),
                ("1", TypeError),
                (True, TypeError),
                ([1.0], TypeError),
            )
        ),
        *((field, None, TypeError) for field in ("lr", "weight_decay", "warmup", "steps", "seed")),
        ("max_grad_norm", 0, ValueError),
        ("max_seconds", 0.0, ValueError),
        ("warmup", 1.5, ValueError),
        ("steps", 0, ValueError),
        ("steps", -3, ValueError),
        ("steps", 10.0, TypeError),
        ("steps", True, TypeError),
        ("seed", -1, ValueError),
        ("seed", 0.5, TypeError),
    ],
)
def test_refused(field, value, error):
    with pytest.raises(error, match=rf"^{field}={re.escape(repr(value))}: expected "):
        Recipe(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("optimizer", o) for o in OPTIMIZERS),
        *(("schedule", s) for s in SCHEDULES),
        *(("dtype", d) for d in (None, *DTYPES)),
        *(("autocast", a) for a in (None, *AUTOCASTS)),
        ("lr", 0),
        ("lr", 1.0),
        ("weight_decay", 0),
        ("warmup", 0),
        ("warmup", 5),
        ("warmup", 5.0),
        ("steps", 1),
        ("max_grad_norm", None),
        ("max_seconds", 1e-3),
        ("device", "cuda:1"),
    ],
)
def test_accepted(field, value):
    assert getattr(Recipe(**{field: value}), field) == value


def test_every_field_is_tried():
    assert set(Recipe.field_names()) == {f.name for f in dataclasses.fields(Recipe)}
    assert dataclasses.replace(Recipe(), steps=7).steps == 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().steps = 7


def test_every_optimizer_is_in_torch():
    torch = pytest.importorskip("torch")
    missing = [name for name in OPTIMIZERS.values() if not hasattr(torch.optim, name)]
    assert missing in ([], ["Adafactor"])  # Adafactor came with torch 2.5


def test_the_founding_sum_of_learning_rates():
    # warm-up 1/20 ... 20/20, then 180/180 ... 1/180: 10.5 + 90.5 = 101 peaks of 5e-5
    assert Recipe(steps=200).lr_sum() == pytest.approx(0.00505, rel=1e-12)


def test_linear_schedule():
    recipe = Recipe(lr=1.0, steps=10, warmup=0.2)
    assert [recipe.lr_at(i) for i in range(10)] == pytest.approx(
        [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    assert recipe.lr_at(10) == 0.0
    assert recipe.lr_at(99) == 0.0


def test_constant_schedule():
    recipe = Recipe(lr=2.0, steps=4, warmup=2, schedule="constant")
    assert [recipe.lr_at(i) for i in range(6)] == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_no_warm_up():
    recipe = Recipe(lr=1.0, steps=4, warmup=0)
    assert [recipe.lr_at(i) for i in range(4)] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"),
    [
        (0.1, 20, 2),
        (0.1, 1, 1),
        (0.1, 25, 3),
        (0, 20, 0),
        (0.999, 10, 10),
        (1, 20, 1),
        (5.0, 20, 5),
        (50, 20, 50),
    ],
)
def test_warm_up_length(warmup, steps, expected):
    assert Recipe(warmup=warmup, steps=steps).warmup_steps == expected


def test_shares_of_the_steps_are_not_rounded_up_by_float_noise():
    # 0.07 * 100 is 7.000000000000001
    assert Recipe(warmup=0.07, steps=100).warmup_steps == 7
    assert Recipe(warmup=0.1, steps=30).warmup_steps == 3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_longer_than_the_run(schedule):
    recipe = Recipe(warmup=50, steps=20, schedule=schedule)
    (warning,) = recipe.warnings()
    assert warning == (
        "warm-up of 50 steps is longer than the run of 20: the learning rate ends at 2e-05, not at the peak of 5e-05"
    )
    assert recipe.lr_sum() == pytest.approx(5e-5 / 50 * 210)
    assert Recipe(warmup=20, steps=20).warnings() == ()
    assert Recipe().warnings() == ()
