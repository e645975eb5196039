"""``--ftcheck-html``: from the tests, also those of xdist's workers, to one page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vl_convert", reason="the extra html is not installed")

from example_pages import embedded, read

from pytest_ftcheck import example_trace
from pytest_ftcheck.reports.html.compressed_trace import unpack
from pytest_ftcheck.reports.html.page import page
from pytest_ftcheck.reports.html.views import FineTune
from pytest_ftcheck.reports.session_result import SessionResult

TESTS = """
import dataclasses, os
import pytest
from pytest_ftcheck import assert_weights_move, example_trace
from pytest_ftcheck.core import events

def run(seconds):
    trace = example_trace(seconds=seconds)
    events.current().traced(trace)
    return trace

@pytest.fixture(scope="module")
def shared():
    return run(3.0)

def test_a(shared):
    assert_weights_move(shared)

def test_b(shared):
    assert_weights_move(shared, "head")

def test_still():
    trace = run(5.0)
    tensors = tuple(
        dataclasses.replace(t, motion=dataclasses.replace(t.motion, share_changed=0.0, rms=0.0, largest=0.0, by_gradient=0.0))
        for t in trace.tensors)
    trace = dataclasses.replace(trace, tensors=tensors)
    events.current().traced(trace)
    assert_weights_move(trace)

def test_broken(finetune):
    raise ValueError("<b>no model</b>")
"""


@pytest.fixture
def project(pytester):
    """Three runs: one that two tests share, one of a test, and its unhealthy twin."""
    pytester.makepyfile(test_it=TESTS)
    return pytester.path


@pytest.fixture(scope="module", autouse=True)
def imported():
    """pytester takes back what a run in this process imports, and numpy cannot be imported twice: one page is made here before."""
    page([FineTune(example_trace())])


def traces(page):
    """What can be saved from a page."""
    return [unpack(a["href"].partition("base64,")[2]) for tag, a in read(page).tags if tag == "a" and "download" in a]


def test_a_page_of_the_session(project, run):
    result = run("--ftcheck-html=out/page.html", "--ftcheck-json=out/ft.json")
    page = (project / "out/page.html").read_text(encoding="utf-8")
    assert "1 of 3 fine-tunes is unhealthy" in page
    assert "test_it.py::test_a and 1 more test" in page
    assert "&lt;b&gt;no model&lt;/b&gt;" in page
    assert sorted(t.seconds for t in traces(page)) == [3.0, 5.0, 5.0]
    assert example_trace(seconds=3.0) in traces(page)
    assert set(embedded(page)) == {"run-1-data", "run-2-data", "run-3-data"}
    assert "H4sI" not in (project / "out/ft.json").read_text(), "traces are the page's alone"
    result.stdout.fnmatch_lines(["ftcheck: html report of 4 tests in *page.html"])
    result.assert_outcomes(passed=2, failed=2)


@pytest.mark.parametrize("how", [["-n2"], ["-n2", "--dist=each"]], ids=["load", "each"])
def test_workers_send_their_traces(project, run, how):
    run("--ftcheck-html=page.html", *how, subprocess=True)
    page = (project / "page.html").read_text(encoding="utf-8")
    found = sorted(t.seconds for t in traces(page))
    assert set(found) == {3.0, 5.0}
    # equal traces are one, whichever workers they come from
    assert len(found) == 3
    assert ("[gw0]" in page) == (how[-1] == "--dist=each")


def test_a_test_that_was_run_again_is_there_once(pytester, run):
    pytester.makepyfile(
        test_it="""
        from pytest_ftcheck import example_trace
        from pytest_ftcheck.core import events
        tries = []
        def test_a():
            tries.append(1)
            events.current().traced(example_trace(seconds=float(len(tries))))
            assert len(tries) > 1
        """
    )
    run("--ftcheck-html=page.html", "--reruns=2")
    page = (pytester.path / "page.html").read_text(encoding="utf-8")
    assert [t.seconds for t in traces(page)] == [2.0]


def test_as_an_ini_key_and_with_warnings_as_errors(pytester, project, run):
    pytester.makeini("[pytest]\nftcheck_html = page.html\nfilterwarnings = error")
    result = run()
    assert "1 of 3 fine-tunes is unhealthy" in (project / "page.html").read_text(encoding="utf-8")
    assert "ftcheck: warning" not in result.stdout.str()


JUDGING = """
import dataclasses
from pytest_ftcheck import assert_healthy, assert_weights_move, diagnose, example_trace
from pytest_ftcheck.core import events

def run(seconds):
    trace = example_trace(seconds=seconds)
    events.current().traced(trace)
    return trace

def still_head(seconds):  # by default weights_move fails
    trace = example_trace(seconds=seconds)
    still = {"share_changed": 0.0, "rms": 0.0, "largest": 0.0, "by_gradient": 0.0}
    tensors = [dataclasses.replace(t, motion=dataclasses.replace(t.motion, **still)) if t.part == "head" else t
               for t in trace.tensors]
    return dataclasses.replace(trace, tensors=tuple(tensors))

