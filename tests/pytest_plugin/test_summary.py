"""What the terminal shows of verdicts: when, how much, and once."""

from __future__ import annotations

from fnmatch import fnmatch

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
            "fail weights_move: 1 of 4 head tensors moved - test_it.py::test_red",
            "1 of 3 verdicts; -v shows all of them, with limits and notes",
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
            "pass weights_move: 1 of 4 head tensors moved - test_it.py::test_green",
            "fail weights_move: 1 of 4 head tensors moved - test_it.py::test_red",
            "inconclusive (expected) weights_move: 1 of 4 head tensors moved - test_it.py::test_expects_red",
        ]
        assert verdicts(lines) == lines[4:7] == told

    @pytest.mark.parametrize("arguments", [("-q",), ("-q", "--tb=no"), ("--no-summary",), ("-v", "--no-summary")])
    def test_shows_nothing_when_asked_to_be_quiet(self, run, arguments):
        assert section(run(*arguments)) == []

    def test_shows_nothing_without_bad_news(self, run):
        assert section(run("-k", "not test_red")) == []

    def test_is_not_cut_where_a_log_is_read_later(self, run, monkeypatch):
        monkeypatch.setenv("COLUMNS", "40")
        assert section(run())[:3] == [
            "fail weights_move: 1 of 4 head tensors",
            "     moved - test_it.py::test_red",
            "1 of 3 verdicts; -v shows all of them,",
        ]
        monkeypatch.setenv("CI", "true")
        assert section(run())[0] == "fail weights_move: 1 of 4 head tensors moved - test_it.py::test_red"

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
    for part in ("THE-CAUSE", "THE-REMEDY", "classifier.weight"):
        assert text.count(part) == 1, part
    assert "THE-LIMIT" not in text
    assert run(f"--tb={style}", "-k", "test_red", "-v").stdout.str().count("THE-LIMIT") == 1


@pytest.mark.usefixtures("project")
def test_without_tracebacks_no_text_is_repeated(run):
    text = run("--tb=no").stdout.str()
    assert text.count("1 of 4 head tensors moved") == 1
    assert "FAILED test_it.py::test_red - weights_move\n" in text
    # with -q there is no section, so the short summary has the headline
    assert "FAILED test_it.py::test_red - weights_move: FAIL. 1 of 4" in run("--tb=no", "-q").stdout.str()


