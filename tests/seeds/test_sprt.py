"""Wald's test on passes and failures: bounds, error rates, what may be claimed."""

from __future__ import annotations

import functools
import math
import random

import pytest
from scipy.stats import binomtest

from pytest_ftcheck.seeds.sprt import LEAST, SeedTest, check_seeds, seeds_to_claim

TEST = SeedTest()
SHARES = (0.0, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 1.0)


def walk(share, draw, most=TEST.most):
    seen = []
    while len(seen) < most and not TEST.decide(seen):
        seen.append(draw.random() < share)
    return seen


def endings(prefix=()):
    """Every way in which the test can end."""
    if TEST.decide(prefix) or len(prefix) == TEST.most:
        yield prefix
    else:
        yield from endings((*prefix, True))
        yield from endings((*prefix, False))


@functools.cache
def bounds():
    """Every ending, and what is claimed after it: this hangs on the numbers of passes and failures and on the decision alone."""
    claims = {}
    for end in endings():
        claims.setdefault((sum(end), len(end), TEST.decide(end)), []).append(end)
    found = []
    for ends in claims.values():
        (claimed,) = {TEST.interval(end, sequential=True, tail=0.05) for end in (ends[0], ends[-1])}
        found += [(end, claimed) for end in ends]
    return found


def test_three_passes_or_two_failures_decide():
    assert TEST.least == LEAST == 3
    assert [TEST.after(n, 0) for n in (2, 3)] == [None, "pass"]
    assert [TEST.after(0, n) for n in (1, 2)] == [None, "fail"]


def test_a_failure_among_passes_asks_for_five():
    assert TEST.decide([True, True, False, True, True]) is None
    assert TEST.decide([True, True, False, True, True, True]) == "pass"
    assert TEST.decide([True, False, False]) is None
    assert TEST.decide([True, False, False, False]) == "fail"


def test_the_first_bound_that_is_crossed_counts():
    turned = [False, False] + [True] * 20
    assert TEST.decide(turned) == "fail"
    assert TEST.after(20, 2) == "pass"


def test_the_bounds_are_walds():
    assert math.isclose(TEST.upper, math.log(99))
    assert math.isclose(TEST.lower, -math.log(99))
    assert math.isclose(TEST.evidence(2, 1), 2 * math.log(0.95 / 0.2) + math.log(0.05 / 0.8))


def test_error_rates_are_below_what_was_asked_for():
    healthy, faulty = TEST.rates(TEST.healthy), TEST.rates(TEST.faulty)
    assert 0.002 < healthy.failed < TEST.alpha
    assert 0.005 < faulty.passed < TEST.beta
    assert healthy.undecided < 1e-3
    assert faulty.undecided < 1e-3
    assert TEST.rates(1.0) == (1.0, 0.0, 0.0, 3.0)
    assert TEST.rates(0.0) == (0.0, 1.0, 0.0, 2.0)


@pytest.mark.parametrize("share", SHARES)
def test_exact_rates_agree_with_simulation(share):
    draw, n = random.Random(0), 4000
    ends = [walk(share, draw) for _ in range(n)]
    exact = TEST.rates(share)
    assert math.isclose(exact.passed + exact.failed + exact.undecided, 1)
    for kind, chance in (("pass", exact.passed), ("fail", exact.failed), (None, exact.undecided)):
        share_seen = sum(TEST.decide(e) == kind for e in ends) / n
        assert abs(share_seen - chance) <= 4.5 * math.sqrt(chance * (1 - chance) / n) + 1e-12
    assert abs(sum(map(len, ends)) / n - exact.seeds) <= 4.5 * 3.5 / math.sqrt(n)


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_a_fixed_number_of_seeds_keeps_the_rates_too(seeds):
    assert TEST.fixed(TEST.healthy, seeds).failed <= TEST.alpha
    assert TEST.fixed(TEST.faulty, seeds).passed <= TEST.beta
    assert math.isclose(sum(TEST.fixed(0.7, seeds)[:3]), 1)


@pytest.mark.parametrize(("passes", "n"), [(3, 3), (0, 2), (2, 3), (57, 60), (1, 40)])
def test_intervals_of_a_fixed_number_are_clopper_and_pearsons(passes, n):
    seen = [True] * passes + [False] * (n - passes)
    exact = binomtest(passes, n).proportion_ci(0.95, method="exact")
    assert TEST.interval(seen, sequential=False, tail=0.025) == pytest.approx((exact.low, exact.high), abs=1e-9)


@pytest.mark.trains
@pytest.mark.parametrize("share", SHARES[1:-1])
def test_bounds_after_stopping_are_wrong_as_seldom_as_they_say(share):
    too_high = too_low = total = 0.0
    for end, (low, high) in bounds():
        chance = share ** sum(end) * (1 - share) ** (len(end) - sum(end))
        total += chance
        too_high += chance * (low > share + 1e-9)
        too_low += chance * (high < share - 1e-9)
    assert math.isclose(total, 1)
    assert too_high <= 0.05 + 1e-9
    assert too_low <= 0.05 + 1e-9


def test_nothing_seen_claims_nothing():
    assert TEST.interval([], sequential=True) == TEST.interval([], sequential=False) == (0.0, 1.0)


def test_seeds_without_a_failure():
    assert [seeds_to_claim(s) for s in (0.8, 0.9, 0.95, 0.99)] == [14, 29, 59, 299]
    assert TEST.interval([True] * 59, sequential=False)[0] >= 0.95 > TEST.interval([True] * 58, sequential=False)[0]


@pytest.mark.parametrize(
    "change",
    [{"healthy": 1.0}, {"faulty": 0.0}, {"healthy": 0.1}, {"alpha": 0}, {"beta": 0.5}, {"most": 0}],
)
def test_what_is_no_test_is_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}="):
        SeedTest(**change)


@pytest.mark.parametrize("value", [0, 1, 2, -3, "3", "", "Auto"])
def test_a_number_of_seeds_that_decides_nothing_is_refused(value):
    with pytest.raises(ValueError, match=f"seeds={value!r}: expected 'auto' or a whole number >= 3"):
        check_seeds(value)


@pytest.mark.parametrize("value", [True, 3.0, (0, 1, 2)])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match="seeds="):
        check_seeds(value)
