"""Hypothesis strategies for initialization schemes, heads, recipes, token batches and seeds.

Examples shrink toward the simplest case (normal, small round numbers, one layer, seed 0), and a counterexample is printed as code
that makes it again. Ranges are ``(lowest, highest)``, both included; a single number is a range of one value.

While this module is imported, hypothesis also manages torch's global random state, as it does those of ``random`` and numpy: each example
starts from the same state, and it is restored afterwards. Draw `seeds` to vary what a test draws itself.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import register_random
from hypothesis import strategies as st

from .core import arguments, init_distributions
from .core.formatting import as_given
from .core.hypothesis_target import toward_border
from .core.init_distributions import FANS
from .core.init_scheme import TORCH_BIAS, InitScheme
from .core.recipe import OPTIMIZERS, SCHEDULES, Recipe
from .core.seeding import reseed
from .initialization.heads import ACTIVATIONS, Head
from .instruments.token_batches import TokenBatches, checked_spec

__all__ = [
    "Head",
    "InitScheme",
    "Recipe",
    "TokenBatches",
    "batches",
    "heads",
    "init_schemes",
    "recipes",
    "seeds",
    "toward_border",
]

#: ``(lowest, highest)``, or one number for both.
Range = float | tuple[float, float]

#: Schemes with which a head is hard or impossible to train; drawn only if named.
SPECIAL = ("zeros", "constant", "eye")
#: Default schemes of `init_schemes`, the simplest first: random ones, which give hidden units different weights.
KINDS = tuple(kind for kind in init_distributions.KINDS if kind not in SPECIAL)
_NONLINEARITIES = ("relu", "leaky_relu", "tanh", "linear")
#: Round numbers a third of a decade apart, and steps between two of them: with 20, neighbours differ by at most 7.5 %.
_ROUND, _FINE = (1, 2, 5), 20


# ---------------------------------------------------------------------- schemes
def init_schemes(
    std: Range = (1e-3, 0.1),
    *,
    kinds: Sequence[str] | None = None,
    gain: Range = 1.0,
    fans: Sequence[str] = ("fan_in",),
    positions: bool = True,
    bias: Sequence[float | str] = (0.0,),
) -> st.SearchStrategy[InitScheme]:
    """Initialization schemes.

    Shrinks toward ``InitScheme.normal`` with the smallest and roundest ``std`` that still fails, all layers alike.

    :param std: range of the weights' standard deviation, > 0, for kinds that have one (of a ``uniform``: ``bound / sqrt(3)``);
        distributed evenly over the orders of magnitude.
    :param kinds: names of `InitScheme` constructors to draw from, the simplest first. Default: all random ones. ``zeros``, ``constant``
        (its value is drawn as a std) and ``eye`` only if named, because with them heads rarely or never learn.
    :param gain: range of the gain of ``xavier_*`` and ``orthogonal`` (and ``eye``), > 0.
    :param fans: of ``kaiming_*``: ``fan_in``, ``fan_out``. The latter, made for the backward pass, gives the output layer of a classifier
        very large weights: N(0, 1) for two classes.
    :param positions: some schemes initialize the last or first layer differently (zeros; half the size).
    :param bias: initial biases, the simplest first: numbers, or ``"torch"``.
    :raises ValueError, TypeError: an invalid argument.

    >>> from hypothesis import find, settings
    >>> find(init_schemes(std=(1e-3, 0.1)), lambda scheme: True, settings=settings(database=None))
    InitScheme.normal(std=0.001)
    """
    stds, gains = _logarithmic("std", std), _logarithmic("gain", gain)
    names = _choice("kinds", KINDS if kinds is None else kinds, (*KINDS, *SPECIAL))
    shapes = [(nonlinearity, fan) for nonlinearity in _NONLINEARITIES for fan in _choice("fans", fans, FANS)]
    arguments.flag("positions", positions)
    bias = arguments.items("bias", bias, "one or more values such as (0.0, 'torch')")
    if not bias:
        raise ValueError("bias is empty: expected one or more values such as (0.0, 'torch')")
    for i, value in enumerate(bias):
        if not (isinstance(value, str) and value == TORCH_BIAS):
            arguments.number(f"bias[{i}]", value, accepted=f"finite numbers, or {TORCH_BIAS!r}")
    plain = st.sampled_from(names).flatmap(lambda name: _of_kind(name, stds, gains, shapes))
    biases = st.sampled_from(list(bias))
    layers = st.sampled_from(["alike", "last zero", "last half", "first half"] if positions else ["alike"])
    return st.builds(_refined, plain, biases, layers)


def _of_kind(
    name: str,
    stds: st.SearchStrategy[float],
    gains: st.SearchStrategy[float],
    shapes: Sequence[tuple[str, str]],
) -> st.SearchStrategy[InitScheme]:
    make: Callable[..., InitScheme] = getattr(InitScheme, name)
    if name in ("normal", "truncated_normal", "sparse", "mup"):
        return stds.map(lambda std: make(std=std))
    if name == "uniform":
        return stds.map(lambda std: make(float(f"{std * math.sqrt(3):.3g}")))
    if name == "constant":
        return stds.map(make)
    if name.startswith("kaiming"):
        return st.sampled_from(shapes).map(lambda shape: make(*shape))
    if name in ("xavier_normal", "xavier_uniform", "orthogonal", "eye"):
        return gains.map(make)
    # hypothesis prefers the alternative with the fewest choices: a dummy choice keeps ``normal`` before these
    return st.integers(0, 0).map(lambda _: make())


def _refined(scheme: InitScheme, bias: float | str, layers: str) -> InitScheme:
    # torch's default has biases of its own: the first choice keeps them
    if bias != 0.0:
        scheme = scheme.with_bias(bias)
    if layers == "last zero":
        return scheme.with_last(InitScheme.zeros())
    if layers == "alike":
        return scheme
    try:
        half = scheme.scaled(0.5)
    except ValueError:  # the scheme's size depends on the shape alone
        return scheme
    return scheme.with_last(half) if layers == "last half" else scheme.with_first(half)


# ---------------------------------------------------------------------- heads
def heads(
    in_features: int,
    classes: int = 2,
    *,
    depth: int | tuple[int, int] = (1, 3),
    widths: int | tuple[int, int] | None = None,
    activations: Sequence[str] = ("relu", "gelu", "tanh"),
    dropout: Range = (0.0, 0.5),
    layer_norm: bool | None = None,
) -> st.SearchStrategy[Head]:
    """Classification heads: `nn.Sequential` that print as code, with torch's default weights under a drawn seed.

    Shrinks toward a single linear layer, then toward narrow layers without dropout and normalization.

    :param in_features: width of the features.  :param classes: number of outputs.
    :param depth: range of the number of linear layers.
    :param widths: range of the hidden layers' widths; default: from 8 (or ``in_features``, if less) to ``in_features``.
    :param activations: names of `ACTIVATIONS <pytest_ftcheck.initialization.heads.ACTIVATIONS>` to draw from, the simplest first.
    :param dropout: range of the dropout rate, within [0, 1), in steps of 0.1.
    :param layer_norm: with, without, or (None) either.
    :raises ValueError, TypeError: an invalid argument.

    >>> from hypothesis import find, settings
    >>> find(heads(384, 2), lambda head: len(head) > 1, settings=settings(database=None))
    Head(384, 2, widths=(8,))
    """
    Head(in_features, classes)  # validates them
    depths = _whole("depth", depth, least=1)
    low, high = _whole("widths", (min(8, in_features), in_features) if widths is None else widths, least=1)
    names = _choice("activations", activations, tuple(ACTIVATIONS))
    shares = _shares("dropout", dropout)
    arguments.flag("layer_norm", layer_norm, optional=True)
    norms = st.booleans() if layer_norm is None else st.just(layer_norm)

    @st.composite
    def strategy(draw: st.DrawFn) -> Head:
        hidden = draw(st.integers(*depths)) - 1
        if not hidden:
            return Head(in_features, classes, seed=draw(seeds()))
        return Head(
            in_features,
            classes,
            widths=[draw(st.integers(low, high)) for _ in range(hidden)],
            activation=draw(st.sampled_from(names)),
            dropout=draw(shares),
            layer_norm=draw(norms),
            seed=draw(seeds()),
        )

    return strategy()


# ---------------------------------------------------------------------- recipes
def recipes(
    *,
    steps: int | tuple[int, int] = (10, 40),
    lr: Range = (1e-5, 1e-2),
    optimizers: Sequence[str] = ("adamw",),
    schedules: Sequence[str] = SCHEDULES,
    warmup: Range = (0.0, 0.5),
    weight_decay: Range = 0.01,
) -> st.SearchStrategy[Recipe]:
    """Recipes for fine-tuning.

    Shrinks toward few steps, a small round learning rate, and the first optimizer and schedule named.

    :param steps: range of the number of steps.  :param lr: range of the peak learning rate, > 0, distributed evenly over the orders of
        magnitude.
    :param optimizers: names of optimizers of `Recipe`, the simplest first.  :param schedules: ``linear``, ``constant``.
    :param warmup: range of the warm-up as a share of the steps, within [0, 1), in steps of 0.1.
    :param weight_decay: range, >= 0, in twenty steps.
    :raises ValueError, TypeError: an invalid argument.

    >>> from hypothesis import find, settings
    >>> find(recipes(), lambda recipe: recipe.lr >= 1e-3, settings=settings(database=None)).lr
    0.001
    """
    decay = _pair("weight_decay", weight_decay)
    if decay[0] < 0:
        raise ValueError(f"weight_decay={as_given(weight_decay)}: expected numbers >= 0")
    return st.builds(
        Recipe,
        optimizer=st.sampled_from(_choice("optimizers", optimizers, tuple(OPTIMIZERS))),
        lr=_logarithmic("lr", lr),
        warmup=_shares("warmup", warmup),
        schedule=st.sampled_from(_choice("schedules", schedules, SCHEDULES)),
        steps=st.integers(*_whole("steps", steps, least=1)),
        weight_decay=_between(*decay),
    )


# ---------------------------------------------------------------------- batches
def batches(
    classes: int = 2,
    *,
    count: int | tuple[int, int] = (1, 8),
    rows: int | tuple[int, int] = (2, 16),
    words: int | tuple[int, int] = (1, 12),
    majority: Range | None = (0.5, 0.95),
    every_class: bool = True,
    padding: Sequence[str] = ("right", "left"),
    layout: str = "mapping",
    **task: Any,
) -> st.SearchStrategy[TokenBatches]:
    """Token batches for a classifier: uneven lengths, padding, a small last batch, uneven classes. Healthy models can learn them.

    Shrinks toward one batch of few rows, all equally short, with even classes.

    :param classes: number of classes.  :param count: range of the number of batches.  :param rows: range of the rows in a batch (the
        last may have fewer).  :param words: range of the number of words in a row, two special tokens not counted.
    :param majority: range of the share of rows of class 0 where classes are uneven; None: classes are always even.
    :param every_class: every class has at least one row; False: some may have none.
    :param padding: sides to draw from.
    :param layout: ``mapping`` (``input_ids``, ``attention_mask``, ``labels``) or ``tuple`` (as `toy_batches`).
    :param task: ``vocabulary``, ``pad`` and ``keywords`` of `TokenBatches`.
    :raises ValueError, TypeError: an invalid argument.

    >>> from hypothesis import find, settings
    >>> find(batches(), lambda drawn: len(drawn[0]["labels"]) >= 4, settings=settings(database=None))
    TokenBatches(batches=1, rows=4, shortest=1, longest=1)
    """
    if unknown := sorted(set(task) - {"vocabulary", "pad", "keywords"}):
        raise TypeError(f"{unknown[0]}: batches() has no such argument")
    counts, sizes, lengths = (
        _whole(name, value, least=1) for name, value in (("count", count), ("rows", rows), ("words", words))
    )
    sides = _choice("padding", padding, ("right", "left"))
    arguments.flag("every_class", every_class)
    fixed = {"classes": classes, "layout": layout, **task}
    most = {"batches": counts[1], "rows": sizes[1], "empty_classes": 0 if every_class else classes - 1}
    sizes_of_all = {"shortest": lengths[0], "longest": lengths[1]}
    try:  # validates them, and that there is room for all classes
        checked_spec(**most, **sizes_of_all, **fixed)
    except ValueError as error:
        raise ValueError(str(error).replace("batches=", "count=").replace("longest=", "words=")) from None
    shares = None if majority is None else _pair("majority", majority)
    if shares and not 1 / classes <= shares[0] <= shares[1] <= 1:
        raise ValueError(f"majority={as_given(majority)}: expected shares from {1 / classes:.3g} to 1")

    @st.composite
    def strategy(draw: st.DrawFn) -> TokenBatches:
        empty = 0 if every_class else draw(st.integers(0, classes - 1))
        present = classes - empty
        # as many as leave room for a row of each class
        number = draw(st.integers(max(counts[0], math.ceil(present / sizes[1])), counts[1]))
        size = draw(st.integers(max(sizes[0], math.ceil(present / number)), sizes[1]))
        fewest = max(1, present - size * (number - 1))
        left_out = draw(st.integers(0, size - fewest))
        shortest = draw(st.integers(*lengths))
        uneven = shares is not None and draw(st.booleans())
        return TokenBatches(
            batches=number,
            rows=size,
            last=size - left_out if left_out else None,
            shortest=shortest,
            longest=draw(st.integers(shortest, lengths[1])),
            majority=draw(_between(*shares)) if uneven and shares else None,
            empty_classes=empty,
            padding=draw(st.sampled_from(sides)),
            seed=draw(seeds()),
            **fixed,
        )

    return strategy()


# ---------------------------------------------------------------------- seeds
def seeds(*, max_value: int = 2**32 - 1) -> st.SearchStrategy[int]:
    """Seeds that python's ``random``, numpy and torch all accept; shrinks toward 0.

    :param max_value: the largest, >= 0.

    >>> from hypothesis import find, settings
    >>> find(seeds(), lambda seed: True, settings=settings(database=None))
    0
    """
    arguments.whole("max_value", max_value, least=0)
    return st.integers(0, max_value)


class _TorchRandom:
    """torch's global random state with hypothesis' interface; does not import torch."""

    def seed(self, seed: int) -> None:
        reseed(seed)

    def getstate(self) -> Any:
        torch = sys.modules.get("torch")
        if torch is None:
            return None
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
        return torch.get_rng_state(), cuda

    def setstate(self, state: Any) -> None:
        if state is not None:
            import torch

            torch.set_rng_state(state[0])
            if state[1] is not None:
                torch.cuda.set_rng_state_all(state[1])


_TORCH_RANDOM = _TorchRandom()
register_random(_TORCH_RANDOM)


# ---------------------------------------------------------------------- ranges
def _pair(name: str, value: Any) -> tuple[float, float]:
    pair = value if isinstance(value, (tuple, list)) else (value, value)
    expected = "a number, or (lowest, highest)"
    if len(pair) != 2:
        raise TypeError(f"{name}={as_given(value)}: expected {expected}")
    low, high = pair
    for i, end in enumerate(pair):
        arguments.number(f"{name}[{i}]" if pair is value else name, end, accepted=expected)
    if low > high:
        raise ValueError(f"{name}={as_given(value)}: expected finite numbers, the lowest first")
    return low, high


def _whole(name: str, value: Any, *, least: int, most: int = arguments.MOST_ITEMS) -> tuple[int, int]:
    low, high = _pair(name, value)
    if not isinstance(low, int) or not isinstance(high, int):
        raise TypeError(f"{name}={as_given(value)}: expected whole numbers")
    if not least <= low <= high <= most:
        raise ValueError(f"{name}={as_given(value)}: expected whole numbers >= {least} and <= {most:,}")
    return low, high


def _choice(name: str, value: Any, known: tuple[str, ...]) -> list[str]:
    expected = f"one or more of {', '.join(known)}"
    if isinstance(value, str):
        raise TypeError(f"{name}={as_given(value)}: expected {expected}")
    names = arguments.texts(name, value, expected)
    if not names:
        raise ValueError(f"{name} is empty: expected {expected}")
    if unknown := [v for v in names if v not in known]:
        raise ValueError(f"{name}={as_given(value)}: {as_given(unknown[0])} is none of {', '.join(known)}")
    return list(names)


def _shares(name: str, value: Any) -> st.SearchStrategy[float]:
    low, high = _pair(name, value)
    if not 0 <= low <= high < 1:
        raise ValueError(f"{name}={as_given(value)}: expected shares from 0 to below 1")
    between = [k / 10 for k in range(1, 10) if low < k / 10 < high]
    return st.sampled_from(list(dict.fromkeys([low, *between, high])))


def _between(low: float, high: float) -> st.SearchStrategy[float]:
    """Distributed evenly, in twenty steps."""
    if low == high:
        return st.just(low)
    return st.integers(0, _FINE).map(lambda k: min(high, float(f"{low + (high - low) * k / _FINE:.6g}")))


def _logarithmic(name: str, value: Any) -> st.SearchStrategy[float]:
    """Distributed evenly over the orders of magnitude: round numbers (1, 2, 5, 10, ...), and twenty steps between neighbours.

    A single whole number chooses, from the lowest up, so shrinking finds the smallest failing value by bisection, and `toward_border` is
    followed step by step (hypothesis would step floats by whole numbers, which is far out of range here).
    """
    low, high = _pair(name, value)
    if low <= 0:
        raise ValueError(f"{name}={as_given(value)}: expected numbers > 0")
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    marks = [float(f"{first}e{decade}") for decade in decades for first in _ROUND]
    edges = [float(low), *(mark for mark in marks if low < mark < high), float(high)]
    last = (len(edges) - 1) * _FINE if low < high else 0

    def at(index: int) -> float:
        band, fine = divmod(min(index, last), _FINE)
        start, end = edges[band], edges[min(band + 1, len(edges) - 1)]
        exact = start + (end - start) * fine / _FINE
        # three digits, unless the range is so narrow that they would all be the same
        return max(start, min(end, float(f"{exact:.3g}") if end > 1.1 * start else exact))

    # hypothesis starts with the lowest; a twentieth of the draws are the highest
    return st.integers(0, last + last // 20).map(at)
