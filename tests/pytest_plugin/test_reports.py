"""What a whole session writes: files, properties, annotations; once, atomically, and never at the verdicts' cost."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from pytest_ftcheck.reports.session_result import SessionResult

TESTS = """
import pytest
from judging import CheckFailed, judge, trace

@pytest.fixture(scope="module")
def traced():
    return trace()

def test_green(traced):
    judge("pass")

def test_red():
    judge("fail")  # THE-USERS-LINE

def test_expects_red():
    with pytest.raises(CheckFailed):
        judge("inconclusive")

@pytest.mark.xfail(strict=True, reason="known")
def test_known():
    judge("fail")

def test_broken(finetune):
    raise ValueError("no model")

def test_left_out(finetune):
    pytest.skip("not here")

def test_of_somebody_else():
    assert 0
"""

#: What every run has: the tests, and where they are.
OUTCOMES = {
    "test_green": "passed",
    "test_red": "failed",
    "test_expects_red": "passed",
    "test_known": "xfailed",
    "test_broken": "failed",
    "test_left_out": "skipped",
}


@pytest.fixture
def project(pytester):
    """Tests of every outcome."""
    pytester.makepyfile(test_it=TESTS)
    return pytester.path


def line_of(path, text):
    return 1 + next(i for i, line in enumerate(path.read_text().splitlines()) if text in line)


def outcomes(session):
    return {case.nodeid.removeprefix("test_it.py::"): case.outcome for case in session.tests}


class TestJson:
    def test_has_every_test_that_judges_or_should(self, project, run):
        result = run("--ftcheck-json=out/ft.json", "--ftcheck-steps=7")
        session = SessionResult.load(project / "out/ft.json")
        assert outcomes(session) == OUTCOMES
        assert (session.exit_status, session.fail_on, session.settings) == (1, "inconclusive", {"steps": "7"})
        assert session.counts == {"fail": 2, "inconclusive": 1, "pass": 1}
        assert [f.place for f in session.findings] == [
            ("test_it.py", line_of(project / "test_it.py", "THE-USERS-LINE"))
        ]
        cases = {case.nodeid.partition("::")[2]: case for case in session.tests}
        assert cases["test_green"].runs[0].metrics["loss.initial"] == 0.7
        assert len(cases["test_green"].runs) == 1  # measured in setup, judged in call
        assert cases["test_broken"].reason == "ValueError: no model"
        assert cases["test_left_out"].reason == "Skipped: not here"
        assert cases["test_known"].reason == "known"
        assert cases["test_red"].verdicts[0].causes == ("THE-CAUSE",)
        result.stdout.fnmatch_lines(["ftcheck: json report of 6 tests in *ft.json"])

    def test_is_the_same_whatever_the_order(self, project, run):
        run("--ftcheck-json=a.json")
        run("--ftcheck-json=b.json", "test_it.py::test_red", *(f"test_it.py::{n}" for n in reversed(OUTCOMES)))
        a, b = (json.loads((project / name).read_text()) for name in ("a.json", "b.json"))
        assert [t["nodeid"] for t in a["tests"]] == sorted(t["nodeid"] for t in a["tests"])
        # the run of the module's fixture belongs to the test that came first
        assert {t["nodeid"]: t["verdicts"] for t in a["tests"]} == {t["nodeid"]: t["verdicts"] for t in b["tests"]}

    def test_twice_the_same_tests_give_the_same_bytes(self, project, run):
        run("--ftcheck-json=a.json")
        run("--ftcheck-json=b.json")
        assert (project / "a.json").read_bytes() == (project / "b.json").read_bytes()

    def test_nothing_is_written_by_a_look_at_the_list(self, project, run):
        (project / "ft.json").write_text("old")
        run("--ftcheck-json=ft.json", "--collect-only")
        assert (project / "ft.json").read_text() == "old"

    def test_a_path_of_the_ini_file_is_relative_to_it(self, pytester, project, run, monkeypatch):
        pytester.makeini("[pytest]\nftcheck_json = ft.json")
        below = pytester.mkdir("below")
        monkeypatch.chdir(below)
        run(str(project))
        assert outcomes(SessionResult.load(project / "ft.json")) == OUTCOMES

    def test_an_interrupted_session_is_written_as_far_as_it_came(self, pytester, run):
        pytester.makepyfile(
            test_it="from judging import judge\ndef test_a(): judge('pass')\ndef test_b(): raise KeyboardInterrupt"
        )
        run("--ftcheck-json=ft.json", ctrl_c=True)
        session = SessionResult.load(pytester.path / "ft.json")
        assert (outcomes(session), session.exit_status) == ({"test_a": "passed"}, 2)

    @pytest.mark.parametrize("before", ["pass", "judge('pass')"])
    def test_the_test_that_was_stopped_is_no_pass(self, pytester, run, before):
        pytester.makepyfile(
            test_it=f"""
            from judging import judge
            def test_a(): judge('pass')
            def test_b(toy_batches):
                {before}
                raise KeyboardInterrupt
            """
        )
        run("--ftcheck-json=ft.json", ctrl_c=True)
        session = SessionResult.load(pytester.path / "ft.json")
        assert outcomes(session) == {"test_a": "passed", "test_b": "error"}
        (stopped,) = session.broken
        assert stopped.reason.startswith("the test did not finish: ")

    def test_setup_alone_is_no_end_that_is_missing(self, pytester, run):
        pytester.makepyfile(test_it="def test_a(toy_batches): pass")
        assert run("--ftcheck-json=ft.json", "--setup-only").ret == 0
        assert outcomes(SessionResult.load(pytester.path / "ft.json")) == {"test_a": "passed"}

    def test_a_test_whose_worker_died_is_no_pass(self, pytester, run):
        pytest.importorskip("xdist")
        pytester.makepyfile(test_it="import os\ndef test_a(toy_batches): os._exit(3)\ndef test_b(toy_batches): pass")
        result = run("--ftcheck-json=ft.json", "-n1", subprocess=True)
        result.assert_outcomes(passed=1, failed=1)
        session = SessionResult.load(pytester.path / "ft.json")
        assert outcomes(session) == {"test_a": "error", "test_b": "passed"}
        (died,) = session.broken
        assert "crashed" in died.reason
        assert (died.file, died.line) == ("test_it.py", 2)

    def test_a_helpers_line_is_that_of_the_test(self, pytester, run):
        pytester.makepyfile(helping="from judging import judge\ndef helped(): judge('fail')")
        pytester.makepyfile(test_it="from helping import helped\n\n\ndef test_a():\n    helped()")
        pytester.makeconftest(
            "import pytest\nfrom judging import judge\n@pytest.fixture\ndef bad():\n    judge('fail')\n"
        )
        pytester.makepyfile(test_fixture="def test_b(bad): pass")
        run("--ftcheck-json=ft.json")
        places = {f.case.nodeid: f.place for f in SessionResult.load(pytester.path / "ft.json").findings}
        assert places == {"test_it.py::test_a": ("test_it.py", 5), "test_fixture.py::test_b": ("conftest.py", 5)}


def test_sarif_and_gitlab_are_written_beside_it(project, run):
    run("--ftcheck-json=ft.json", "--ftcheck-sarif=ft.sarif", "--ftcheck-gitlab=gl.json")
    (log,) = json.loads((project / "ft.sarif").read_text())["runs"]
    where = {"file": "test_it.py", "line": line_of(project / "test_it.py", "THE-USERS-LINE")}
    found = [r["locations"][0]["physicalLocation"] for r in log["results"] if "suppressions" not in r]
    assert [{"file": f["artifactLocation"]["uri"], "line": f["region"]["startLine"]} for f in found] == [where]
    assert log["invocations"][0] == {
        "executionSuccessful": True,
        "exitCode": 1,
        "toolExecutionNotifications": log["invocations"][0]["toolExecutionNotifications"],
    }
    (entry,) = json.loads((project / "gl.json").read_text())
    assert {"file": entry["location"]["path"], "line": entry["location"]["lines"]["begin"]} == where


class TestJUnit:
    @staticmethod
    def properties(path):
        return {
            case.get("name"): [(p.get("name"), p.get("value")) for p in case.iter("property")]
            for case in ET.parse(path).iter("testcase")
        }

    def test_properties_are_statuses_and_numbers(self, project, run):
        run("--junitxml=out.xml")
        found = self.properties(project / "out.xml")
        assert ("ftcheck.weights_move", "pass") in found["test_green"]
        assert ("ftcheck.loss.initial", "0.7") in found["test_green"]
        assert ("ftcheck.loss.final", "0.32") in found["test_green"]
        assert ("ftcheck.weights_move", "fail") in found["test_red"]
        assert found["test_of_somebody_else"] == []
        for properties in found.values():
            names = [name for name, _ in properties]
            assert len(names) == len(set(names))

    def test_are_the_users_beside_ours(self, pytester, run):
        pytester.makepyfile(
            test_it="""
            import pytest
            from judging import judge
            @pytest.fixture
            def late():
                yield
                judge("advice")
            def test_it(late, record_property):
                record_property("ftcheck.mine", 1)
                judge("pass")
            """
        )
        run("--junitxml=out.xml", "-ojunit_family=xunit1")  # pytest's own fixture warns of the other
        (properties,) = self.properties(pytester.path / "out.xml").values()
        assert ("ftcheck.mine", "1") in properties
        assert [p for p in properties if p[0] == "ftcheck.weights_move"] == [("ftcheck.weights_move", "advice")]

    @pytest.mark.parametrize("how", ["--ftcheck-no-properties", "-oftcheck_no_properties=true"])
    def test_can_be_switched_off(self, project, run, how):
        run("--junitxml=out.xml", how)
        assert not any(self.properties(project / "out.xml").values())

    def test_cross_processes(self, project, run):
        pytest.importorskip("xdist")
        run("--junitxml=out.xml", "-n2", subprocess=True)
        assert ("ftcheck.loss.initial", "0.7") in self.properties(project / "out.xml")["test_green"]


class TestXdist:
    def test_the_controller_writes_once_and_the_same(self, project, run, monkeypatch):
        pytest.importorskip("xdist")
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project / "summary.md"))
        alone = run("--ftcheck-json=a.json")
        (project / "summary.md").rename(project / "alone.md")
        result = run("--ftcheck-json=b.json", "-n2", "--dist=loadfile", subprocess=True)
        assert (project / "a.json").read_bytes() == (project / "b.json").read_bytes()
        assert (project / "summary.md").read_text() == (project / "alone.md").read_text()
        for told in (alone, result):
            assert told.stdout.str().count("::error") == 1

    def test_each_workers_tests_are_told_apart(self, project, run):
        pytest.importorskip("xdist")
        run("--ftcheck-json=a.json", "--dist=each", "--tx=2*popen", "-k", "test_red", subprocess=True)
        session = SessionResult.load(project / "a.json")
        assert [(c.nodeid, c.worker) for c in session.tests] == [
            ("test_it.py::test_red", "gw0"),
            ("test_it.py::test_red", "gw1"),
        ]
        assert len({f.fingerprint for f in session.findings}) == 2


class TestGitHub:
    @pytest.fixture(autouse=True)
    def actions(self, run, monkeypatch, tmp_path):
        """As on GitHub; gives the summary's file."""
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
        return tmp_path / "summary.md"

    @pytest.mark.parametrize("arguments", [(), ("-q", "--tb=no"), ("--no-summary",), ("-s",), ("--color=yes",)])
    def test_annotations_begin_their_line(self, project, run, actions, arguments):
        lines = run(*arguments).outlines
        number = line_of(project / "test_it.py", "THE-USERS-LINE")
        (line,) = [line for line in lines if "::error" in line]
        assert line.startswith(f"::error file=test_it.py,line={number},title=weights_move%3A fail")
        assert actions.read_text(encoding="utf-8").startswith("## ftcheck: 4 verdicts in 6 tests: 2 fail")

    def test_are_left_to_the_plugin_that_annotates_everything(self, project, run, pytester, actions):
        pytester.makepyfile(pytest_github_actions_annotate_failures="")
        pytester.syspathinsert()
        text = run("-p", "pytest_github_actions_annotate_failures").stdout.str()
        assert "::error" not in text
        assert actions.exists()

    @pytest.mark.parametrize("how", ["--ftcheck-no-github", "-oftcheck_no_github=true"])
    def test_can_be_switched_off(self, project, run, actions, how):
        assert "::error" not in run(how).stdout.str()
        assert not actions.exists()

    def test_a_suite_without_verdicts_sees_nothing_of_us(self, pytester, run, actions):
        pytester.makepyfile(test_it="def test_a(): assert 0")
        assert "::error" not in run().stdout.str()
        assert not actions.exists()

    def test_a_summary_that_cannot_be_written_is_told(self, project, run, monkeypatch, tmp_path):
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
        result = run("-q")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(["ftcheck: warning: GITHUB_STEP_SUMMARY was not written: *"])


