"""Foreign names through every report: what a viewer, a CI machine or a terminal gets is text and nothing else."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hostile import TEXTS, WORST, harmless
from hypothesis import example, given, settings

from pytest_ftcheck import Verdict, example_trace
from pytest_ftcheck.cli.main import main
from pytest_ftcheck.reports.check_docs import page
from pytest_ftcheck.reports.github import summary, workflow_commands
from pytest_ftcheck.reports.gitlab import gitlab
from pytest_ftcheck.reports.html.escaping import clean
from pytest_ftcheck.reports.run_metrics import run_metrics
from pytest_ftcheck.reports.sarif import sarif
from pytest_ftcheck.reports.session_result import CaseResult, ReportedVerdict, RunMetrics, SessionResult

few = settings(max_examples=30, deadline=None)


def session(text: str) -> SessionResult:
    """A session whose every name and text is this one, as a file may hold it."""
    trace = dataclasses.replace(example_trace(), head=(text or "h",), environment={"torch": text})
    verdict = ReportedVerdict(
        text, "fail", text, text, text, text, text, (text,), text, None, {"fail": 1}, True, "call", text, 1
    )  # fmt: skip
    run = RunMetrics(repr(trace), run_metrics(trace), dict(trace.environment))
    cases = [
        CaseResult("a" + text, "failed", text, 1, (verdict,), (run,), text),
        CaseResult("b" + text, "error", text, 1, (), (), text, worker=text),
        CaseResult("c" + text, "xfailed", None, None, (verdict,), (), text),
    ]
    return SessionResult(tuple(cases), {text: text}, {text: text}, exit_status=1, configuration=text)


def strings(value):
    """All texts in a JSON value, keys too."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.trains
@few
@given(TEXTS)
@example(WORST)
def test_files_of_code_scanners(text):
    for written in (gitlab(session(text)), sarif(session(text))):
        ours = json.loads(written)
        if isinstance(ours, dict):  # rules have our own pages
            assert ours["runs"][0].pop("tool")
        assert all(map(harmless, strings(ours)))


@few
@given(TEXTS)
@example(WORST)
def test_github(text):
    ours = ("::error file=", "::warning file=", "::notice file=", "ftcheck: ")
    for line in workflow_commands(session(text)):
        assert line.isprintable()
        assert line.startswith(ours)
        assert harmless(line.lstrip(":"))
    written = summary(session(text))
    assert all(line.isprintable() for line in written.split("\n"))


@few
@given(TEXTS)
@example(WORST)
def test_names_of_metrics(text):
    trace = example_trace()
    metrics = tuple(dataclasses.replace(metric, name=text) for metric in trace.metrics)
    assert metrics
    names = run_metrics(dataclasses.replace(trace, metrics=metrics))
    assert all(name.isprintable() for name in names)
    assert sum(name.startswith("metric.") for name in names) >= 2


@few
@given(TEXTS)
@example(WORST)
def test_the_page(text):
    assert harmless(clean(text))


@pytest.mark.parametrize("text", [WORST, "__proto__", "\x1b[2J", "a\n::error::x", "lone \ud800"])
def test_the_command_line(text, tmp_path, capsys):
    (tmp_path / "session.json").write_text(session(text).to_json())
    (tmp_path / "old.json").write_text(session("old").to_json())
    trace = example_trace()
    renamed = tuple(
        dataclasses.replace(t, name=t.name.replace("classifier", text)) if t.part == "head" else t
        for t in trace.tensors
    )
    dataclasses.replace(trace, head=(text,), tensors=renamed, stopped=text, environment={text: text}).save(
        tmp_path / "trace.json"
    )
    trace.save(tmp_path / "good.json")
    for arguments in (
        ("show", "session.json"), ("show", "trace.json"), ("compare", "old.json", "session.json"),
        ("compare", "good.json", "trace.json"), ("show", "no" + text.replace("\x00", "") + ".json"), ("explain", text),
    ):  # fmt: skip
        command, *files = arguments
        main([command, *(str(tmp_path / f) if f.endswith(".json") else f for f in files)])
        printed = capsys.readouterr()
        assert printed.out + printed.err
        assert harmless(printed.out)
        assert harmless(printed.err)


@pytest.mark.parametrize(
    "name", ["../../../README", "../architecture", "/etc/hostname", "weights_move/../weights_kept", "__proto__", ""]
)
def test_the_name_of_a_check_is_no_path(name):
    assert page(name) is None
    verdict = dataclasses.replace(session("x").tests[0].verdicts[0], check=name)
    rules = json.loads(sarif(SessionResult((CaseResult("a", "failed", None, None, (verdict,)),))))["runs"][0]["tool"][
        "driver"
    ]["rules"]
    assert [rule.get("help") for rule in rules if rule["id"] == name] == [None]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("outcome", "exploded", "outcome='exploded': expected one of passed, "),
        ("verdict", "weird", "status='weird': expected one of pass, fail"),
        ("counts", {"__proto__": 1}, "status='__proto__': expected one of pass, fail"),
    ],
)
def test_an_unknown_status_is_one_error(field, value, message, tmp_path, capsys):
    raw = json.loads(session("x").to_json())
    if field == "outcome":
        raw["tests"][0]["outcome"] = value
    else:
        raw["tests"][0]["verdicts"][0]["status" if field == "verdict" else "counts"] = value
    with pytest.raises(ValueError, match=message):
        SessionResult.from_json(json.dumps(raw))
    (tmp_path / "a.json").write_text(json.dumps(raw))
    for command in ("show", "html"):
        assert main([command, str(tmp_path / "a.json")]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="status='weird'"):
        Verdict("x", "weird", "y")
