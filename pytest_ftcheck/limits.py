"""Where a check's numeric limit would have to be for its verdict to flip: the run's statistic, in the limit's own unit.

Found by moving the argument, not by repeating the check's arithmetic: what is told is exactly what a user can set.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from .verdict import Verdict

#: Halvings: from 1e-12 to 1e12 this leaves a part in a million.
_HALVINGS = 26


class Limit(NamedTuple):
    """One numeric argument of a check."""

    argument: str
    #: ``at least``: a greater limit is stricter. ``at most``: a smaller one is.
    sense: str
    #: What the statistic is.
    text: str
    #: Where to look for it.
    low: float
    high: float
    #: Other arguments held at values at which they decide nothing, so that this one does.
    held: Mapping[str, Any] = MappingProxyType({})


#: Check -> its numeric limits.
LIMITS: dict[str, tuple[Limit, ...]] = {
    "weights_move": (
        Limit("min_budget", "at least", "least displacement by gradients over the summed LR", 1e-12, 1 - 1e-9),
        Limit("max_steps", "at most", "most steps for a layer's output to change by its own size", 1e-6, 1e12),
    ),
    "loss_decreases": (
        # a loss that falls at every step passes at any drop: not so with a sign test that nothing satisfies
        Limit("min_drop", "at least", "relative drop of the probe loss", 1e-9, 1 - 1e-9, {"alpha": 1e-300}),
    ),
    "initial_loss": (Limit("highest", "at most", "first loss over ln(classes)", 1 + 1e-9, 1e6),),
    "logits_unbounded": (
        Limit("dearest", "at most", "share of the loss that a bound on the logits keeps", 1e-12, 1 - 1e-9),
    ),
    "metric_improves": (Limit("alpha", "at most", "share of label permutations that score as well", 1e-9, 1 - 1e-9),),
    "beats_permuted_labels": (
        Limit("alpha", "at most", "error rate at which true labels beat permuted ones", 1e-9, 1 - 1e-9),
    ),
}


def value_of(limit: Limit, check: Callable[..., Verdict], options: Mapping[str, Any]) -> float:
    """The limit in force: what the call says, else the check's own default."""
    given = options.get(limit.argument)
    return float(inspect.signature(check).parameters[limit.argument].default if given is None else given)


def breaking_point(
    limit: Limit, check: Callable[..., Verdict], trace: Any, arguments: Sequence[Any], options: Mapping[str, Any]
) -> float | None:
    """The strictest value at which the check still passes this trace; None: this limit does not decide it.

    >>> from pytest_ftcheck import check_weights_move, example_trace
    >>> round(breaking_point(LIMITS["weights_move"][0], check_weights_move, example_trace(), (), {}), 3)
    0.25
    """

    def passes(value: float) -> bool:
        return check(trace, *arguments, **{**options, **limit.held, limit.argument: value}).status in ("pass", "advice")

    lenient, strict = (limit.low, limit.high) if limit.sense == "at least" else (limit.high, limit.low)
    if passes(strict) or not passes(lenient):
        return None
    good, bad = math.log(lenient), math.log(strict)
    for _ in range(_HALVINGS):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if passes(math.exp(middle)) else (good, middle)
    return math.exp(good)


def reserve(limit: Limit, value: float, bound: float) -> float:
    """How far a statistic is from its limit, as the logarithm of their ratio: above 0 on the good side."""
    distance = math.log(value) - math.log(bound)
    return distance if limit.sense == "at least" else -distance
