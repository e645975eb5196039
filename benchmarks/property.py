"""What does a property cost? ``python benchmarks/property.py``: 100 examples of ``assert_trainable`` on a tiny base.

The base is the tiny DistilBERT, trained for a moment so that its features are worth something; its head is the founding question's. One
property holds, the other does not and is shrunk. Goal: the 100 examples of the first in less than 20 seconds, base and features
included. What is judged is processor time: with one thread that is what the clock shows where nobody else computes, and it can be
measured on a busy machine.
"""

from __future__ import annotations

import sys
import time
from importlib.metadata import version

import torch
from hypothesis import find, given, settings
from torch import nn

from pytest_ftcheck import CheckFailed, assert_trainable, extract_features, tiny_distilbert, toy_batches
from pytest_ftcheck.initialization.features import Features
from pytest_ftcheck.strategies import Head, InitScheme, init_schemes, seeds

EXAMPLES, LIMIT = 100, 20.0
PROFILE = settings(settings.get_profile("ftcheck"), max_examples=EXAMPLES, database=None, derandomize=True)


def base() -> nn.Module:
    """The tiny DistilBERT after 60 steps of its task."""
    torch.manual_seed(0)  # dropout
    model = tiny_distilbert(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for inputs, labels in toy_batches(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval()


def main() -> int:
    """Time both, and print what hypothesis found."""
    torch.set_num_threads(1)
    tiny_distilbert(seed=0)  # transformers is imported: no part of the property
    print(f"hypothesis {version('hypothesis')}, torch {torch.__version__}, one thread")
    began, worked = time.perf_counter(), time.process_time()
    features = extract_features(base(), toy_batches(32, seed=1), toy_batches(16, seed=2))
    print(f"base and features: {time.perf_counter() - began:.1f} s; {features}")
    ran = 0

    @PROFILE
    @given(scheme=init_schemes(std=(1e-3, 0.1)), seed=seeds())
    def every_scheme_in_range_learns(scheme: InitScheme, seed: int) -> None:
        nonlocal ran
        ran += 1
        assert_trainable(scheme.apply(head(features), seed=seed), features, lr=1e-2, seed=seed)

    every_scheme_in_range_learns()
    clock, seconds = time.perf_counter() - began, time.process_time() - worked
    print(f"holds: {ran} examples, {seconds:.1f} s in all (goal: under {LIMIT:g} s; by the clock {clock:.1f} s)")
    worked, ran = time.process_time(), 0

    def stops(scheme: InitScheme) -> bool:
        nonlocal ran
        ran += 1
        try:
            assert_trainable(scheme.apply(head(features)), features)
        except CheckFailed:
            return True
        return False

    found = find(init_schemes(std=(1e-3, 10.0), kinds=["normal"], positions=False), stops, settings=PROFILE)
    print(f"does not hold up to std 10: {found!r}, after {ran} trainings, {time.process_time() - worked:.1f} s")
    return 0 if seconds < LIMIT else 1


def head(features: Features) -> Head:
    """The founding question's."""
    return Head(features.width, 2, widths=[features.width], dropout=0.2)


if __name__ == "__main__":
    sys.exit(main())
