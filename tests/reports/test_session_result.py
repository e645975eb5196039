"""A session's results and what each writer makes of them, on hand-written results."""

from __future__ import annotations

import dataclasses
import html
import json
import re

import pytest

from pytest_ftcheck.checks.catalogue import CHECKS
from pytest_ftcheck.pytest_plugin.write_reports import folder_of
from pytest_ftcheck.reports.github import MOST, SUMMARY, append_summary, summary, workflow_commands
from pytest_ftcheck.reports.gitlab import gitlab
from pytest_ftcheck.reports.sarif import FINGERPRINT, sarif
from pytest_ftcheck.reports.session_result import SCHEMA, CaseResult, ReportedVerdict, RunMetrics, SessionResult

#: Names that break naive writers.
HOSTILE = [
    "a|b",
    "a`b``c",
    "<script>alert(1)</script>",
    "two\nlines\r\n::error::boo",
    "\u202egnp.exe",
    "100% a,b:c",
    "**bold** [link](http://x) @team #1 $x$",
    "x" * 10_000,
    "lone \udc80 surrogate",
    "bell \x07\x1b[31m",
    "\\|",
]


def verdict(status="fail", check="weights_move", **changes):
    blocking = status in ("fail", "inconclusive")
    values = {
        "check": check, "status": status, "headline": "1 of 4 moved.", "summary": "1 of 4 moved.", "fault": "", "limit": "",
        "message": f"{check}: {status}. 1 of 4 moved.\n  cause: X" if blocking else "", "causes": (), "remedy": "Do it.",
        "margin": None, "counts": {status: 1}, "blocking": blocking, "when": "call", "file": "tests/test_a.py", "line": 7,
    }  # fmt: skip
    return ReportedVerdict(**{**values, **changes})


def case(nodeid="tests/test_a.py::test_a", *verdicts, outcome="failed", **changes):
    return CaseResult(nodeid=nodeid, outcome=outcome, file="tests/test_a.py", line=5, verdicts=verdicts, **changes)


def session(*cases, **changes):
    return SessionResult(tests=cases, exit_status=1, environment={"pytest-ftcheck": "0.1.0"}, **changes)


def run(**metrics):
    return RunMetrics("<Trace>", {"steps": 20.0, "seconds": 1.0, "loss.initial": 0.7, "loss.final": 0.3, **metrics}, {})