class TestTrouble:
    @pytest.fixture
    def full_disk(self, project):
        """The disk is full when the reports are written."""
        (project / "ft.json").write_text("old")
        (project / "conftest.py").write_text(
            "import pathlib\n"
            "def full(*arguments):\n    raise OSError(28, 'No space left on device')\n"
            "def pytest_sessionfinish():\n    pathlib.Path.replace, full.before = full, pathlib.Path.replace\n"
            "def pytest_unconfigure():\n    pathlib.Path.replace = full.before\n"
        )
        return project

    @pytest.mark.parametrize("verbosity", ["-q", "-v"])
    @pytest.mark.parametrize("flag", ["json", "sarif", "gitlab"])
    def test_a_report_that_cannot_be_written_costs_no_verdict(self, full_disk, run, verbosity, flag):
        result = run(verbosity, f"--ftcheck-{flag}=folder/ft", "-k", "test_green")
        assert result.ret == pytest.ExitCode.OK
        result.stdout.fnmatch_lines([f"ftcheck: warning: --ftcheck-{flag}: *folder*ft was not written: *unaffected."])

    def test_the_exit_status_stays(self, full_disk, run):
        assert run("--ftcheck-json=ft.json").ret == pytest.ExitCode.TESTS_FAILED
        assert (full_disk / "ft.json").read_text() == "old"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--ftcheck-json=",), "--ftcheck-json=: expected the name of a file to write"),
            (("--ftcheck-sarif=.",), "--ftcheck-sarif=.: expected the name of a file to write (it is a folder)"),
            (("-oftcheck_gitlab= ",), "*expected the name of a file to write"),
            (("--ftcheck-json=a", "--ftcheck-gitlab=./a"), "--ftcheck-gitlab=./a: expected another file than that of --ftcheck-json"),
            (("--ftcheck-fail-on=warn",), "--ftcheck-fail-on=warn: expected one of fail, inconclusive, advice"),
            (("-oftcheck_fail_on=never",), "ftcheck_fail_on = never: expected one of fail, inconclusive, advice"),
            (("-oftcheck_no_github=maybe",), "ftcheck_no_github: expected true or false (*"),
        ],
    )  # fmt: skip
    def test_a_bad_option_is_one_usage_error(self, project, run, arguments, message):
        result = run(*arguments)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: {message}"])

    def test_a_rerun_replaces_the_attempt_before(self, pytester, run):
        pytest.importorskip("pytest_rerunfailures")
        pytester.makepyfile(
            test_it="""
            from judging import judge
            times = []
            def test_it(finetune):
                times.append(1)
                judge("fail" if len(times) == 1 else "pass")
            """
        )
        run("--ftcheck-json=ft.json", "--reruns=1", "--junitxml=out.xml")
        (case,) = SessionResult.load(pytester.path / "ft.json").tests
        assert (case.outcome, case.attempts, [v.status for v in case.verdicts]) == ("passed", 2, ["pass"])
