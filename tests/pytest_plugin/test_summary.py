"""What the terminal shows of verdicts: when, how much, and once."""

from __future__ import annotations

import pytest

from pytest_ftcheck.core.formatting import columns
from pytest_ftcheck.pytest_plugin.terminal_summary import COLOURS

GREEN_AND_RED = """
import pytest
from judging import CheckFailed, judge, trace

@pytest.fixture(scope="module")
def traced():
    trace()

def test_green(traced):
    judge("pass")

def test_red():
    judge("fail")  # THE-USERS-LINE

def test_expects_red():
    with pytest.raises(CheckFailed):
        judge("inconclusive")
"""


@pytest.fixture
def project(pytester):
    """Three tests: one passes, one fails, one expects a failure."""
    pytester.makepyfile(test_it=GREEN_AND_RED)


def section(result) -> list[str]:
    """The lines of our section, without its title."""
    lines = result.outlines
    start = next((i for i, line in enumerate(lines) if line.strip("= ") == "ftcheck"), None)
    if start is None:
        return []
    end = next(i for i in range(start + 1, len(lines)) if lines[i].startswith("==="))
    return lines[start + 1 : end]


#: Every call is a run of its own.
SINGLY = """
import dataclasses, itertools
seconds = itertools.count(2)

def singly():
    global TRACE
    TRACE = dataclasses.replace(TRACE, seconds=float(next(seconds)))
    trace()
"""


def verdicts(lines) -> list[str]:
    """Those of them that are about one verdict."""
    return [line for line in lines if " - " in line and line.split()[0] in COLOURS]


@pytest.mark.usefixtures("project")
class TestSection:
    def test_shows_what_failed_and_how_many_did_not(self, run):
        assert section(run()) == [
            "fail test_it.py::test_red - weights_move: 1 of 4 head tensors moved",
            "1 of 3 verdicts; -v shows all of them",
        ]

    def test_shows_everything_with_v(self, run):
        lines = section(run("-v"))
        assert lines[:4] == [
            "      fine-tune            steps  loss                            head",
            "fail  test_it.py: 3 tests     20  0.700 -> 0.320  █▇▇▆▆▅▅▄▄▃▃▂▂▁  25 %",
            "head: median share of the LR budget that the head's tensors used",
            "",
        ]
        told = [
            "pass test_it.py::test_green - weights_move: 1 of 4 head tensors moved",
            "fail test_it.py::test_red - weights_move: 1 of 4 head tensors moved",
            "inconclusive test_it.py::test_expects_red - (expected) weights_move: 1 of 4 head tensors moved",
        ]
        assert verdicts(lines) == lines[4:7] == told

    @pytest.mark.parametrize("arguments", [("-q",), ("-q", "--tb=no"), ("--no-summary",), ("-v", "--no-summary")])
    def test_shows_nothing_when_asked_to_be_quiet(self, run, arguments):
        assert section(run(*arguments)) == []

    def test_shows_nothing_without_bad_news(self, run):
        assert section(run("-k", "not test_red")) == []

    def test_is_not_cut_where_a_log_is_read_later(self, run, monkeypatch):
        monkeypatch.setenv("COLUMNS", "40")
        assert section(run())[0] == "fail test_it.py::test_red - weights_..."
        monkeypatch.setenv("CI", "true")
        assert section(run())[0].endswith("weights_move: 1 of 4 head tensors moved")

    def test_is_coloured_on_a_terminal_only(self, run, monkeypatch):
        assert "\x1b[31mfail\x1b[0m" in run("--color=yes").stdout.str()
        assert "\x1b" not in run().stdout.str()
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b" not in run().stdout.str()

    def test_is_printed_once_by_the_controller(self, run):
        pytest.importorskip("xdist")
        lines = section(run("-v", "-n2", subprocess=True))
        assert sorted(line.split()[0] for line in verdicts(lines)) == ["fail", "inconclusive", "pass"]
        assert sum("0.700 -> 0.320" in line and "█" in line for line in lines) == 1


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("style", ["auto", "long", "short", "line", "no", "native"])
def test_the_whole_message_is_shown_once(run, style):
    text = run(f"--tb={style}", "-k", "test_red").stdout.str()
    for part in ("THE-LIMIT", "THE-CAUSE", "THE-REMEDY", "classifier.weight"):
        assert text.count(part) == 1, part


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("style", ["auto", "long", "short", "line"])
def test_a_failure_points_at_the_users_line(pytester, run, style):
    source = pytester.path.joinpath("test_it.py").read_text().splitlines()
    number = 1 + next(i for i, line in enumerate(source) if "THE-USERS-LINE" in line)
    text = run(f"--tb={style}", "-k", "test_red").stdout.str()
    assert f"test_it.py:{number}: " in text
    assert "judging.py:" not in text


