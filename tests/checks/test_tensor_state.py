"""The kinds of gradient, told apart at their limits; what weighs as a fault and what as a peculiarity."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pytest_ftcheck.checks.tensor_state import (
    EPS_SHARE,
    NOISE,
    NOISE_ASSUMED,
    epsilon,
    fraction,
    kind_of,
    largest_norm,
    nothing_happened,
    weigh,
)
from pytest_ftcheck.core.example_trace import example_trace, tensor
from pytest_ftcheck.core.formatting import block_of
from pytest_ftcheck.core.observations import Gradients, Iteration

FINE = Gradients(20, 0, 0, 0, 0, None, 0.5, 0.4, 0.008)


def kind(shape=(64, 64), trace=None, largest=1.0, **gradients):
    return kind_of(
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
def test_kinds_at_their_limits(gradients, expected):
    assert kind(**gradients) == expected


def test_noise_is_assumed_of_tiny_vectors_only_and_only_without_the_probe():
    tiny = {"max_norm": 0.99 * NOISE_ASSUMED, "max_rms": 1e-6}
    assert kind(shape=(64,), **tiny) == "noise"
    assert kind(shape=(64,), **{**tiny, "max_norm": 1.01 * NOISE_ASSUMED}) == "fine"
    assert kind(shape=(64, 64), **tiny) == "fine"
    assert kind(shape=(64,), **tiny, noise=0.001) == "fine"


def test_nothing_is_negligible_beside_an_eps_that_plays_no_part():
    made = example_trace()
    sgd = replace(made, optimizer=replace(made.optimizer, name="SGD", family="sgd"))
    assert kind(trace=sgd, max_rms=1e-30) == "fine"
    assert epsilon(tensor("w", "head"), sgd) is None
    no_eps = replace(made.optimizer.groups[0], settings={})
    lion = replace(made, optimizer=replace(made.optimizer, groups=(no_eps,)))
    assert kind(trace=lion, max_rms=1e-30) == "fine"
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
    ("bad", "ill"),
    [
        ([], []),
        (HEAD[:1], HEAD[:1]),  # every tensor of the head counts
        (LAYERS[:1], LAYERS[:1]),  # the same place in another block lives: cut off here alone
        (LAYERS[::2], []),  # the same place in all blocks, each of which lives, is odd
        (LAYERS[:2], LAYERS[:2]),  # a whole block is a fault
        (POOLER, []),  # a module that nothing reads is odd
        ([*LAYERS, *POOLER], [*LAYERS, *POOLER]),  # the whole base is a fault
        ([*LAYERS, *POOLER[:1]], LAYERS),
        (ALL, ALL),
    ],
)
def test_what_weighs(bad, ill):
    judged = weigh(bad, ALL)
    assert list(judged.ill) == ill
    assert {t.name for t in judged.odd} == {t.name for t in bad} - {t.name for t in ill}


@pytest.mark.parametrize("value", [True, "0.1", None, [0.1]])
def test_limits_are_numbers(value):
    with pytest.raises(TypeError, match="alpha="):
        fraction("alpha", value)


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, math.nan, math.inf])
def test_limits_are_shares(value):
    with pytest.raises(ValueError, match=r"alpha=.*expected a number above 0 and below 1"):
        fraction("alpha", value)
    assert fraction("alpha", 0.5) == 0.5
    assert fraction("steps", 7, high=math.inf) == 7.0


def test_a_run_without_a_step_is_explained():
    assert nothing_happened(example_trace()) is None
    idle = Iteration(0.7, None, 0, True)
    headline, causes, remedy = nothing_happened(example_trace(steps=(), iterations=(idle,) * 1200))
    assert headline == "no optimizer step was taken in 1,200 iterations"
    assert any("GradScaler" in c for c in causes)
    assert "AdamW.step()" in remedy
    assert nothing_happened(example_trace(steps=(), iterations=()))[0] == "no optimizer step was taken"
    cut = Iteration(None, None, 0, True, "the loss has no graph, for a reason")
    headline, causes, _ = nothing_happened(example_trace(steps=(), iterations=(cut,)))
    assert headline.endswith("the loss has no graph, for a reason")
    assert causes == ("the loss has no graph, for a reason",)


def test_a_stack_of_blocks_that_nothing_reads_beside_one_that_lives_is_odd():
    decoder = [base(f"b.decoder.{i}.weight") for i in (0, 1)]
    judged = weigh(decoder, [*ALL, *decoder])
    assert judged.ill == ()
    assert list(judged.odd) == decoder
    # one block of it dead, its neighbour alive: a cut in the middle
    assert list(weigh(decoder[:1], [*ALL, *decoder]).ill) == decoder[:1]


def test_with_matrices_alone_biases_do_not_make_a_block_alive_or_dead():
    bias = tensor("b.layer.0.q.bias", "base", shape=(64,))
    selected = [*LAYERS, bias, *HEAD]
    assert list(weigh([bias], selected, matrices=True).odd) == [bias]
    assert list(weigh(LAYERS[:2], selected, matrices=True).ill) == LAYERS[:2]
    # the bias makes its block live: what is dead in both blocks is odd there, and a fault in the block that is dead as a whole
    assert list(weigh(LAYERS, selected).odd) == LAYERS[:2]
    assert list(weigh(LAYERS, selected).ill) == LAYERS[2:]
    assert list(weigh(LAYERS, selected, matrices=True).ill) == LAYERS
    # a tensor whose like in another block lives is a fault, unless a feeble gradient is what is weighed
    assert list(weigh(LAYERS[:1], selected).ill) == LAYERS[:1]
    assert list(weigh(LAYERS[:1], selected, matrices=True).odd) == LAYERS[:1]


def test_a_gradient_of_exactly_zero_in_a_block_that_lives_may_be_by_design():
    """Longformer's global attention, where no token is global: part of the graph, and multiplied by zero."""
    zero = base("b.layer.0.v.weight", none=0)
    twin = base("b.layer.1.v.weight")
    assert list(weigh([zero], [*ALL, zero, twin]).odd) == [zero]
    assert list(weigh([twin], [*ALL, zero, twin]).ill) == [twin]


def test_an_idle_expert_is_odd():
    """Which tokens an expert gets is chance; the whole base is still a fault."""
    experts = [base(f"b.layer.0.experts.{i}.weight") for i in range(3)]
    selected = [*ALL, *experts]
    assert list(weigh(experts[:1], selected).odd) == experts[:1]
    assert list(weigh([*experts[:1], *LAYERS[:2]], selected).ill) == LAYERS[:2]
    twins = [base(f"b.layer.1.experts.{i}.weight") for i in range(3)]
    assert list(weigh(experts[:1], [*selected, *twins]).odd) == experts[:1]
    plain = [base(f"b.layer.{i}.parts.0.weight") for i in (0, 1)]
    assert list(weigh(plain[:1], [*ALL, *plain]).ill) == plain[:1]


def test_all_embeddings_dead_is_a_fault():
    tables = [tensor(f"b.{n}.weight", "base", role="embedding") for n in ("words", "positions")]
    assert list(weigh(tables, [*ALL, *tables]).ill) == tables
    assert list(weigh(tables[:1], [*ALL, *tables]).odd) == tables[:1]