class TestBrief:
    MANY = """
        import pytest
        from judging import TRACE
        from pytest_ftcheck import Verdict
        from pytest_ftcheck.checks.assertions import enforce

        def verdict(status):
            rows = tuple({"tensor": f"layer.{i}.weight", "why": f"reason {i}"} for i in range(40))
            text = "A sentence that is long enough to be wrapped. " * 8
            return Verdict("weights_move", status, "1 of 40 tensors moved.", rows, limit="LIMIT", causes=(text, "SECOND"),
                           remedy=text, measured="MEASURED", notes=("NOTE",))

        @pytest.mark.parametrize("status", ["fail", "inconclusive"])
        def test_it(status):
            enforce(verdict(status), TRACE)

        @pytest.fixture
        def broken():
            enforce(verdict("inconclusive"), TRACE)

        def test_setup(broken):
            pass
        """

    def test_a_message_has_at_most_twelve_lines(self, pytester, run, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        pytester.makepyfile(test_it=self.MANY)
        result = run("-k", "fail")
        message = [line for line in result.outlines if line.startswith("E  ")]
        assert message[0] == "E       pytest_ftcheck.CheckFailed: weights_move: FAIL. 1 of 40 tensors moved."
        assert len(message) <= 12
        assert all(columns(line) <= 80 for line in message)
        text = "\n".join(message)
        assert text.index("cause: ") < text.index("layer.0.weight") < text.index("do: ")
        for part in ("LIMIT", "MEASURED", "NOTE", "SECOND"):
            assert part not in text
        whole = run("-k", "fail", "-v").stdout.str()
        for part in ("LIMIT", "MEASURED", "NOTE", "SECOND"):
            assert part in whole

    @pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["one process", "xdist"])
    def test_inconclusive_is_a_word_and_a_colour_of_its_own(self, pytester, run, workers):
        if workers:
            pytest.importorskip("xdist")
        pytester.makepyfile(test_it=self.MANY)
        result = run("--color=yes", *workers, subprocess=bool(workers))
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        text = result.stdout.str()
        for word in (
            "\x1b[33mINCONCLUSIVE\x1b[0m test_it.py::\x1b[1mtest_it[inconclusive]",
            "\x1b[31mFAILED\x1b[0m test_it.py::\x1b[1mtest_it[fail]",
            "\x1b[33mINCONCLUSIVE\x1b[0m test_it.py::\x1b[1mtest_setup",
        ):
            assert word in text
        assert "weights_move: INCONCLUSIVE. 1 of 40" in text
        result.assert_outcomes(failed=2, errors=1)

    def test_a_diagnosis_is_brief_too(self):
        from pytest_ftcheck import Verdict
        from pytest_ftcheck.checks.catalogue import CHECKS
        from pytest_ftcheck.checks.diagnosis import conclude

        long = "A sentence that is long enough to be wrapped. " * 9
        for status, word in (("fail", "FAIL"), ("inconclusive", "INCONCLUSIVE")):
            text = conclude(Verdict(name, status, long, causes=(long,), remedy=long) for name in CHECKS).brief(70)
            assert text.startswith(f"healthy: {word}. ")
            assert len(text.splitlines()) <= 12


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
        "pass weights_move: in setup - test_it.py::test_it",
        "advice weights_move: in call - test_it.py::test_it",
        "fail weights_move: in teardown - test_it.py::test_it",
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
    assert told == ["fail (expected) weights_move: 1 of 4 head tensors moved - test_it.py::test_it"]


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


#: Two tests of two runs without measurements; both fail.
NOT_MEASURED = """
import dataclasses, pytest
from pytest_ftcheck import CheckFailed, assert_healthy, assert_overfits_one_batch, example_trace

SLOW = example_trace(skipped={name: "left out for its cost" for name in PROBES})

@pytest.mark.parametrize("seconds", [1.0, 2.0])
def test_red(seconds):
    assert_healthy(dataclasses.replace(SLOW, metrics=(), probe_loss=None, iterations=(), seconds=seconds))
"""


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("", "not measured, in one fine-tune or more: * checks"),
        ("IGNORED", "not measured, in one fine-tune or more: overfits_one_batch, beats_permuted_labels"),
    ],
)
def test_what_was_not_measured_is_said_once_a_session(pytester, run, asked, shown):
    from pytest_ftcheck import diagnose, example_trace
    from pytest_ftcheck.checks.catalogue import SPECS

    names = [v.check for v in diagnose(example_trace()).not_measured]
    ignored = [n for n in names if n not in ("overfits_one_batch", "beats_permuted_labels")] if asked else []
    probes = sorted({kind.probe for spec in SPECS.values() for kind in spec.measurements} - {"ranks"})
    source = NOT_MEASURED.replace("PROBES", repr(probes)).replace(
        "seconds=seconds)", f"seconds=seconds), ignore={ignored}"
    )
    pytester.makepyfile(source)
    lines = section(run())
    assert sum(line.startswith("not measured") for line in lines) == 1
    assert any(fnmatch(line, shown) for line in lines)
    assert lines[-1].endswith("-v shows all of them, with limits and notes, and why it was not measured")


def test_a_check_that_a_test_asked_for_is_not_among_them(pytester, run):
    """Its own verdict says so."""
    pytester.makepyfile(
        """
        from pytest_ftcheck import assert_overfits_one_batch, example_trace
        def test_red():
            assert_overfits_one_batch(example_trace())
        """
    )
    lines = section(run())
    assert lines[0].startswith("inconclusive overfits_one_batch: Not measured")
    assert not any(line.startswith("not measured") for line in lines)