def test_verdicts_of_setup_and_teardown_count_too(pytester, run):
    pytester.makepyfile(
        test_it="""
        import pytest
        from judging import judge

        @pytest.fixture(scope="module")
        def around():
            judge("pass", "in setup")
            yield
            judge("fail", "in teardown")

        def test_it(around):
            judge("advice", "in call")
        """
    )
    assert verdicts(section(run("-v"))) == [
        "pass test_it.py::test_it - weights_move: in setup",
        "advice test_it.py::test_it - weights_move: in call",
        "fail test_it.py::test_it - weights_move: in teardown",
    ]


def test_an_expected_failure_is_no_news(pytester, run):
    pytester.makepyfile(
        test_it="""
        import pytest
        from judging import judge

        @pytest.mark.xfail(strict=True)
        def test_it():
            judge("fail")
        """
    )
    assert section(run()) == []
    told = verdicts(section(run("-v")))
    assert told == ["fail test_it.py::test_it - (expected) weights_move: 1 of 4 head tensors moved"]


def test_a_suite_without_verdicts_sees_nothing_of_us(pytester, run):
    pytester.makepyfile(test_it="def test_it(): pass\ndef test_red(): assert 0")
    assert section(run("-v")) == []


def test_records_stay_with_the_item(pytester, run):
    pytester.makepyfile(test_it=GREEN_AND_RED)
    pytester.makeconftest(
        """
        from pytest_ftcheck.pytest_plugin.plugin import RECORD

        def pytest_runtest_teardown(item):
            record = item.stash[RECORD]
            print("RECORD", item.name, [v.status for v in record.verdicts], len(record.traces))
        """
    )
    run("-s").stdout.fnmatch_lines_random(
        [
            "*RECORD test_green ?'pass'? 1",
            "*RECORD test_red ?'fail'? 0",
            "*RECORD test_expects_red ?'inconclusive'? 0",
        ]
    )


def test_nothing_listens_between_tests(pytester, run):
    pytester.makeconftest(
        """
        from pytest_ftcheck.core import events

        def pytest_collection_finish():
            assert events.current() is None

        def pytest_sessionfinish():
            assert events.current() is None
        """
    )
    pytester.makepyfile(test_it="from judging import judge\ndef test_it(): judge('pass')")
    run(subprocess=True).assert_outcomes(passed=1)  # in this process, the test itself is listened to


