"""The strategies: what they draw is valid, prints as code, shrinks to the plain case, and leaves torch's random state alone."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from hypothesis import Phase, find, given, settings, target
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from torch import nn

from pytest_ftcheck import Verdict, assert_loss_decreases, finetune, tiny_distilbert, toy_features
from pytest_ftcheck.core.hypothesis_target import in_example
from pytest_ftcheck.strategies import (
    KINDS,
    SPECIAL,
    Head,
    InitScheme,
    Recipe,
    TokenBatches,
    batches,
    heads,
    init_schemes,
    recipes,
    seeds,
    toward_border,
)

STILL = settings(database=None, derandomize=True, deadline=None, phases=[Phase.generate, Phase.target, Phase.shrink])


def drawn(strategy, examples=200):
    """What the strategy gives, always the same."""
    seen = []

    @settings(STILL, max_examples=examples, phases=[Phase.generate])
    @given(strategy)
    def collect(value):
        seen.append(value)

    collect()
    return seen


def smallest(strategy, condition=lambda value: True):
    return find(strategy, condition, settings=STILL)


ALL = {
    "schemes": init_schemes(
        kinds=[*KINDS, *SPECIAL], gain=(0.5, 2.0), fans=["fan_in", "fan_out"], bias=(0.0, 0.1, "torch")
    ),
    "heads": heads(12, 3),
    "recipes": recipes(optimizers=["adamw", "sgd"], weight_decay=(0.0, 0.1)),
    "batches": batches(3, every_class=False),
    "seeds": seeds(),
}


@pytest.mark.parametrize("name", ALL)
def test_what_is_drawn_prints_as_code_that_makes_it_anew(name):
    from hypothesis.vendor.pretty import pretty

    for value in drawn(ALL[name], 100):
        for code in (repr(value), pretty(value)):
            again = eval(code)  # the strategies' module exports every name that a counterexample has
            assert repr(again) == repr(value)
            if isinstance(value, nn.Module):
                assert all(a.equal(b) for a, b in zip(again.parameters(), value.parameters(), strict=True))
            else:
                assert again == value


def test_a_counterexample_is_printed_as_code():
    @settings(STILL, max_examples=100)
    @given(
        scheme=init_schemes(std=(1e-3, 1.0)),
        head=heads(8, 2),
        recipe=recipes(),
        rows=batches(),
        seed=seeds(),
    )
    def test(scheme, head, recipe, rows, seed):
        std = scheme.weight.std
        assert std is None or std < 0.3 or len(head) < 2

    with pytest.raises(AssertionError) as failed:
        test()
    text = "\n".join(failed.value.__notes__)
    assert "scheme=InitScheme.normal(std=0.305)" in text
    assert "head=Head(8, 2, widths=(8,))" in text
    assert "rows=TokenBatches(batches=1, rows=2, shortest=1, longest=1)" in text
    assert f"recipe={smallest(recipes())!r}" in text  # not a call of what drew its numbers
    assert "seed=0" in text


def test_features_in_a_counterexample_are_one_line():
    @settings(STILL, max_examples=1)
    @given(st.just(toy_features()))
    def test(features):
        raise AssertionError

    with pytest.raises(AssertionError) as failed:
        test()
    text = "\n".join(failed.value.__notes__)
    assert "features=<Features of 256 rows x 64, 128 held out: single_label, 2 classes, toy_features(seed=0)>" in text


class TestTheGlobalRandomState:
    def test_is_the_same_for_every_example_and_as_before_afterwards(self):
        before = torch.get_rng_state()
        first = []

        @settings(STILL, max_examples=20)
        @given(seed=seeds())
        def test(seed):
            first.append(float(torch.rand(1)))

        test()
        assert len(set(first)) == 1
        assert torch.get_rng_state().equal(before)

    def test_is_as_before_after_a_failure_and_an_example_that_depends_on_it_is_not_flaky(self):
        before = torch.get_rng_state()

        @settings(STILL, max_examples=50)
        @given(x=st.integers(0, 1000))
        def test(x):
            assert x < 10 + float(nn.Dropout(0.5)(torch.ones(100)).mean())

        with pytest.raises(AssertionError):  # and no FlakyFailure
            test()
        assert torch.get_rng_state().equal(before)

    @pytest.mark.parametrize("name", ["schemes", "heads", "recipes", "batches", "seeds"])
    def test_is_not_used_by_what_is_drawn(self, name):
        states = []

        @settings(STILL, max_examples=20)
        @given(ALL[name])
        def test(value):
            if isinstance(value, InitScheme):
                value.apply(Head(4, 2, widths=[4]))
            states.append(torch.get_rng_state())

        test()
        assert all(state.equal(states[0]) for state in states)

    def test_without_torch_hypothesis_is_told_nothing(self, monkeypatch):
        from pytest_ftcheck.strategies import _TORCH_RANDOM

        monkeypatch.delitem(__import__("sys").modules, "torch")
        _TORCH_RANDOM.seed(0)
        assert _TORCH_RANDOM.getstate() is None
        _TORCH_RANDOM.setstate(None)


class TestInitSchemes:
    def test_shrink_to_the_plainest(self):
        assert smallest(init_schemes()) == InitScheme.normal(std=0.001)
        everything = init_schemes(kinds=[*KINDS, *SPECIAL], gain=(0.5, 2.0), bias=(0.0, 0.1, "torch"))
        assert smallest(everything) == InitScheme.normal(std=0.001)
        assert smallest(init_schemes(kinds=["torch_default", "normal"])) == InitScheme.torch_default()
        assert smallest(init_schemes(), lambda s: s.last is not None).last == InitScheme.zeros()

    @pytest.mark.parametrize(("limit", "found"), [(0.02, 0.02), (0.0213, 0.0215), (0.058, 0.06), (0.0999, 0.1)])
    def test_the_std_shrinks_to_the_smallest_beyond_the_limit(self, limit, found):
        only = init_schemes(kinds=["normal"], positions=False)
        assert smallest(only, lambda s: s.weight.std >= limit).weight.std == found

    def test_draw_every_kind_unless_told_otherwise(self):
        assert {s.weight.kind for s in drawn(init_schemes())} == set(KINDS)
        assert {s.weight.kind for s in drawn(init_schemes(kinds=("orthogonal", "zeros")))} == {"orthogonal", "zeros"}
        alike = drawn(init_schemes(positions=False))
        assert not any(s.first or s.last for s in alike)
        assert {s.bias for s in alike} == {0.0, "torch"}

    def test_stds_are_within_the_range_to_its_ends_and_even_over_the_decades(self):
        stds = [s.weight.std for s in drawn(init_schemes(std=(0.00123, 0.77), kinds=["normal"], positions=False), 2000)]
        assert min(stds) == 0.00123
        assert max(stds) == 0.77
        # 2.8 decades: each holds about a third; an even choice of the number itself would put 0.2 % below 0.01
        shares = [sum(lo <= s < 10 * lo for s in stds) / len(stds) for lo in (0.00123, 0.0123)]
        assert all(0.2 < share < 0.55 for share in shares)

    def test_neighbours_are_close(self):
        stds = sorted(
            {s.weight.std for s in drawn(init_schemes(std=(0.01, 0.1), kinds=["normal"], positions=False), 500)}
        )
        assert len(stds) > 50
        assert all(b / a < 1.076 for a, b in itertools.pairwise(stds))

    def test_a_uniform_has_the_std(self):
        for scheme in drawn(init_schemes(std=0.02, kinds=["uniform"], positions=False), 5):
            assert scheme.weight.std_of(8, 8) == pytest.approx(0.02, rel=0.01)

    def test_single_numbers_and_narrow_ranges(self):
        assert {s.weight.std for s in drawn(init_schemes(std=0.02, kinds=["normal"]), 20)} == {0.02}
        stds = {s.weight.std for s in drawn(init_schemes(std=(0.02, 0.020001), kinds=["normal"]), 100)}
        assert len(stds) > 10
        assert all(0.02 <= s <= 0.020001 for s in stds)

    @settings(STILL, max_examples=100)
    @given(scheme=init_schemes(kinds=[*KINDS, *SPECIAL], bias=(0.0, "torch")), head=heads(6, 2), seed=seeds())
    def test_apply_to_every_head(self, scheme, head, seed):
        assert scheme.apply(head, seed=seed) is head
        assert all(p.isfinite().all() for p in head.parameters())

    @pytest.mark.parametrize(
        ("arguments", "error", "words"),
        [
            ({"std": 0.0}, ValueError, "std=0.0: expected numbers > 0"),
            ({"std": (0.1, 0.01)}, ValueError, "the lowest first"),
            ({"std": (0.1, math.inf)}, ValueError, "finite"),
            ({"std": "0.1"}, TypeError, r"std='0.1': expected a number, or \(lowest, highest\)"),
            ({"std": (1, 2, 3)}, TypeError, "lowest, highest"),
            ({"gain": (-1.0, 1.0)}, ValueError, "gain"),
            ({"kinds": ("gaussian",)}, ValueError, "'gaussian' is none of normal"),
            ({"kinds": "normal"}, TypeError, "kinds='normal': expected one or more of"),
            ({"kinds": ()}, ValueError, "kinds"),
            ({"bias": ("zero",)}, TypeError, "finite numbers, or 'torch'"),
            ({"bias": ()}, ValueError, "bias"),
            ({"fans": ("out",)}, ValueError, "'out' is none of fan_in, fan_out"),
            ({"positions": 1}, TypeError, "positions=1"),
        ],
    )
    def test_bad_arguments_are_told_at_once(self, arguments, error, words):
        with pytest.raises(error, match=words):
            init_schemes(**arguments)


class TestHeads:
    def test_shrink_to_one_layer(self):
        assert repr(smallest(heads(384))) == "Head(384, 2)"
        assert repr(smallest(heads(384), lambda h: len(h) > 1)) == "Head(384, 2, widths=(8,))"
        assert "layer_norm=True" in repr(smallest(heads(384), lambda h: any(isinstance(m, nn.LayerNorm) for m in h)))

    def test_are_within_their_ranges(self):
        for head in drawn(heads(16, 3, depth=(2, 3), widths=(4, 9), dropout=(0.1, 0.3), layer_norm=True)):
            linear = [m for m in head if isinstance(m, nn.Linear)]
            assert 2 <= len(linear) <= 3
            assert (linear[0].in_features, linear[-1].out_features) == (16, 3)
            assert all(4 <= m.out_features <= 9 for m in linear[:-1])
            assert {m.p for m in head if isinstance(m, nn.Dropout)} <= {0.1, 0.2, 0.3}
            assert sum(isinstance(m, nn.LayerNorm) for m in head) == len(linear) - 1
            assert head(torch.zeros(5, 16)).shape == (5, 3)

    def test_narrow_features_have_narrow_heads(self):
        assert all(len(h) == 1 or h[0].out_features <= 3 for h in drawn(heads(3), 50))

    def test_a_head_starts_as_torch_starts_it_under_its_seed(self):
        a, b, other = Head(256, 2, widths=[512]), Head(256, 2, widths=[512]), Head(256, 2, widths=[512], seed=1)
        assert a[0].weight.equal(b[0].weight)
        assert not a[0].weight.equal(other[0].weight)
        assert float(a[0].weight.detach().abs().max()) == pytest.approx(1 / 16, rel=1e-3)
        assert float(a[0].weight.detach().std()) == pytest.approx(1 / 16 / math.sqrt(3), rel=0.01)

    def test_a_head_is_a_sequential_like_any_other(self):
        head = Head(8, 2, widths=[4], dropout=0.2)
        assert repr(copy.deepcopy(head)) == repr(head)
        assert repr(pickle.loads(pickle.dumps(head))) == repr(head)
        assert type(head[:-1]) is nn.Sequential
        assert list(dict(head[2:].named_children())) == ["2", "3"]
        assert head[-1] is head[3]
        head.append(nn.ReLU())
        assert repr(head).startswith("Head(\n")  # no longer what the code would make

    @pytest.mark.parametrize(
        ("arguments", "error", "words"),
        [
            ({"in_features": 0}, ValueError, "in_features=0"),
            ({"classes": 1.5}, TypeError, "classes=1.5"),
            ({"depth": (0, 2)}, ValueError, "depth"),
            ({"depth": (1.0, 2.0)}, TypeError, "whole numbers"),
            ({"widths": (8, 4)}, ValueError, "widths"),
            ({"activations": ("swish",)}, ValueError, "swish"),
            ({"dropout": (0.0, 1.0)}, ValueError, "dropout"),
            ({"layer_norm": "yes"}, TypeError, "layer_norm='yes'"),
        ],
    )
    def test_bad_arguments_are_told_at_once(self, arguments, error, words):
        with pytest.raises(error, match=words):
            heads(**{"in_features": 8, **arguments})

    def test_a_bad_head_is_told(self):
        for arguments, words in (
            ({"widths": 3}, "widths=3"),
            ({"widths": [0]}, r"widths\[0\]=0"),
            ({"activation": "swish"}, "activation='swish'"),
            ({"dropout": 1.0}, "dropout=1.0"),
            ({"seed": -1}, "seed=-1"),
        ):
            with pytest.raises((ValueError, TypeError), match=words):
                Head(4, 2, **arguments)


class TestRecipes:
    def test_shrink_to_the_plainest(self):
        assert smallest(recipes()) == Recipe(lr=1e-5, steps=10, warmup=0.0, weight_decay=0.01)

    def test_are_within_their_ranges(self):
        found = drawn(recipes(steps=(3, 5), lr=(1e-4, 1e-3), optimizers=["sgd", "adamw"], warmup=(0.1, 0.3)))
        assert {r.steps for r in found} == {3, 4, 5}
        assert all(1e-4 <= r.lr <= 1e-3 for r in found)
        assert {r.warmup for r in found} == {0.1, 0.2, 0.3}
        assert {(r.optimizer, r.schedule) for r in found} == {
            (o, s) for o in ("sgd", "adamw") for s in ("linear", "constant")
        }

    @pytest.mark.parametrize(
        "arguments",
        [
            {"lr": 0.0},
            {"steps": 0},
            {"optimizers": ["lion"]},
            {"warmup": (0, 1)},
            {"weight_decay": -1},
            {"schedules": ()},
        ],
    )
    def test_bad_arguments_are_told_at_once(self, arguments):
        with pytest.raises((ValueError, TypeError), match=next(iter(arguments))):
            recipes(**arguments)


class TestBatches:
    def test_shrink_to_one_small_even_batch(self):
        assert repr(smallest(batches())) == "TokenBatches(batches=1, rows=2, shortest=1, longest=1)"
        assert smallest(batches(), lambda b: len(b) > 1) == TokenBatches(batches=2, rows=2, shortest=1, longest=1)

    @pytest.mark.parametrize("layout", ["mapping", "tuple"])
    def test_are_what_they_say(self, layout):
        for value in drawn(batches(3, count=(1, 4), rows=(1, 6), words=(2, 7), layout=layout)):
            ids, mask, labels = [], [], []
            for batch in value:
                if layout == "mapping":
                    ids.append(batch["input_ids"])
                    mask.append(batch["attention_mask"])
                    labels.append(batch["labels"])
                else:
                    (i, length, m), y = batch
                    assert m.sum(1).equal(length)
                    ids.append(i)
                    mask.append(m)
                    labels.append(y)
            assert set(torch.cat(labels).tolist()) == {0, 1, 2}
            lengths = torch.cat([m.sum(1) for m in mask])
            assert 2 + 2 <= int(lengths.min()) <= int(lengths.max()) <= 7 + 2
            for i, m in zip(ids, mask, strict=True):
                assert i.shape == m.shape
                assert i.shape[1] == int(m.sum(1).max())  # no column is padding alone
                assert bool((i[m == 0] == 0).all())
                assert bool((i[m == 1] > 0).all())
                assert int(i.max()) < 200

    def test_cover_the_awkward(self):
        found = drawn(batches(), 400)
        widths = [[b["input_ids"].shape[1] for b in value] for value in found]
        assert any(len(set(w)) > 1 for w in widths)
        assert any(b["attention_mask"][0, 0] == 0 for value in found for b in value)  # left padding
        assert any(len(value[-1]["labels"]) == 1 < len(value[0]["labels"]) for value in found)
        shares = [float((torch.cat([b["labels"] for b in v]) == 0).float().mean()) for v in found]
        assert max(shares) > 0.8

    def test_a_class_may_be_left_out_if_asked(self):
        found = drawn(batches(every_class=False))
        assert {len({int(y) for b in v for y in b["labels"]}) for v in found} == {1, 2}

    def test_there_is_room_for_every_class_however_tight(self):
        for value in drawn(batches(8, count=(1, 3), rows=(1, 3)), 50):
            assert len({int(y) for b in value for y in b["labels"]}) == 8

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"classes": 1}, "classes=1"),
            ({"classes": 8, "count": 1, "rows": (1, 4)}, "rows=4: 4 rows in all are too few"),
            ({"words": (0, 3)}, "words"),
            ({"majority": (0.2, 0.9)}, "majority"),
            ({"padding": ["middle"]}, "middle"),
            ({"layout": "list"}, "layout='list'"),
            ({"vocabulary": 20}, "vocabulary=20"),
            ({"pad": 2}, "pad=2"),
            ({"length": 3}, "length"),
            ({"every_class": None}, "every_class"),
        ],
    )
    def test_bad_arguments_are_told_at_once(self, arguments, words):
        with pytest.raises((ValueError, TypeError), match=words):
            batches(**arguments)

    def test_a_bad_spec_is_told(self):
        for arguments, words in (
            ({"rows": 0}, "rows=0"),
            ({"last": 9}, "last=9"),
            ({"longest": 2}, "longest=2"),
            ({"empty_classes": 2}, "empty_classes=2"),
            ({"padding": "both"}, "padding='both'"),
            ({"row": 3}, "row: TokenBatches has no such argument"),
        ):
            with pytest.raises((ValueError, TypeError), match=words):
                TokenBatches(**arguments)

    def test_are_values(self):
        a = TokenBatches(rows=4, seed=3)
        assert a == TokenBatches(rows=4, seed=3) != TokenBatches(rows=4)
        assert len({a, TokenBatches(rows=4, seed=3)}) == 1
        assert pickle.loads(pickle.dumps(a)) == a
        assert copy.deepcopy(a) == a
        assert a != [1]

    def test_a_model_learns_them(self):
        trace = finetune(
            lambda: tiny_distilbert(), TokenBatches(batches=12, rows=16, layout="tuple", longest=9), lr=1e-3, steps=30
        )
        assert_loss_decreases(trace)


class TestSeeds:
    def test_shrink_to_zero(self):
        assert smallest(seeds()) == 0
        assert smallest(seeds(), lambda s: s > 7) == 8

    def test_bounds(self):
        assert max(drawn(seeds(max_value=3), 30)) <= 3
        with pytest.raises(ValueError, match="max_value=-1"):
            seeds(max_value=-1)
        with pytest.raises(TypeError, match="max_value"):
            seeds(max_value=1.5)


class TestTowardBorder:
    def test_is_silent_outside_of_a_property(self):
        assert not in_example()
        toward_border(0.5)
        toward_border(Verdict("weights_move", "pass", "moved", margin=0.5))

    def test_finds_a_rare_failure_that_chance_does_not(self):
        def falsified(guided):
            @settings(STILL, max_examples=300, phases=[Phase.generate, Phase.target])
            @given(x=st.integers(0, 10_000), y=st.integers(0, 10_000))
            def test(x, y):
                if guided:
                    toward_border(float(abs(x - 7411) + abs(y - 2308) - 3))
                assert abs(x - 7411) + abs(y - 2308) > 3

            try:
                test()
            except AssertionError:
                return True
            return False

        assert falsified(guided=True)
        assert not falsified(guided=False)

    def test_takes_verdicts_repeats_and_what_is_not_finite(self):
        @settings(STILL, max_examples=5)
        @given(x=st.integers(0, 10))
        def test(x):
            assert in_example()
            for _ in range(10):
                toward_border(Verdict("weights_move", "pass", "moved", margin=float(x)))
            toward_border(Verdict("weights_move", "pass", "moved"))
            for margin in (math.nan, math.inf, -math.inf, 3):
                toward_border(margin, label=f"{margin}")
            with pytest.raises(InvalidArgument):  # the labels were truly used
                target(0.0, label="weights_move")

        test()

    def test_bad_arguments(self):
        with pytest.raises(TypeError, match="margin='a'"):
            toward_border("a")
        with pytest.raises(TypeError, match="label=3"):
            toward_border(0.1, label=3)
