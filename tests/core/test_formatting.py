"""Numbers, percentages, names and tables as messages write them."""

from __future__ import annotations

import math

import pytest

from pytest_ftcheck.core.formatting import (
    cell,
    columns,
    fit,
    number,
    padded,
    percent,
    plural,
    printable,
    shorten,
    table,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"),
        (0, "0"),
        (0.0, "0"),
        (-0.0, "0"),
        (7, "7"),
        (147456, "147,456"),
        (-1234, "-1,234"),
        (0.02, "0.0200"),
        (0.00505, "0.00505"),
        (5e-5, "5.00e-05"),
        (1.234e-9, "1.23e-09"),
        (0.001, "0.00100"),
        (-0.5, "-0.500"),
        (1.0, "1.00"),
        (99.96, "100"),
        (999.4, "999"),
        (12345.6, "12,346"),
        (1e6, "1.00e+06"),
        (1e300, "1.00e+300"),
        (math.nan, "NaN"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
    ],
)
def test_number(value, expected):
    assert number(value) == expected


@pytest.mark.parametrize("value", [0.0009996, 0.00099999, 999.6, 999.96, 999_999.7, -999.7, 9.999, 0.9999])
def test_numbers_next_to_a_power_of_ten_stay_plain(value):
    text = number(value)
    assert "e+03" not in text
    assert float(text.replace(",", "")) == pytest.approx(value, rel=6e-3)


def test_number_digits():
    assert number(0.02, 2) == "0.020"
    assert number(5e-5, 2) == "5.0e-05"
    assert number(5e-5, 1) == "5e-05"
    assert [number(v, 2) for v in (99.6, 123.4, 0.5)] == ["100", "123", "0.50"]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (None, "-"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.9999, "99.9 %"),
        (0.999999999, "99.9 %"),
        (0.0312, "3.1 %"),
        (0.005, "0.50 %"),
        (0.0099, "0.99 %"),
        (0.00999, "1.0 %"),
        (0.0999, "10 %"),
        (1e-5, "<0.01 %"),
        (-0.25, "-25 %"),
        (2.8, "280 %"),
        (1e10, "1.0e+12 %"),
        (math.nan, "NaN"),
        (math.inf, "inf"),
    ],
)
def test_percent(share, expected):
    assert percent(share) == expected


def test_plural():
    assert [plural(n, "step") for n in (0, 1, 2, 1000)] == ["0 steps", "1 step", "2 steps", "1,000 steps"]
    assert plural(2, "class", "classes") == "2 classes"
    assert plural(1, "class", "classes") == "1 class"


@pytest.mark.parametrize("width", [2, 3, 10, 44])
def test_shorten_to_the_width(width):
    name = "".join(chr(ord("a") + i % 26) for i in range(10_000))
    short = shorten(name, width)
    assert len(short) == width
    assert "…" in short
    assert short.endswith(name[-1])
    assert shorten(name[:width], width) == name[:width]


def test_cell():
    assert [cell(v) for v in (True, False, None, 3, 0.5, "x", (1, 2))] == [
        "yes",
        "no",
        "-",
        "3",
        "0.500",
        "x",
        "(1, 2)",
    ]


def test_table_aligns_numbers_right_and_words_left():
    assert table([{"name": "a", "n": 1, "share": "5 %"}, {"name": "bcd", "n": 1000, "share": "25 %"}]) == [
        "  name      n  share",
        "  a         1    5 %",
        "  bcd   1,000   25 %",
    ]


def test_table_of_uneven_rows():
    assert table([{"a": 1}, {"b": "x"}], indent="") == ["a  b", "1  -", "-  x"]


def test_table_of_nothing():
    assert table([]) == []


@pytest.mark.parametrize(("rows", "lines", "last"), [(8, 9, "7"), (9, 10, "8"), (10, 10, "... and 2 more")])
def test_table_shows_the_first_and_says_how_many_are_left(rows, lines, last):
    # one row more is shown rather than "... and 1 more"
    text = table([{"n": i} for i in range(rows)], most=8)
    assert (len(text), text[-1].strip()) == (lines, last)


WIDE = ["", "abc", "学习率", "é", "e\u0301", "👍🏽", "a\u200db", "ｱｲ", "x" * 50, "学x" * 20, "\x07"]


@pytest.mark.parametrize("text", WIDE)
@pytest.mark.parametrize("width", [0, 1, 2, 3, 4, 7, 10, 200])
@pytest.mark.parametrize("keep", ["start", "end"])
def test_a_cut_text_fits_and_a_short_one_is_left_alone(text, width, keep):
    short = fit(text, width, keep=keep)
    assert columns(short) <= max(width, 0)
    if columns(text) <= width:
        assert short == text
    elif width > 5:
        assert text.startswith(short[:-3]) if keep == "start" else text.endswith(short[3:])


def test_columns_agree_with_what_terminals_are_taken_for():
    from _pytest._io.wcwidth import wcswidth

    assert [columns(text) for text in WIDE[:-1] if "\u200d" not in text] == [
        wcswidth(text) for text in WIDE[:-1] if "\u200d" not in text
    ]


@pytest.mark.parametrize("text", WIDE)
def test_padding_counts_columns(text):
    assert columns(padded(text, 60)) == columns(padded(text, 60, right=True)) == 60


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", None, "no-such-encoding"])
def test_what_is_printable_can_be_encoded(encoding):
    text = printable("█▁ … größe 学", encoding)
    known = encoding if encoding not in (None, "no-such-encoding") else ("utf-8" if encoding is None else "ascii")
    text.encode(known)
    assert text.startswith("█▁ …" if known == "utf-8" else "#_ ~")
