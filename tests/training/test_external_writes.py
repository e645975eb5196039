"""What writes to the weights between steps: a constraint, or values that are put back."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from pytest_ftcheck.instruments.sampled_elements import SampledElements, sample_size
from pytest_ftcheck.training.external_writes import ExternalWrites


def after_writes(shape, write, *, feasible=True, steps=4):
    """Steps of noise on one parameter of the base, each followed by ``write(weight, its first values)``."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(0.1 * torch.randn(shape, generator=generator))
    if feasible:
        weight.data = write(weight.data, weight.data.clone())
    sampled = SampledElements([weight], [sample_size(weight.shape, "base", "matrix")])
    writes, first = ExternalWrites(sampled), weight.data.clone()
    start = sampled.values(sampled.zeros())
    for i in range(steps):
        weight.data = weight.data + 0.01 * torch.randn(shape, generator=generator)
        ended = sampled.values(sampled.zeros())
        weight.data = write(weight.data, first)
        writes.update(sampled.values(sampled.zeros()), ended, start, first=False)
        assert writes.count.tolist() == [i + 1]
    return int(writes.projections), int(writes.resets)


SHAPES = [(8, 6), (256, 64), (16, 8, 3, 3)]  # the second is larger than its sample


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "write",
    [
        lambda w, _: w.clamp(-0.05, 0.05),
        lambda w, _: w.clamp(min=0),
        lambda w, _: normalize(w.flatten(1), dim=1).view_as(w),
        lambda w, _: w.renorm(2, 0, 0.1),
        lambda w, _: w / w.norm(),
    ],
    ids=["clamp", "nonnegative", "unit rows", "max norm", "unit norm"],
)
def test_constraints_are_projections(shape, write):
    assert after_writes(shape, write) == (4, 0)


def test_columns_of_unit_norm():
    assert after_writes((64, 16), lambda w, _: normalize(w, dim=0)) == (4, 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "write",
    [
        lambda w, first: first.clone(),
        lambda w, first: torch.randn(w.shape, generator=torch.Generator().manual_seed(1)) / 10,
        lambda w, first: torch.zeros_like(w),
        lambda w, first: w.lerp(first, 0.9),
    ],
    ids=["put back", "initialized again", "zeros", "averaged with the first"],
)
def test_values_that_are_put_back_are_none(shape, write):
    projections, resets = after_writes(shape, write, feasible=False)
    assert projections == 0
    assert resets >= 3


@pytest.mark.parametrize(
    "write",
    [lambda w, _: w / (8 * w.norm()) ** 2, lambda w, _: w.sign() * 0.05, lambda w, _: (16 * w).round() / 16],
    ids=["normalised twice", "signs", "rounded"],
)
def test_scalings_that_do_not_keep_what_meets_them_are_none(write):
    assert after_writes((8, 6), write, feasible=False)[0] == 0
