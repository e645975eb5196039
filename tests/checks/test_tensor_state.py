"""The states of a gradient at their limits; which missing gradients are faults and which are peculiarities of the architecture."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck.checks.tensor_state import (
    EPS_SHARE,
    NOISE,
    NOISE_ASSUMED,
    epsilon,
    gradient_state,
    largest_norm,
    split_faulty,
)
from pytest_ftcheck.core.example_trace import example_trace, tensor
from pytest_ftcheck.core.formatting import block_of
from pytest_ftcheck.core.observations import Gradients

FINE = Gradients(20, 0, 0, 0, 0, None, 0.5, 0.4, 0.008)


def state(shape=(64, 64), trace=None, largest=1.0, **gradients):
    return gradient_state(
        tensor("w.weight", "head", shape=shape, gradients=replace(FINE, **gradients)), trace or example_trace(), largest
    )


@pytest.mark.parametrize(
    ("gradients", "expected"),
    [
        ({}, "fine"),
        ({"nonfinite": 1, "first_nonfinite": 3}, "nonfinite"),
        ({"nonfinite": 1, "none": 20}, "nonfinite"),
        ({"none": 20}, "none"),
        ({"none": 19}, "fine"),
        ({"steps": 0}, "none"),
        ({"zero": 20, "max_norm": 0.0, "first_nonzero": None}, "zero"),
        ({"zero": 19, "first_nonzero": 19}, "transient"),
        ({"first_nonzero": 1}, "transient"),
        ({"noise": NOISE * 1.01}, "noise"),
        ({"noise": NOISE * 0.99}, "fine"),
        ({"noise": 0.27}, "noise"),
        ({"noise": 0.005}, "fine"),
        ({"max_rms": 0.99e-8 * EPS_SHARE}, "negligible"),
        ({"max_rms": 1.01e-8 * EPS_SHARE}, "fine"),
    ],
)
def test_states_at_their_limits(gradients, expected):
    assert state(**gradients) == expected


def test_noise_is_assumed_of_tiny_vectors_only_and_only_without_the_probe():
    tiny = {"max_norm": 0.99 * NOISE_ASSUMED, "max_rms": 1e-6}
    assert state(shape=(64,), **tiny) == "noise"
    assert state(shape=(64,), **{**tiny, "max_norm": 1.01 * NOISE_ASSUMED}) == "fine"
    assert state(shape=(64, 64), **tiny) == "fine"
    assert state(shape=(64,), **tiny, noise=0.001) == "fine"


def test_nothing_is_negligible_beside_an_eps_that_plays_no_part():
    made = example_trace()
    sgd = replace(made, optimizer=replace(made.optimizer, name="SGD", family="sgd"))
    assert state(trace=sgd, max_rms=1e-30) == "fine"
    assert epsilon(tensor("w", "head"), sgd) is None
    no_eps = replace(made.optimizer.groups[0], settings={})
    lion = replace(made, optimizer=replace(made.optimizer, groups=(no_eps,)))
    assert state(trace=lion, max_rms=1e-30) == "fine"
    assert epsilon(tensor("w", "head"), replace(made, optimizer=replace(made.optimizer, groups=()))) is None


def test_eps_is_that_of_the_tensors_own_group():
    made = example_trace()
    group = made.optimizer.groups[0]
    two = (group, replace(group, index=1, settings={"eps": 1e-3}))
    trace = replace(made, optimizer=replace(made.optimizer, groups=two))
    assert epsilon(tensor("w", "head", group=1), trace) == 1e-3
    assert epsilon(tensor("w", "head", group=None), trace) == 1e-8
    assert epsilon(tensor("w", "head", group=7), trace) == 1e-8


def test_the_largest_norm_leaves_out_what_is_not_finite():
    made = example_trace(
        tensors=(
            tensor("a", "base", gradients=replace(FINE, max_norm=math.inf)),
            tensor("b", "base", gradients=replace(FINE, max_norm=0.25)),
        )
    )
    assert largest_norm(made) == 0.25
    assert largest_norm(example_trace(tensors=())) == 0


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("bert.encoder.layer.11.output.dense.weight", "bert.encoder.layer.11"),
        ("bert.pooler.dense.bias", "bert.pooler.dense"),
        ("weight", ""),
        ("0.weight", "0"),
        ("w.2", "w"),
    ],
)
def test_units(name, unit):
    assert block_of(name) == unit


def base(name, none=20):
    """A base tensor without a gradient at any step, or (``none=0``) with one of exactly zero."""
    return tensor(name, "base", gradients=Gradients(20, none, 20 - none, 0, None, None, 0.0, 0.0, 0.0))


LAYERS = [base(f"b.layer.{i}.{m}.weight") for i in (0, 1) for m in ("q", "k")]
POOLER = [base("b.pooler.weight"), base("b.pooler.bias")]
HEAD = [tensor("head.weight", "head"), tensor("head.bias", "head")]
ALL = [*LAYERS, *POOLER, *HEAD]


@pytest.mark.parametrize(
    ("missing", "faulty"),
    [
        ([], []),
        (HEAD[:1], HEAD[:1]),  # every tensor of the head counts
        (LAYERS[:1], LAYERS[:1]),  # its counterpart in another block learns: cut off here alone
        (LAYERS[::2], []),  # the same place in all blocks, each of which learns, is exempt
        (LAYERS[:2], LAYERS[:2]),  # a whole block is a fault
        (POOLER, []),  # a module that nothing reads is exempt
        ([*LAYERS, *POOLER], [*LAYERS, *POOLER]),  # the whole base is a fault
        ([*LAYERS, *POOLER[:1]], LAYERS),
        (ALL, ALL),
    ],
)
def test_faulty_and_exempt(missing, faulty):
    split = split_faulty(missing, ALL)
    assert list(split.faulty) == faulty
    assert {t.name for t in split.exempt} == {t.name for t in missing} - {t.name for t in faulty}


def test_a_stack_of_blocks_that_nothing_reads_beside_one_that_learns_is_exempt():
    decoder = [base(f"b.decoder.{i}.weight") for i in (0, 1)]
    split = split_faulty(decoder, [*ALL, *decoder])
    assert split.faulty == ()
    assert list(split.exempt) == decoder
    # one block of it dead, its neighbour alive: a cut in the middle
    assert list(split_faulty(decoder[:1], [*ALL, *decoder]).faulty) == decoder[:1]


def test_with_matrices_alone_biases_do_not_make_a_block_alive_or_dead():
    bias = tensor("b.layer.0.q.bias", "base", shape=(64,))
    selected = [*LAYERS, bias, *HEAD]
    assert list(split_faulty([bias], selected, matrices=True).exempt) == [bias]
    assert list(split_faulty(LAYERS[:2], selected, matrices=True).faulty) == LAYERS[:2]
    # the bias makes its block learn: a tensor without gradient is exempt there, and faulty in the block that has none at all
    assert list(split_faulty(LAYERS, selected).exempt) == LAYERS[:2]
    assert list(split_faulty(LAYERS, selected).faulty) == LAYERS[2:]
    assert list(split_faulty(LAYERS, selected, matrices=True).faulty) == LAYERS
    # a tensor whose counterpart in another block learns is faulty, unless matrices alone are judged
    assert list(split_faulty(LAYERS[:1], selected).faulty) == LAYERS[:1]
    assert list(split_faulty(LAYERS[:1], selected, matrices=True).exempt) == LAYERS[:1]


def test_a_gradient_of_exactly_zero_in_a_block_that_learns_may_be_by_design():
    """Longformer's global attention, where no token is global: part of the graph, and multiplied by zero."""
    zero = base("b.layer.0.v.weight", none=0)
    twin = base("b.layer.1.v.weight")
    assert list(split_faulty([zero], [*ALL, zero, twin]).exempt) == [zero]
    assert list(split_faulty([twin], [*ALL, zero, twin]).faulty) == [twin]


def test_an_idle_expert_is_exempt():
    """Which tokens an expert gets is chance; the whole base is still a fault."""
    experts = [base(f"b.layer.0.experts.{i}.weight") for i in range(3)]
    selected = [*ALL, *experts]
    assert list(split_faulty(experts[:1], selected).exempt) == experts[:1]
    assert list(split_faulty([*experts[:1], *LAYERS[:2]], selected).faulty) == LAYERS[:2]
    twins = [base(f"b.layer.1.experts.{i}.weight") for i in range(3)]
    assert list(split_faulty(experts[:1], [*selected, *twins]).exempt) == experts[:1]
    plain = [base(f"b.layer.{i}.parts.0.weight") for i in (0, 1)]
    assert list(split_faulty(plain[:1], [*ALL, *plain]).faulty) == plain[:1]


def test_all_embeddings_dead_is_a_fault():
    tables = [tensor(f"b.{n}.weight", "base", role="embedding") for n in ("words", "positions")]
    assert list(split_faulty(tables, [*ALL, *tables]).faulty) == tables
    assert list(split_faulty(tables[:1], [*ALL, *tables]).exempt) == tables[:1]
