"""The curve beside text."""

from __future__ import annotations

import math

import pytest

from pytest_ftcheck.reports.sparkline import EDGE, Series, polylines

WIDTH, HEIGHT = 104, 24


def drawn(ys, xs=None, most=100):
    curve = Series("loss", "train", tuple(xs or map(float, range(len(ys)))), tuple(ys))
    lines = polylines(curve, WIDTH, HEIGHT, most)
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


def test_it_breaks_where_a_value_cannot_be_drawn():
    for gap in (math.nan, math.inf, -math.inf, None, 1e200):
        assert [len(line) for line in drawn([3.0, 2.0, gap, 1.0, 0.5, 0.4])] == [2, 3]


@pytest.mark.parametrize("ys", [[], [1.0], [math.nan] * 3, [1.0, math.nan], [None, None]])
def test_nothing_where_there_is_no_curve(ys):
    assert drawn(ys) == []


def test_low_is_down_and_every_side_keeps_an_edge():
    (line,) = drawn([3.0, 1.0, 2.0])
    assert line == [(EDGE, EDGE), (WIDTH / 2, HEIGHT - EDGE), (WIDTH - EDGE, HEIGHT / 2)]


def test_a_value_that_stays_is_half_way_up():
    (line,) = drawn([0.7] * 4)
    assert {y for _, y in line} == {HEIGHT / 2}


def test_points_stand_at_their_steps():
    (line,) = drawn([1.0, 0.5, 0.0], xs=[1.0, 2.0, 101.0])
    assert [x for x, _ in line] == [2.0, 3.0, 102.0]


def test_a_long_curve_that_is_thinned_keeps_its_peak_in_its_place():
    ys = [0.0] * 10_000
    ys[2_500] = 9.0
    (line,) = drawn(ys, most=60)
    assert len(line) <= 60
    assert min(line, key=lambda point: point[1]) == pytest.approx((EDGE + (WIDTH - 2 * EDGE) / 4, EDGE), abs=0.1)


def test_values_far_apart():
    assert drawn([1e99, -1e99]) == [[(EDGE, EDGE), (WIDTH - EDGE, HEIGHT - EDGE)]]
