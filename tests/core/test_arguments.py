"""The validators name the argument, its value and what is accepted."""

from __future__ import annotations

import math
import re

import pytest

from pytest_ftcheck.core import arguments


@pytest.mark.parametrize(
    ("validate", "error", "message"),
    [
        (lambda: arguments.number("lr", "1"), TypeError, "lr='1': expected a number"),
        (lambda: arguments.number("lr", True), TypeError, "lr=True: expected a number"),
        (lambda: arguments.number("lr", math.nan), ValueError, "lr=nan: expected a finite number"),
        (lambda: arguments.number("lr", 10**400), ValueError, "expected a finite number"),
        (lambda: arguments.number("x", 2, above=0, most=1), ValueError, "x=2: expected a finite number > 0 and <= 1"),
        (lambda: arguments.number("x", "a", optional=True), TypeError, "x='a': expected a number or None"),
        (lambda: arguments.whole("n", 1.0), TypeError, "n=1.0: expected a whole number"),
        (lambda: arguments.whole("n", 9, least=2, most=8), ValueError, "n=9: expected a whole number >= 2 and <= 8"),
        (lambda: arguments.whole("n", 1, least=2), ValueError, "n=1: expected a whole number >= 2"),
        (lambda: arguments.one_of("part", "tail", ("head", "base")), ValueError, "expected one of head, base"),
        (lambda: arguments.one_of("part", None, ("head", "base")), ValueError, "part=None"),
        (lambda: arguments.instance("intent", 3, dict, "an Intent"), TypeError, "intent is an int: expected an Intent"),
        (lambda: arguments.callables(step=None, loss_fn=3), TypeError, "loss_fn is an int: expected a callable"),
        (lambda: arguments.sequence("seeds", "12"), TypeError, "seeds='12': expected a sequence"),
        (lambda: arguments.sequence("seeds", ()), ValueError, "seeds is empty: expected at least one"),
        (lambda: arguments.distinct("seeds", [1, 2, 1]), ValueError, "seeds: 1 is given twice"),
    ],
)
def test_refused(validate, error, message):
    with pytest.raises(error, match=re.escape(message)):
        validate()


def test_accepted():
    arguments.number("x", 1, above=0, most=1)
    arguments.number("x", None, optional=True)
    arguments.whole("n", 8, least=2, most=8)
    arguments.one_of("part", None, ("head",), optional=True)
    arguments.instance("intent", None, dict, "an Intent", optional=True)
    arguments.callables(step=None, loss_fn=len)
    assert arguments.sequence("seeds", (n for n in (1, 2))) == [1, 2]
