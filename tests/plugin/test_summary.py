"""What the terminal shows of verdicts: when, how much, and once."""

from __future__ import annotations

import pytest

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


@pytest.mark.usefixtures("project")
class TestSection:
    def test_shows_what_failed_and_how_many_did_not(self, run):
        assert section(run()) == [
            "fail test_it.py::test_red - weights_move: 1 of 4 head tensors moved",
            "1 of 3 verdicts; -v shows all of them",
        ]

    def test_shows_everything_with_v(self, run):
        lines = section(run("-v"))
        cut = lines.pop(0)
        assert cut.startswith("trace test_it.py::test_green - <Trace of 20 steps in 1.0 s: 4 tensors, head")
        assert cut.endswith("...")
        assert len(cut) == 99  # of 100 columns
        assert lines == [
            "pass test_it.py::test_green - weights_move: 1 of 4 head tensors moved",
            "fail test_it.py::test_red - weights_move: 1 of 4 head tensors moved",
            "inconclusive test_it.py::test_expects_red - (expected) weights_move: 1 of 4 head tensors moved",
        ]

    @pytest.mark.parametrize("arguments", [("-q",), ("-q", "--tb=no"), ("--no-summary",), ("-v", "--no-summary")])
    def test_shows_nothing_when_asked_to_be_quiet(self, run, arguments):
        assert section(run(*arguments)) == []

    def test_shows_nothing_without_bad_news(self, run):
        assert section(run("-k", "not test_red")) == []

    def test_is_not_cut_where_a_log_is_read_later(self, run, monkeypatch):
        monkeypatch.setenv("CI", "true")
        assert section(run("-v"))[0].endswith("loss 0.700 -> 0.320>")

    def test_is_coloured_on_a_terminal_only(self, run, monkeypatch):
        assert "\x1b[31mfail\x1b[0m" in run("--color=yes").stdout.str()
        assert "\x1b" not in run().stdout.str()
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b" not in run().stdout.str()

    def test_is_printed_once_by_the_controller(self, run):
        pytest.importorskip("xdist")
        lines = section(run("-v", "-n2", subprocess=True))
        assert sorted(line.split()[0] for line in lines) == ["fail", "inconclusive", "pass", "trace"]


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
    assert section(run("-v")) == [
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
    assert section(run("-v")) == ["fail test_it.py::test_it - (expected) weights_move: 1 of 4 head tensors moved"]


def test_a_suite_without_verdicts_sees_nothing_of_us(pytester, run):
    pytester.makepyfile(test_it="def test_it(): pass\ndef test_red(): assert 0")
    assert section(run("-v")) == []


def test_records_stay_with_the_item(pytester, run):
    pytester.makepyfile(test_it=GREEN_AND_RED)
    pytester.makeconftest(
        """
        from pytest_ftcheck.plugin import RECORD

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
        from pytest_ftcheck import listener

        def pytest_collection_finish():
            assert listener.current() is None

        def pytest_sessionfinish():
            assert listener.current() is None
        """
    )
    pytester.makepyfile(test_it="from judging import judge\ndef test_it(): judge('pass')")
    run(subprocess=True).assert_outcomes(passed=1)  # in this process, the test itself is listened to
