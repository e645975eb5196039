"""Foreign text, cleaned where it enters: names, texts of exceptions, everything in a verdict and a trace."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hostile import TEXTS, WORST, harmless
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_ftcheck import CheckFailed, Trace, Verdict, example_trace
from pytest_ftcheck.core.formatting import clean, one_line, table

few = settings(max_examples=60, deadline=None)


@few
@given(TEXTS | st.text())
@example(WORST)
def test_what_is_cleaned_is_harmless_and_stays_as_it_is(text):
    cleaned = clean(text)
    assert harmless(cleaned)
    assert clean(cleaned) == cleaned
    assert cleaned.count("\n") == text.count("\n")
    assert harmless(one_line(text, 80))
    assert "\n" not in one_line(text, 80)


@pytest.mark.parametrize(
    "text",
    ["", "1 of 4 moved.", "tests/test_a.py::test_a[x::y]", "a::b", "# Heading", "two\nlines", "loss █▄▁ → 0.3", "学习 ä", "a: b"],
)  # fmt: skip
def test_ordinary_text_stays(text):
    assert clean(text) == text


def test_the_kinds_by_name():
    assert clean("a\r\nb\rc\td\xa0e") == "a\nb\\rc d e"
    assert clean("half \ud800, bell \x07, escape \x1b[1m") == "half \\ud800, bell \\x07, escape \\x1b[1m"
    assert clean("  ::error::x\nx ::debug::y") == "  \\x3a:error::x\nx \\x3a:debug::y"
    assert clean("x::add-mask::y") == "x\\x3a:add-mask::y"  # a long line may be wrapped before it
    assert clean("##[group]x ##vso[task.complete]y") == "#\\x23[group]x #\\x23vso[task.complete]y".replace(
        "#\\x23", "\\x23#"
    )


@few
@given(TEXTS, st.sampled_from(["pass", "fail", "inconclusive", "skipped", "advice"]), st.integers(20, 100))
@example(WORST, "fail", 40)
@example(":", "pass", 20)
def test_every_field_of_a_verdict(text, status, width):
    verdict = Verdict(
        text, status, text, ({"tensor": text, "why": text, text: text},), text, (text, text), text, text, (text,), text, unmeasured=text
    )  # fmt: skip
    for field in dataclasses.fields(verdict):
        value = getattr(verdict, field.name)
        for found in value if field.name in ("causes", "notes") else [value]:
            assert not isinstance(found, str) or harmless(found)
    assert "\n" not in verdict.check + verdict.headline + verdict.fault
    for printed in (str(verdict), verdict.brief(width), CheckFailed(verdict).brief(width), str(CheckFailed(verdict))):
        assert harmless(printed)


@few
@given(TEXTS)
@example(WORST)
def test_the_cells_of_a_table(text):
    lines = table([{"tensor": text, "x": 1.5}, {"tensor": "b", "x": 2.0}])
    assert len(lines) == 3
    assert harmless("\n".join(lines))


@few
@given(TEXTS)
@example(WORST)
def test_a_printed_trace(text):
    trace = dataclasses.replace(
        example_trace(), head=(text or "h",), stopped=text, notes=(text,), environment={text: text}
    )
    assert harmless(str(trace))
    assert harmless(repr(trace))


def changed(**fields):
    return json.dumps({**json.loads(example_trace().to_json()), **fields})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed(notes=["x"])[:-1] + ', "y": ' + "[" * 100_000 + "]" * 100_000 + "}", "no valid JSON"),
        (
            changed(notes=0).replace('"notes": 0', '"notes": ' + "[" * 500 + "]" * 500),
            r"trace\.notes\[0\]: expected str",
        ),
        (changed(intent={"pretrained": {"a": [1.0]}}), r"trace\.intent\.pretrained: expected nothing"),
        (changed(remeasure="x"), "unknown field 'remeasure'"),
        (
            changed(seconds=0).replace('"seconds": 0', '"seconds": 1' + "0" * 400),
            r"trace\.seconds: expected a number that a float",
        ),
        (changed(measurements={"__proto__": {}}), "no probe is called '__proto__'"),
    ],
    ids=["deep", "deep where a text is expected", "pretrained", "not saved", "beyond floats", "probe"],
)
def test_an_odd_trace_is_one_error(text, message):
    with pytest.raises(ValueError, match=message):
        Trace.from_json(text)


def test_a_full_disk_keeps_the_old_trace(tmp_path, monkeypatch):
    path = tmp_path / "trace.json"
    example_trace().save(path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        example_trace(stopped="x").save(path)
    assert Trace.load(path) == example_trace()
    assert list(tmp_path.iterdir()) == [path]
