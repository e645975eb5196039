"""Where does N(0, std) stop learning? ``python docs/examples/init_border.py [PICTURE.png]``

The founding question's head on the frozen pretrained base: hypothesis finds, for each optimizer, learning rate and number of steps,
the smallest std that is large enough and the smallest that is too large. With the name of a picture the trainability map is drawn, too.
docs/how-to/init-schemes.md has what it printed.
"""

from __future__ import annotations

import sys

import founding
import torch
from hypothesis import find, settings
from hypothesis.errors import NoSuchExample
from torch import nn

from pytest_ftcheck import Features, InitScheme, check_trainable, extract_features, sweep
from pytest_ftcheck.strategies import init_schemes

quick = settings(settings.get_profile("ftcheck"), derandomize=True, database=None)


def my_head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(384, 384), nn.ReLU(), nn.Dropout(0.2), nn.Linear(384, 5))


def too_large(features: Features, lr: float, steps: int, optimizer: str, low: str) -> str:
    """The smallest std above ``low`` under which the head does not learn."""

    def stops(scheme: InitScheme) -> bool:
        head = scheme.apply(my_head())
        return not check_trainable(head, features, lr=lr, steps=steps, optimizer=optimizer).ok

    return _std(init_schemes(std=(float(low), 10.0), kinds=["normal"], positions=False), stops)


def large_enough(features: Features, lr: float, steps: int, optimizer: str) -> str:
    """The smallest std, from 1e-6 up, under which the head learns."""

    def learns(scheme: InitScheme) -> bool:
        head = scheme.apply(my_head())
        return check_trainable(head, features, lr=lr, steps=steps, optimizer=optimizer).status == "pass"

    return _std(init_schemes(std=(1e-6, 0.1), kinds=["normal"], positions=False), learns)


def _std(schemes, condition) -> str:
    try:
        return f"{find(schemes, condition, settings=quick).weight.std:g}"
    except NoSuchExample:
        return "none"


def main() -> None:
    torch.set_num_threads(1)
    batches, held_out = founding.news()
    features = extract_features(founding.make_model(), batches[:60], held_out)
    print(features)
    print("optimizer      lr  steps  large enough from  too large from")
    for optimizer, rates in (("adamw", (5e-5, 3e-4, 1e-3)), ("sgd", (0.1, 1.0))):
        for lr in rates:
            for steps in (30, 100):
                low = large_enough(features, lr, steps, optimizer)
                high = too_large(features, lr, steps, optimizer, low)
                print(f"{optimizer:9}  {lr:6g}  {steps:5}  {low:>17}  {high:>14}", flush=True)
    if len(sys.argv) > 1:
        result = sweep(my_head(), features, steps=30, mark=(0.02, 5e-5))
        print(result)
        result.plot().savefig(sys.argv[1], dpi=120)


if __name__ == "__main__":
    main()
