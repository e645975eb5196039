"""Where a check's numeric limit would have to be for its verdict to flip: the run's statistic, in the limit's own unit.

Found by moving the argument, not by repeating the check's arithmetic: what is told is exactly what a user can set.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ..core.verdict import Verdict

#: Halvings: from 1e-12 to 1e12 this leaves a part in a million.
_HALVINGS = 26


class Threshold(NamedTuple):
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


def value_of(threshold: Threshold, check: Callable[..., Verdict], options: Mapping[str, Any]) -> float:
    """The limit in force: what the call says, else the check's own default."""
    given = options.get(threshold.argument)
    return float(inspect.signature(check).parameters[threshold.argument].default if given is None else given)


def breaking_point(
    threshold: Threshold,
    check: Callable[..., Verdict],
    trace: Any,
    arguments: Sequence[Any],
    options: Mapping[str, Any],
) -> float | None:
    """The strictest value at which the check still passes this trace; None: this limit does not decide it.

    >>> from pytest_ftcheck import check_weights_move, example_trace
    >>> from pytest_ftcheck.checks.catalogue import SPECS
    >>> round(breaking_point(SPECS["weights_move"].thresholds[0], check_weights_move, example_trace(), (), {}), 3)
    0.25
    """

    def passes(value: float) -> bool:
        return check(trace, *arguments, **{**options, **threshold.held, threshold.argument: value}).status in (
            "pass",
            "advice",
        )

    lenient, strict = (
        (threshold.low, threshold.high) if threshold.sense == "at least" else (threshold.high, threshold.low)
    )
    if passes(strict) or not passes(lenient):
        return None
    good, bad = math.log(lenient), math.log(strict)
    for _ in range(_HALVINGS):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if passes(math.exp(middle)) else (good, middle)
    return math.exp(good)


def reserve(threshold: Threshold, value: float, bound: float) -> float:
    """How far a statistic is from its limit, as the logarithm of their ratio: above 0 on the good side."""
    distance = math.log(value) - math.log(bound)
    return distance if threshold.sense == "at least" else -distance
