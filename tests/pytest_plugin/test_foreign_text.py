"""Foreign names and texts of exceptions in a session: harmless in the log of a CI machine, in its files, and on the way from a worker."""

from __future__ import annotations

import json
import xml.dom.minidom

import pytest
from hostile import WORST, harmless

from pytest_ftcheck import example_trace
from pytest_ftcheck.reports.html.page import page
from pytest_ftcheck.reports.html.views import FineTune

TESTS = f"""
import dataclasses
import pytest
from judging import TRACE
from pytest_ftcheck import Verdict
from pytest_ftcheck.core import events, fail_level

BAD = {WORST!a}
METRICS = tuple(dataclasses.replace(metric, name=BAD) for metric in TRACE.metrics)
ODD = dataclasses.replace(TRACE, head=(BAD,), metrics=METRICS, stopped=BAD, notes=(BAD,), environment={{BAD: BAD}})

def judge(status):
    verdict = Verdict(BAD, status, BAD, ({{"tensor": BAD, BAD: BAD}},), BAD, (BAD,), BAD, BAD, (BAD,), BAD)
    events.current().traced(ODD)
    events.current().judged(verdict, ODD)
    if fail_level.raises(verdict):
        raise fail_level.error(verdict)

def test_fails(): judge("fail")
def test_advice(): judge("advice")

def test_stopped():
    error = RuntimeError("no fine-tune")
    error.ftcheck_trace = ODD
    raise error
"""


@pytest.fixture(scope="module", autouse=True)
def imported():
    """pytester takes back what a run in this process imports, and numpy cannot be imported twice: one page is made here before."""
    page([FineTune(example_trace())])


@pytest.mark.parametrize("options", ["-v", "-q", "-vv", "-rA", "--tb=no", "--tb=line -v", "--tb=short -s"])
def test_the_log(pytester, run, options, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    pytester.makepyfile(test_it=TESTS)
    result = run(
        *options.split(),
        "--junitxml=j.xml",
        "--ftcheck-json=r.json",
        "--ftcheck-sarif=r.sarif",
        "--ftcheck-html=r.html",
    )
    result.assert_outcomes(passed=1, failed=2)
    ours = ("::error file=test_it.py,line=", "::notice file=test_it.py,line=")
    lines = [line for line in result.stdout.lines if not line.startswith(ours)]
    assert len(result.stdout.lines) - len(lines) == 2
    assert [line for line in lines if not harmless(line)] == []
    names = [p.getAttribute("name") for p in xml.dom.minidom.parse("j.xml").getElementsByTagName("property")]
    assert any(name.startswith("ftcheck.metric.x") for name in names)
    assert all(map(harmless, names))
    (metric,) = [
        n
        for n in json.loads((pytester.path / "r.json").read_text())["tests"][0]["runs"][0]["metrics"]
        if n.endswith(".baseline")
    ]
    assert harmless(metric)
    assert (pytester.path / "r.html").stat().st_size > 100_000


@pytest.mark.trains
def test_from_a_worker(pytester, run):
    pytest.importorskip("xdist")
    pytester.makepyfile(test_it=TESTS)
    result = run("-n1", "--junitxml=j.xml", "--ftcheck-json=r.json", subprocess=True)
    result.assert_outcomes(passed=1, failed=2)
    assert xml.dom.minidom.parse("j.xml").getElementsByTagName("property")
    assert len(json.loads((pytester.path / "r.json").read_text())["tests"]) == 2
