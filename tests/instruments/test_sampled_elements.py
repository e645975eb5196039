"""Which elements of a tensor are sampled, and what is read where the tensor's memory is exchanged."""

import pytest
import torch
from torch import nn

from pytest_ftcheck.instruments.sampled_elements import (
    SAMPLE_BASE,
    SAMPLE_HEAD,
    SampledElements,
    SampleSize,
    sample_size,
)


def _parameter(*shape):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("shape", [(768, 768), (1025,), (40, 33), (7, 11, 19), (3000, 2), (2, 3000)])
@pytest.mark.parametrize("size", [SampleSize(512, 16), SampleSize(1024), SampleSize(64, 4), SampleSize(8)])
def test_one_run_of_each_equal_part(shape, size):
    p = _parameter(*shape)
    (index,) = SampledElements([p], [size]).index
    places = index.tolist()
    assert places == sorted(set(places))
    assert places[-1] < p.numel()
    starts = [place for place in places if place % size.run == 0]
    assert set(places) == {s + i for s in starts for i in range(size.run) if s + i < p.numel()}, "whole runs"
    runs = size.elements // size.run
    assert len(starts) == runs
    slots = -(-p.numel() // size.run)
    for number, start in enumerate(starts):
        assert number * slots // runs <= start // size.run < (number + 1) * slots // runs


def test_a_small_tensor_is_read_whole():
    sampled = SampledElements([_parameter(3, 4)], [SampleSize(12)])
    assert sampled.index == [None]
    assert sampled.counts == [12]


def test_how_much_of_a_parameter():
    assert sample_size((64, 64), "head", "matrix").elements == SAMPLE_HEAD
    assert sample_size((64, 64), "base", "matrix") == (SAMPLE_BASE, 64)
    assert sample_size((64, 64), "base", "embedding") == (SAMPLE_BASE, 1), "as many rows as there are elements"
    assert sample_size((2000, 64), "base", "matrix") == (SAMPLE_BASE, 1), "a table of the user's own"
    assert sample_size((3072, 768), "base", "matrix") == (SAMPLE_BASE, 64)
    assert sample_size((5000,), "base", "bias") == (SAMPLE_BASE, 64)


def test_tensors_of_one_shape_have_the_same_elements_where_asked():
    parameters = [_parameter(50, 50), _parameter(50, 50), _parameter(25, 100)]
    apart = SampledElements(parameters, [SampleSize(64)] * 3).index
    alike = SampledElements(parameters, [SampleSize(64)] * 3, alike=True).index
    assert not torch.equal(apart[0], apart[1])
    assert torch.equal(alike[0], alike[1])
    assert not torch.equal(alike[0], alike[2])


def _other_memory(p):
    p.data = torch.randn(p.shape)


def _other_order(p):
    p.data = p.data.t()


def _in_place(p):
    p.data.mul_(3)


def _smaller_and_back(p):
    kept = p.data
    p.data = kept[:1]
    p.data = kept + 1


def _half_precision_and_back(p):
    p.data = p.data.half()
    p.data = p.data.float()


@pytest.mark.parametrize(
    "change", [_other_memory, _other_order, _in_place, _smaller_and_back, _half_precision_and_back]
)
@pytest.mark.parametrize("size", [SampleSize(64, 16), SampleSize(4096)])
def test_what_is_read_are_the_values_of_now(change, size):
    parameters = [_parameter(40, 40), _parameter(40, 40)]
    sampled = SampledElements(parameters, [size] * 2)
    out = sampled.values(sampled.zeros())
    for _ in range(2):
        change(parameters[0])
        flat = [p.detach().reshape(-1) for p in parameters]
        expected = torch.cat([f if i is None else f[i] for f, i in zip(flat, sampled.index, strict=True)])
        assert torch.equal(sampled.values(out), expected)


def test_values_of_another_type_are_read():
    p = _parameter(40, 40)
    sampled = SampledElements([p], [SampleSize(64, 16)])
    sampled.values(sampled.zeros())
    p.data = p.data.to(torch.bfloat16)
    assert torch.equal(sampled.values(sampled.zeros()), p.detach().reshape(-1)[sampled.index[0]].float())