# ------------------------------------------------------------------ how it looks
@pytest.mark.usefixtures("project")
class TestLooks:
    def test_quiet_is_one_line_where_something_is_amiss(self, run):
        assert [line for line in run("-q", "--tb=no").outlines if "ftcheck:" in line] == [
            "ftcheck: 1 fail, 1 inconclusive, 1 pass"
        ]
        assert "ftcheck:" not in run("-q", "-k", "not test_red").stdout.str()
        assert "ftcheck:" not in run("-qq", "--tb=no").stdout.str()

    @pytest.mark.parametrize("width", [200, 80, 60, 50, 40])
    def test_every_line_fits_the_terminal(self, pytester, run, monkeypatch, width):
        monkeypatch.setenv("COLUMNS", str(width))
        judging, tests = pytester.path / "judging.py", pytester.path / "test_it.py"
        judging.write_text(judging.read_text() + SINGLY)
        single = tests.read_text().replace("import CheckFailed, judge", "import CheckFailed, judge, singly")
        single = single.replace("        judge(", "        singly(); judge(").replace(
            "    judge(", "    singly(); judge("
        )
        tests.write_text(single + "\ndef test_last(): singly()\n")
        lines = section(run("-v"))
        assert all(columns(line) < width for line in lines)
        rows = lines[1 : lines.index("") - 1]
        assert len(rows) == 5  # the fixture's run and its own are two of one test
        assert all(("▁" in line) == (width >= 60) for line in rows)
        assert all(("0.700 -> 0.320" in line) == (width >= 50) for line in rows)
        assert all(line.endswith("25 %") for line in rows)
        assert "een" in rows[0]
        assert "een (2)" in rows[1]
        assert rows[3].startswith("inconclusive")

    def test_the_founding_question_is_answered_where_it_was_asked(self, run):
        lines = section(run("-v"))
        (at,) = (i for i, line in enumerate(lines) if line.startswith("Should the weights move more?"))
        assert [line.split()[0] for line in lines[at + 1 :] if line.startswith("  ") and line[2] != " "] == [
            "Histogram:",
            "Elements:",
            "Schedule:",
            "Meaning:",
        ]
        assert "Should the weights" not in run().stdout.str()

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_curves_are_written_in_ascii_where_nothing_else_can_be_printed(self, run, monkeypatch, encoding):
        monkeypatch.setenv("PYTHONIOENCODING", encoding)
        monkeypatch.setenv("PYTHONUTF8", "0")
        text = run("-v", subprocess=True).stdout.str()
        assert "#**++==--:" in text
        assert "\\u25" not in text
        assert "█" not in text

    @pytest.mark.parametrize(
        ("variable", "value", "coloured"),
        [("NO_COLOR", "1", False), ("PY_COLORS", "0", False), ("PY_COLORS", "1", True), ("FORCE_COLOR", "1", True)],
    )
    def test_colours_follow_the_usual_variables(self, run, monkeypatch, variable, value, coloured):
        for name in ("NO_COLOR", "PY_COLORS", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(variable, value)
        assert ("\x1b[31mfail" in run("-v").stdout.str()) == coloured


def test_wide_names_keep_the_columns(pytester, run):
    judging = pytester.path / "judging.py"
    judging.write_text(judging.read_text() + SINGLY)
    pytester.makepyfile(
        test_it="""
        import pytest
        from judging import judge, singly

        @pytest.mark.parametrize("n", [1], ids=["short"])
        def test_学习率(n):
            singly()
            judge("pass")

        @pytest.mark.parametrize("n", [1], ids=["x" * 300])
        def test_long(n):
            singly()
            judge("pass")
        """
    )
    lines = section(run("-v"))
    rows = [line for line in lines if "0.700 -> 0.320" in line]
    assert len(rows) == 2
    assert len({columns(line[: line.index("0.700")]) for line in rows}) == 1
    assert all(columns(line) < 100 for line in rows)
    assert "学习率[short]" in rows[0]


def test_answers_are_few_and_each_is_given_once(pytester, run):
    pytester.makepyfile(
        test_it="""
        import dataclasses
        import pytest
        from judging import TRACE, judge
        from pytest_ftcheck.core import events

        @pytest.mark.parametrize("n", [0, 0, 1, 2, 3, 4])
        def test_it(n):
            tensors = tuple(dataclasses.replace(t, lr_sum=t.lr_sum * (1 + n)) for t in TRACE.tensors)
            events.current().traced(dataclasses.replace(TRACE, tensors=tensors))
            judge("pass")
        """
    )
    lines = section(run("-v"))
    assert sum(line.startswith("Should the weights") for line in lines) == 3
    assert "... and of 2 more; -vv shows them" in lines
    assert sum(line.startswith("Should the weights") for line in section(run("-vv"))) == 5