def test_strict():
    assert_weights_move(run(1.0), min_budget=0.5)  # fails here, passes by default

def test_lenient():
    trace = still_head(2.0)
    events.current().traced(trace)
    assert_weights_move(trace, "base")  # passes here, fails by default

def test_allowed():
    trace = still_head(3.0)
    events.current().traced(trace)
    assert_healthy(trace, allow={v.check: "as intended" for v in diagnose(trace).having("fail")})

def test_unjudged():
    events.current().traced(still_head(4.0))
"""


def test_page_and_session_agree_where_a_check_has_an_option(pytester, run):
    pytester.makepyfile(test_it=JUDGING)
    run("--ftcheck-html=page.html", "--ftcheck-json=ft.json")
    made = (pytester.path / "page.html").read_text(encoding="utf-8")
    health = {}
    for section in made.split('<details class="run ')[1:]:
        (link,) = re.findall(r'href="data:application/gzip;base64,([^"]+)"', section)
        status = re.findall(r'<li class="verdict (\w+)">\s*<p><code>weights_move</code>', section)
        health[unpack(link).seconds] = (section.partition('"')[0], *status)
    assert health[1.0] == ("unhealthy", "fail")
    assert health[2.0] == ("healthy", "pass")
    assert health[3.0] == ("healthy", "advice")
    assert health[4.0] == ("unhealthy", "fail"), "no test judged it: all checks, by default"
    session = SessionResult.load(pytester.path / "ft.json")
    red = {case.nodeid.partition("::")[2]: case.red for case in session.tests}
    assert red == {"test_strict": True, "test_lenient": False, "test_allowed": False, "test_unjudged": False}


def test_all_seeds_of_a_run_have_the_verdict_of_the_session(pytester, run):
    pytester.makepyfile(
        test_it="""
        import pytest
        from pytest_ftcheck import Verdict, example_trace
        from pytest_ftcheck.core import events

        # without tensors every check is inconclusive: only the session's verdict makes these runs healthy
        @pytest.fixture(scope="module")
        def traces():
            found = [example_trace(seconds=float(seed), tensors=()) for seed in range(3)]
            for trace in found:
                events.current().traced(trace)
            return found

        def test_a(traces):
            verdict = Verdict("loss_decreases", "pass", "3 of 3 seeds pass.")
            events.current().judged(verdict, traces[0])
            events.verdicts_reached([verdict], traces)
        """
    )
    run("--ftcheck-html=page.html")
    page = (pytester.path / "page.html").read_text(encoding="utf-8")
    assert "All 3 fine-tunes are healthy" in page


def test_nothing_is_carried_where_no_page_is_wanted(project, run):
    run("--ftcheck-json=ft.json")
    assert not list(Path(project).glob("*.html"))


def test_a_look_at_the_list_writes_nothing(project, run):
    (project / "page.html").write_text("old")
    run("--ftcheck-html=page.html", "--collect-only")
    assert (project / "page.html").read_text() == "old"


def test_a_missing_package_is_refused_before_any_test(project, run, monkeypatch):
    monkeypatch.setattr("pytest_ftcheck.reports.html.NEEDED", {"no_such_module": "no-such-package"})
    result = run("--ftcheck-html=page.html")
    result.stderr.fnmatch_lines(
        ["*--ftcheck-html=page.html: needs no-such-package: pip install 'pytest-ftcheck[[]html[]]'"]
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.no_fnmatch_line("*test_it*")


def test_what_cannot_be_written_costs_no_verdict(project, run):
    (project / "folder").mkdir()
    (project / "conftest.py").write_text(
        "import shutil\ndef pytest_sessionstart():\n    shutil.rmtree('folder')\n    open('folder', 'w').close()\n"
    )
    result = run("--ftcheck-html=folder/page.html")
    result.stdout.fnmatch_lines(
        ["ftcheck: warning: *page.html was not written: *Test results and exit status are unaffected."]
    )
    result.assert_outcomes(passed=2, failed=2)


def test_the_command_makes_a_page_of_saved_traces(tmp_path):
    for name in ("a", "b"):
        example_trace(seconds=float(ord(name))).save(tmp_path / f"{name}.json")
    command = [sys.executable, "-m", "pytest_ftcheck", "html", "a.json", "b.json", "-o", "page.html"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=400, check=False)
    assert (done.returncode, done.stdout) == (0, "2 fine-tunes in page.html\n"), done.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.findall(r'<h2><bdi class="name">(\w+)</bdi></h2>', page) == ["a", "b"]
    command[4:6] = ["none.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=400, check=False)
    assert done.returncode == 2
    assert "none.json" in done.stderr


def test_pytest_starts_without_what_draws(project):
    code = (
        "import sys, pytest; pytest.main(['-q', '-p', 'no:cacheprovider', 'test_it.py::test_a']); "
        "print('LOADED', sorted({'jinja2', 'vl_convert', 'markupsafe'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=project, timeout=400, check=False
    )
    loaded = next(line for line in done.stdout.splitlines() if line.startswith("LOADED"))
    assert "vl_convert" not in loaded
