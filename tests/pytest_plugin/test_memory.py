"""What a session keeps of its tests: what reports need, and no traces. `benchmarks/memory.py` measures it."""

from __future__ import annotations

import re

import pytest

from pytest_ftcheck.reports.html.compressed_trace import unpack

CONFTEST = """
import gc

def pytest_sessionfinish():
    import test_it
    gc.collect()
    print("ALIVE", [reference() is not None for reference in test_it.MADE])
"""
TESTS = """
import weakref
import pytest
from pytest_ftcheck import assert_weights_move, example_trace

MADE, OWN = [], []

def made(number):
    trace = example_trace(seconds=float(number))
    MADE.append(weakref.ref(trace))
    return trace

@pytest.mark.parametrize("number", range(3))
def test_it(number):
    assert_weights_move(made(number))

def test_the_users_own():
    OWN.append(made(3))
    assert_weights_move(OWN[0])
"""


@pytest.mark.parametrize("options", [(), ("--ftcheck-html=page.html", "--ftcheck-json=results.json", "-v")])
def test_traces_are_freed_when_their_test_was_reported(pytester, run, options):
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=TESTS)
    result = run("-s", *options)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*ALIVE ?False, False, False, True?*"])
    if options:  # nevertheless the page has them
        page = (pytester.path / "page.html").read_text(encoding="utf-8")
        packed = re.findall(r'href="data:application/gzip;base64,([^"]+)"', page)
        assert sorted(unpack(text).seconds for text in packed) == [0, 1, 2, 3]
