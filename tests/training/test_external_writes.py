"""What writes to the weights between steps: a constraint, or values that are put back."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from pytest_ftcheck import diagnose, finetune, tiny_distilbert, toy_batches
from pytest_ftcheck.instruments.sampled_elements import SampledElements, sample_size
from pytest_ftcheck.training.external_writes import ExternalWrites


def after_writes(shape, write, *, feasible=True, steps=4, found=None, every=1, size=0.01, scale=0.1):
    """Steps of noise on one parameter of the base, each followed by ``write(weight, its first values)``."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(scale * torch.randn(shape, generator=generator))
    if feasible:
        weight.data = write(weight.data, weight.data.clone())
    sampled = SampledElements([weight], [sample_size(weight.shape, "base", "matrix")])
    writes, first = ExternalWrites(sampled), weight.data.clone()
    start = sampled.values(sampled.zeros())
    for i in range(steps):
        weight.data = weight.data + size * torch.randn(shape, generator=generator)
        ended = sampled.values(sampled.zeros())
        weight.data = write(weight.data, first)
        writes.update(sampled.values(sampled.zeros()), ended, start, steps=every * (i + 1))
        assert writes.count.tolist() == [i + 1]
    if found is not None:
        found += [int(v) for v in (writes.projections, writes.roundings, writes.resets)]
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


def at_random(w):
    """Rounded to bfloat16, up or down."""
    noise = torch.randint(0, 2**16, w.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(2))
    return ((w.contiguous().view(torch.int32) + noise) & -(2**16)).view(torch.float32)


def in_steps(w, largest):
    """Rounded to 127 steps on either side of zero."""
    return (w * 127 / largest).round() * (largest / 127)


ROUNDINGS = {
    "bfloat16": lambda w: w.bfloat16().float(),
    "float16": lambda w: w.half().float(),
    "float8": lambda w: w.to(torch.float8_e4m3fn).float(),
    "at random": at_random,
    "steps": lambda w: (w * 256).round() / 256,
    "8 bits a tensor": lambda w: in_steps(w, w.abs().max()),
    "8 bits a row": lambda w: in_steps(w.flatten(1), w.flatten(1).abs().amax(1, keepdim=True).clamp_min(1e-12)).view_as(
        w
    ),
}


@pytest.mark.parametrize(
    ("name", "shape"),
    # six values of a row do not show their step
    [(n, s) for n in ROUNDINGS for s in SHAPES if (n, s) != ("8 bits a row", SHAPES[0])],
)
def test_rounding_is_a_projection(name, shape):
    found = roundings_of(shape, lambda w, _: ROUNDINGS[name](w))
    assert found == [4, 4, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_other_writes_do_not_round(shape):
    narrow = torch.randn(shape, generator=torch.Generator().manual_seed(3)).bfloat16().float() / 8
    for write in (
        lambda w, _: w.clamp(-0.05, 0.05),
        lambda w, first: w.lerp(first, 0.5),
        lambda w, _: w + 1e-3 * torch.randn(w.shape, generator=torch.Generator().manual_seed(4)),
        lambda w, first: narrow if first.equal(narrow) else first,
        lambda w, _: narrow,  # a checkpoint in bfloat16, put back again and again
    ):
        assert roundings_of(shape, write)[1] == 0


def test_one_other_write_and_the_later_ones_are_no_rounding():
    writes = []

    def write(w, first):
        writes.append(1)
        return first.clone() if len(writes) == 3 else w.bfloat16().float()

    assert roundings_of((256, 64), write, feasible=False)[1] == 2


def roundings_of(shape, write, *, feasible=True):
    """Projections, roundings and resets of four writes."""
    counts = []
    after_writes(shape, write, feasible=feasible, found=counts)
    return counts


@pytest.mark.parametrize("name", ["float8", "8 bits a tensor"])
def test_narrow_values_that_are_put_back_every_few_steps_are_no_rounding(name):
    def put_back(_, first):
        return ROUNDINGS[name](first)

    found: list[int] = []
    after_writes((256, 64), put_back, feasible=False, found=found, size=1e-4, every=4)
    assert found[:2] == [0, 0]
    assert found[2] >= 3  # the first one undoes less than it changes


def test_small_values_that_are_set_to_zero_are_not_rounded():
    found: list[int] = []
    after_writes((256, 64), lambda w, _: 0 * w, feasible=False, found=found, size=1e-4, scale=1e-4)
    assert found == [0, 0, 4]


@pytest.mark.parametrize("every", [1, 4])
def test_rounding_every_few_steps_is_rounding(every):
    found: list[int] = []
    after_writes((256, 64), lambda w, _: w.bfloat16().float(), feasible=False, found=found, size=1e-3, every=every)
    assert found == [4, 4, 0]


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
    [lambda w, _: w / (8 * w.norm()) ** 2, lambda w, _: w.sign() * 0.05],
    ids=["normalised twice", "signs"],
)
def test_scalings_that_do_not_keep_what_meets_them_are_none(write):
    assert after_writes((8, 6), write, feasible=False)[0] == 0


@pytest.mark.parametrize(
    ("name", "faults"),
    [("steps", {"weights_rounded"}), ("bfloat16", set()), ("at random", set()), ("8 bits a row", set())],
)
def test_a_loop_that_rounds_its_weights(name, faults):
    def step(model, batch, optimizer, _):
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(ROUNDINGS[name](p.detach().reshape(len(p) if p.dim() > 1 else 1, -1)).view_as(p))
        return loss

    found = diagnose(finetune(tiny_distilbert, toy_batches(), step=step, lr=5e-4))
    assert {v.fault for v in found.having("fail")} == faults
