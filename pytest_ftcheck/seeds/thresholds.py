"""Thresholds of checks, and the value at which a threshold would just pass a run: the run's statistic, in the threshold's unit.

That value is found by moving the argument, not by repeating the check's arithmetic, so it is exactly what a user can set.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ..core.verdict import Verdict

#: Bisection steps: from 1e-12 to 1e12 they leave a relative error of 1e-6.
_HALVINGS = 26


class Threshold(NamedTuple):
    """One numeric argument of a check."""

    argument: str
    #: ``at least``: a larger value is stricter. ``at most``: a smaller one is.
    sense: str
    #: What the statistic is.
    text: str
    #: Range in which it is searched.
    low: float
    high: float
    #: Values of other arguments at which they have no influence.
    held: Mapping[str, Any] = MappingProxyType({})


def value_of(threshold: Threshold, check: Callable[..., Verdict], options: Mapping[str, Any]) -> float:
    """The value in force: the call's argument, else the check's default."""
    given = options.get(threshold.argument)
    return float(inspect.signature(check).parameters[threshold.argument].default if given is None else given)


def breaking_point(
    threshold: Threshold,
    check: Callable[..., Verdict],
    trace: Any,
    arguments: Sequence[Any],
    options: Mapping[str, Any],
) -> float | None:
    """The strictest value at which the check still passes this trace; None: the threshold does not decide it.

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
    passing, failing = math.log(lenient), math.log(strict)
    for _ in range(_HALVINGS):
        middle = (passing + failing) / 2
        passing, failing = (middle, failing) if passes(math.exp(middle)) else (passing, middle)
    return math.exp(passing)


def reserve(threshold: Threshold, value: float, in_force: float) -> float:
    """Logarithm of the ratio of a statistic to its threshold: above 0 on the good side."""
    distance = math.log(value) - math.log(in_force)
    return distance if threshold.sense == "at least" else -distance
