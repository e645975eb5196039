"""Property tests of initialisation schemes: the founding question's head on frozen pretrained features.

``pytest docs/examples/test_init_schemes.py``: each property is tried on 25 examples (the hypothesis profile ``ftcheck``);
docs/how-to/init-schemes.md explains them.
"""

from __future__ import annotations

import founding
import pytest
import torch
from hypothesis import find, given, settings
from torch import nn

from pytest_ftcheck import CheckFailed, Features, InitScheme, assert_init_sane, assert_trainable, extract_features
from pytest_ftcheck.strategies import heads, init_schemes, seeds

few = settings(settings.get_profile("ftcheck"), derandomize=True, database=None)


@pytest.fixture(scope="module")
def features() -> Features:
    """The head's inputs: 960 beginnings of news articles in five classes, 160 held out, through the frozen base."""
    batches, held_out = founding.news()
    return extract_features(founding.make_model(), batches[:60], held_out)


def my_head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(384, 384), nn.ReLU(), nn.Dropout(0.2), nn.Linear(384, 5))


# ---------------------------------------------------------------------- what holds
@few
@given(scheme=init_schemes(std=(1e-3, 0.1)), seed=seeds())
def test_every_scheme_in_range_learns(scheme, seed, features):
    assert_trainable(scheme.apply(my_head(), seed=seed), features, lr=1e-2, seed=seed)


@few
@given(scheme=init_schemes(std=(1e-3, 0.05)), head=heads(384, 5, depth=(2, 3)), seed=seeds())
def test_every_start_is_sane_and_as_declared(scheme, head, seed, features):
    assert_init_sane(scheme.apply(head, seed=seed), [(features.x, features.y)], scheme)


@few
@given(scheme=init_schemes(), seed=seeds())
def test_a_scheme_leaves_torchs_random_state_alone(scheme, seed):
    head = my_head()  # this one does use it
    before = torch.get_rng_state()
    scheme.apply(head, seed=seed)
    assert torch.get_rng_state().equal(before)


# ---------------------------------------------------------------------- what does not
def test_a_large_std_stops_the_learning(features):
    """The smallest N(0, std) under which 30 steps at 3e-4 are not enough."""

    def stops(scheme: InitScheme) -> bool:
        try:
            assert_trainable(scheme.apply(my_head()), features, lr=3e-4)
        except CheckFailed:
            return True
        return False

    found = find(init_schemes(std=(0.02, 2.0), kinds=["normal"], positions=False), stops, settings=few)
    assert 0.05 < found.weight.std < 0.5