class TestJson:
    def test_survives_the_round_trip(self):
        whole = session(
            case("a", verdict(margin=-1.5), verdict("pass")), case("b", runs=(run(),)), configuration="x.ini"
        )
        assert SessionResult.from_json(whole.to_json()) == whole

    def test_not_a_number_is_written_and_read(self):
        text = session(case(runs=(run(**{"loss.final": float("nan"), "lr.peak": float("inf")}),))).to_json()
        metrics = SessionResult.from_json(text).tests[0].runs[0].metrics
        assert metrics["loss.final"] != metrics["loss.final"]
        assert metrics["lr.peak"] == float("inf")
        assert "NaN" in text
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    @pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
    def test_any_name_survives(self, name):
        whole = session(case(name, verdict(summary=name, message=name), reason=name))
        text = whole.to_json()
        assert text.isascii()
        assert SessionResult.from_json(text) == whole

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no valid JSON"),
            ("[" * 100_000, "no valid JSON"),
            ("[]", "no field 'kind'"),
            ('{"schema": 1}', "no field 'kind'"),
            (f'{{"kind": "ftcheck-session", "schema": {SCHEMA + 1}}}', "upgrade pytest-ftcheck"),
            ('{"kind": "ftcheck-session", "schema": 0}', "run the tests again"),
            (f'{{"kind": "ftcheck-session", "schema": {SCHEMA}, "tests": 3}}', "session.tests: expected a list"),
            (f'{{"kind": "ftcheck-session", "schema": {SCHEMA}, "more": 3}}', "unknown field 'more'"),
        ],
    )
    def test_what_is_none_is_refused(self, text, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            SessionResult.from_json(text)


class TestFindings:
    def test_are_what_a_reviewer_should_see_the_worst_first(self):
        found = session(
            case("a", verdict("advice"), outcome="passed"),
            case("b", verdict("inconclusive", blocking=False), outcome="inconclusive"),
            case("c", verdict("inconclusive")),
            case("d", verdict("pass"), verdict("skipped"), outcome="passed"),
            case("e", verdict("fail")),
        ).findings
        assert [(f.level, f.verdict.status, f.case.nodeid) for f in found] == [
            ("error", "fail", "e"),
            ("error", "inconclusive", "c"),
            ("warning", "inconclusive", "b"),
            ("note", "advice", "a"),
        ]

    def test_what_a_test_expects_is_none(self):
        whole = session(case("a", verdict(), outcome="passed"), case("b", verdict(), outcome="xfailed"))
        assert whole.findings == ()

    def test_fingerprints_depend_on_names_only(self):
        first = session(case("a", verdict(), verdict(check="loss_decreases")), case("b", verdict())).findings
        assert len({f.fingerprint for f in first}) == 3
        moved = session(case("a", verdict(line=99, summary="2 of 4 moved.", fault="lr_zero")))
        assert moved.findings[0].fingerprint == first[0].fingerprint

    def test_a_test_that_failed_without_a_verdict_is_told_apart(self):
        whole = session(
            case("a", verdict("pass"), reason="ValueError: x"), case("b", verdict()), case("c", outcome="passed")
        )
        assert [c.nodeid for c in whole.broken] == ["a"]


#: What the published JSON schema of SARIF 2.1.0 requires, and what it allows, of the objects that we write.
REQUIRED = {
    "log": {"version", "runs"}, "run": {"tool"}, "driver": {"name"}, "rule": {"id"}, "result": {"message"},
    "suppression": {"kind"}, "invocation": {"executionSuccessful"}, "notification": {"message"},
}  # fmt: skip
ALLOWED = {
    "log": {"$schema", "version", "runs"},
    "run": {"tool", "invocations", "columnKind", "originalUriBaseIds", "results"},
    "driver": {"name", "version", "rules"},
    "rule": {"id", "name", "shortDescription", "fullDescription", "help", "defaultConfiguration", "properties"},
    "result": {
        "ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints", "properties", "suppressions",
    },
    "suppression": {"kind", "justification"},
    "invocation": {"executionSuccessful", "exitCode", "toolExecutionNotifications"},
    "notification": {"level", "message", "locations"},
}  # fmt: skip


def fits(kind, thing):
    assert REQUIRED[kind] <= thing.keys() <= ALLOWED[kind], kind
    return thing


class TestSarif:
    @pytest.fixture
    def log(self):
        return json.loads(
            sarif(
                session(
                    case("a", verdict(fault="lr_zero"), verdict("advice", "init_sane")),
                    case("x", verdict(), outcome="xfailed", reason="known"),
                    case("b", reason="ValueError: no"),
                    CaseResult("ftcheck::tiny", "failed", None, None, (verdict(file=None, line=None),)),
                    configuration="my project.ini",
                ),
                "sub/",
            )
        )

    def test_has_the_shape_that_the_schema_asks_for(self, log):
        fits("log", log)
        assert log["version"] == "2.1.0"
        (one,) = log["runs"]
        fits("run", one)
        driver = fits("driver", one["tool"]["driver"])
        for rule in driver["rules"]:
            fits("rule", rule)
            assert rule["shortDescription"]["text"]
            assert set(rule.get("help", {"text": ""})) <= {"text", "markdown"}
        for result in one["results"]:
            fits("result", result)
            assert result["level"] in ("none", "note", "warning", "error")
            assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
            for suppression in result.get("suppressions", ()):
                assert fits("suppression", suppression)["kind"] in ("inSource", "external")
            (location,) = result["locations"]
            assert location["physicalLocation"]["region"]["startLine"] >= 1
        for invocation in one["invocations"]:
            for notification in fits("invocation", invocation)["toolExecutionNotifications"]:
                fits("notification", notification)

    def test_one_rule_a_check_with_its_page(self, log):
        rules = {rule["id"]: rule for rule in log["runs"][0]["tool"]["driver"]["rules"]}
        assert rules.keys() == {*CHECKS, "init_sane"}
        for name in CHECKS:
            assert rules[name]["help"]["markdown"].startswith(f"# {name}")
        assert "`" not in rules["pretrained_kept"]["shortDescription"]["text"]
        assert "Kingma" in rules["weights_move"]["properties"]["source"]
        assert rules["init_sane"]["shortDescription"]["text"].startswith(
            "Raise CheckFailed unless the head starts sanely"
        )

    def test_results_stand_at_the_users_line(self, log):
        results = log["runs"][0]["results"]
        assert [(r["ruleId"], r["level"]) for r in results] == [
            ("weights_move", "error"),
            ("weights_move", "error"),
            ("init_sane", "note"),
            ("weights_move", "error"),
        ]
        place = results[0]["locations"][0]
        assert place["physicalLocation"] == {
            "artifactLocation": {"uri": "sub/tests/test_a.py", "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": 7},
        }
        assert place["logicalLocations"][0]["fullyQualifiedName"] == "a"
        assert results[1]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "sub/my%20project.ini"
        assert re.fullmatch("[0-9a-f]{32}", results[0]["partialFingerprints"][FINGERPRINT])
        assert results[0]["properties"]["fault"] == "lr_zero"

    def test_an_expected_failure_is_suppressed(self, log):
        assert log["runs"][0]["results"][-1]["suppressions"] == [{"kind": "inSource", "justification": "known"}]

    def test_what_could_not_be_judged_is_a_notification(self, log):
        (told,) = log["runs"][0]["invocations"][0]["toolExecutionNotifications"]
        assert told["message"]["text"] == "b: failed, without a failed check: ValueError: no"

    @pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
    def test_any_name_survives(self, name):
        text = sarif(session(case(name, verdict(summary=name, message=name, file=name)), configuration=name))
        assert text.isascii()
        result = json.loads(text)["runs"][0]["results"][0]
        assert result["properties"]["test"] == case(name).nodeid
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert re.fullmatch(r"[A-Za-z0-9._~/%-]*", uri)


class TestGitlab:
    def test_has_what_the_format_asks_for(self):
        entries = json.loads(
            gitlab(
                session(
                    case("a", verdict(), verdict("inconclusive", "loss_decreases"), verdict("advice", "head_needed")),
                    case("b", verdict("inconclusive", blocking=False), outcome="inconclusive"),
                ),
                "sub/",
            )
        )
        assert [e["severity"] for e in entries] == ["critical", "major", "minor", "info"]
        assert len({e["fingerprint"] for e in entries}) == 4
        first = entries[0]
        assert first.keys() == {"description", "check_name", "fingerprint", "severity", "location"}
        assert first["check_name"] == "ftcheck.weights_move"
        assert first["description"] == "weights_move (fail): 1 of 4 moved. Do: Do it."
        assert first["location"] == {"path": "sub/tests/test_a.py", "lines": {"begin": 7}}

    @pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
    def test_any_name_survives(self, name):
        text = gitlab(session(case(name, verdict(summary=name))))
        assert text.isascii()
        (entry,) = json.loads(text)
        assert entry["description"].isprintable()
        assert len(entry["description"]) <= 1_000


class TestAnnotations:
    def test_stand_at_the_users_line(self):
        (line,) = workflow_commands(session(case("tests/test_a.py::test_a[x,y]", verdict())), "sub/")
        assert line == (
            "::error file=sub/tests/test_a.py,line=7,title=weights_move%3A fail%2C tests/test_a.py%3A%3Atest_a[x%2Cy]"
            "::weights_move: fail. 1 of 4 moved.%0A  cause: X"
        )

    def test_levels(self):
        through = case("b", verdict("inconclusive", blocking=False), outcome="inconclusive")
        advised = case("c", verdict("advice"), outcome="passed")
        lines = workflow_commands(session(through, advised, case("a", verdict()), fail_on="fail"))
        assert [line.split()[0] for line in lines] == ["::error", "::warning", "::notice"]
        assert "Tolerated (--ftcheck-fail-on=fail)" in lines[1]

    @pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
    def test_no_name_breaks_out(self, name):
        (line,) = workflow_commands(session(case(name, verdict(summary=name, message=name, file=name))))
        assert line.isprintable()
        head, _, _ = line.removeprefix("::error ").partition("::")
        assert re.fullmatch(r"file=[^,:]*,line=7,title=[^,:]*", head)
        assert len(line) < 30_000  # of a file's name nothing is left out

    def test_no_more_than_github_shows(self):
        lines = workflow_commands(session(*(case(f"t{i:03}", verdict()) for i in range(25))))
        assert sum(line.startswith("::error") for line in lines) == MOST
        assert lines[-1] == "ftcheck: 15 more of level error; GitHub shows 10 a step"


def cells(markdown):
    """The cells of all table rows, as GitHub's Markdown splits them."""
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [[html.unescape(c.strip()) for c in line.strip("| \n").split(" | ")] for line in rows]


class TestJobSummary:
    def test_says_what_there_was(self):
        text = summary(
            session(
                case(
                    "t.py::test_a",
                    verdict(),
                    runs=(run(**{"metric.accuracy.initial": 0.5, "metric.accuracy.final": 0.9}),),
                ),
                case("t.py::test_b", reason="ValueError: no"),
                case("t.py::test_c", verdict("pass"), outcome="passed"),
            )
        )
        assert text.startswith("## ftcheck: 2 verdicts in 3 tests: 1 fail, 1 pass\n")
        assert "| fail | <code>t.py::test_a</code> | <code>weights_move</code> | 1 of 4 moved. Do: Do it. |" in text
        assert "1 test failed without a failed check:" in text
        assert "| failed | <code>t.py::test_b</code> | ValueError: no |" in text
        assert "| <code>t.py::test_a</code> | 20 | 0.700 → 0.300 |  | accuracy 0.500 → 0.900 | 1.00 s |" in text
        assert "```text\nweights_move: fail. 1 of 4 moved.\n  cause: X\n```" in text

    def test_a_run_that_many_tests_judge_is_told_once(self):
        text = summary(
            session(
                *(
                    case(f"t.py::test_{i}", verdict("pass"), outcome="passed", runs=(run(seconds=1.0 + i),))
                    for i in range(9)
                )
            )
        )
        assert "<code>t.py::test_0</code> and 8 more" in text
        assert "test_1" not in text

    @pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
    def test_no_name_breaks_out(self, name):
        text = summary(session(case(name, verdict(summary=name, message=name, remedy=""), reason=name)))
        table = text.partition("### Messages")[0]
        (row,) = [row for row in cells(table) if row[0] == "fail"]
        assert len(row) == 4
        for line in table.splitlines()[2:]:
            bare = re.sub(r"</?code>|<!-- -->|&#\d+;", "", line).strip("| ")
            assert not re.search(r"[<>`*\[\]\\~#@$]", bare), line
            assert line.isprintable()
        # what a reader sees
        shown = re.sub("</?code>", "", row[1])
        if len(name) < 100 and name.isprintable() and "http" not in name:
            assert shown == name

    def test_a_message_cannot_close_its_fence(self):
        text = summary(session(case("a", verdict(message="x\n```\n</details>\n````"))))
        assert "\n`````text\nx\n```\n</details>\n````\n`````\n" in text

    def test_fits_into_what_github_keeps(self, tmp_path):
        many = session(*(case(f"t{i:05}" + "x" * 100, verdict(message="é" * 7_000)) for i in range(400)))
        path = tmp_path / "summary.md"
        path.write_text("before\n")
        append_summary(many, path)
        text = path.read_text(encoding="utf-8")
        assert SUMMARY - 20_000 < path.stat().st_size <= SUMMARY
        assert text.startswith("before\n## ftcheck: 400 verdicts")
        assert text.count("<details>") == text.count("</details>")
        assert text.endswith("left out because a summary may have 1 MiB at most\n")
        path.write_bytes(b"x" * (SUMMARY - 50))
        with pytest.raises(OSError, match="full"):
            append_summary(many, path)
        assert path.stat().st_size == SUMMARY - 50


def test_reports_name_files_from_the_root_of_the_repository(tmp_path, monkeypatch):
    for name in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert folder_of(tmp_path / "a") == ""
    monkeypatch.setenv("GITHUB_WORKSPACE", "/somewhere/else")
    assert folder_of(tmp_path / "a") == ""
    monkeypatch.setenv("CI_PROJECT_DIR", str(tmp_path))
    assert folder_of(tmp_path / "a/b") == "a/b/"
    assert folder_of(tmp_path) == ""


def test_counts_are_over_all_tests_repeats_counted():
    whole = session(
        case("a", dataclasses.replace(verdict(), counts={"fail": 2, "pass": 5})), case("b", verdict("pass"))
    )
    assert whole.counts == {"fail": 2, "pass": 6}
