"""The arguments of ``@pytest.mark.ftcheck(ranks=..., timeout=...)``: a bad one ends the session before any test."""

from __future__ import annotations

import os

import pytest

from pytest_ftcheck.pytest_plugin.ranks.marker import MOST_RANKS, TIMEOUT, Declared, declared
from pytest_ftcheck.pytest_plugin.ranks.printed import MOST_BYTES, Printed
from pytest_ftcheck.pytest_plugin.ranks.process_settings import environment

ACCEPTED = f"expected a whole number from 1 to {MOST_RANKS}"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("ranks=0", f"(ranks=0): {ACCEPTED}"),
        ("ranks=-1", f"(ranks=-1): {ACCEPTED}"),
        ("ranks='2'", f"(ranks='2'): {ACCEPTED}"),
        ("ranks=2.0", f"(ranks=2.0): {ACCEPTED}"),
        ("ranks=True", f"(ranks=True): {ACCEPTED}"),
        (f"ranks={MOST_RANKS + 1}", f"(ranks={MOST_RANKS + 1}): {ACCEPTED}"),
        ("2", "(2): expected keywords: ranks or timeout"),
        ("rank=2", ": it has no argument rank; did you mean ranks?"),
        ("ranks=2, world=2", ": it has no argument world: expected ranks or timeout"),
        ("timeout=3", "(timeout=3): timeout is given without ranks"),
        *(
            (f"ranks=2, timeout={t}", f"(timeout={t}): expected a number of seconds > 0")
            for t in ("0", "-1", "'9'", "None")
        ),
        ("ranks=2, timeout=float('nan')", "(timeout=nan): expected a number of seconds > 0"),
        ("ranks=2, timeout=float('inf')", "(timeout=inf): expected a number of seconds > 0"),
    ],
)
def test_a_bad_argument_is_refused(run, pytester, given, reason):
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.ftcheck({given})\ndef test_it(): ...\ndef test_other(): print('RAN')\n"
    )
    result = run("-s")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *"])
    assert f"test_a_bad_argument_is_refused.py::test_it: @pytest.mark.ftcheck{reason}" in str(result.stderr)
    assert "RAN" not in str(result.stdout)


def test_the_same_from_a_worker_of_xdist(run, pytester):
    pytester.makepyfile("import pytest\n@pytest.mark.ftcheck(ranks=0)\ndef test_it(): ...\n")
    result = run("-n1", subprocess=True)
    result.assert_outcomes(errors=1)
    assert (
        f"UsageError: test_the_same_from_a_worker_of_xdist.py::test_it: @pytest.mark.ftcheck(ranks=0): {ACCEPTED}"
        in str(result.stdout)
    )


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        (
            "from hypothesis import given, strategies as st\n@MARK\n@given(st.integers())\ndef test_it(n): ...",
            "@given draws other examples",
        ),
        (
            "from pytest_ftcheck import parametrize_with_checks\n@MARK\n@parametrize_with_checks([dict(name='a', model=print)])\n"
            "def test_it(check, subject): ...",
            "a suite of checks trains in one process",
        ),
    ],
)
def test_tests_that_cannot_run_on_several_ranks(run, pytester, test, reason):
    pytester.makepyfile("import pytest\nMARK = pytest.mark.ftcheck(ranks=2)\n" + test)
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert reason in str(result.stderr)


def test_a_bad_argument_of_a_test_that_is_not_chosen_does_not_matter(run, pytester):
    pytester.makepyfile("import pytest\n@pytest.mark.ftcheck(ranks=0)\ndef test_it(): ...\ndef test_other(): ...\n")
    run("-k", "other").assert_outcomes(passed=1, deselected=1)


@pytest.fixture
def alone(monkeypatch, pytester):
    """Neighbouring plugins warn about themselves."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:asyncio -p no:randomly -p no:pytest_torch")


@pytest.mark.usefixtures("alone")
def test_the_nearest_marker_decides_argument_by_argument(pytester):
    items = pytester.getitems(
        """
        import pytest
        pytestmark = pytest.mark.ftcheck(ranks=2)
        def test_module(tiny_distilbert): ...
        @pytest.mark.ftcheck(timeout=9)
        class TestClass:
            def test_it(self): ...
            @pytest.mark.ftcheck(ranks=1)
            def test_one(self): ...
            @pytest.mark.parametrize("n", [pytest.param(4, marks=pytest.mark.ftcheck(ranks=4))])
            def test_parameter(self, n): ...
        """
    )
    assert [declared(item) for item in items] == [Declared(2), Declared(2, 9.0), Declared(1, 9.0), Declared(4, 9.0)]


@pytest.mark.usefixtures("alone")
def test_without_ranks_a_test_runs_here(pytester):
    (item,) = pytester.getitems("import pytest\n@pytest.mark.ftcheck\ndef test_it(): ...")
    assert declared(item) is None


def test_help(run):
    result = run("--markers")
    result.stdout.fnmatch_lines([f"@pytest.mark.ftcheck(ranks=None, timeout={TIMEOUT:g}): *{MOST_RANKS}*"])


# ---------------------------------------------------------------------- what a process gets
def test_ranks_share_the_cores(pytestconfig, monkeypatch):
    cores = len(os.sched_getaffinity(0))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment(pytestconfig, 0, 1)["OMP_NUM_THREADS"] == str(cores)
    assert environment(pytestconfig, 0, cores)["OMP_NUM_THREADS"] == "1"
    assert environment(pytestconfig, 0, 2 * cores)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # less than the share
    assert environment(pytestconfig, 0, 1)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores + 1))
    assert environment(pytestconfig, 0, 1)["OMP_NUM_THREADS"] == str(cores)


def test_a_rank_knows_nothing_of_an_outer_launcher(pytestconfig, monkeypatch):
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "outer")
    found = environment(pytestconfig, 1, 2)
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"]) == ("1", "1", "2")
    assert found["MASTER_ADDR"] == "127.0.0.1"
    assert not {"MASTER_PORT", "TORCHELASTIC_RUN_ID"} & found.keys()


def test_what_a_rank_prints_is_shown_once_and_cut_at_its_beginning(tmp_path):
    file = tmp_path / "stdout"
    file.write_bytes(b"startup\n")
    printed = Printed(file)
    assert printed.new_lines() == []
    printed.begin(8)
    with file.open("ab") as stream:
        stream.write(b"one\ntwo")
    assert printed.new_lines() == ["one"]
    assert printed.new_text() == "two"
    with file.open("ab") as stream:
        stream.write(b"\n" + b"x" * MOST_BYTES)
    assert printed.new_text() == "... 1 bytes before are left out\n" + "x" * MOST_BYTES
    assert Printed(tmp_path / "started").new_text() == ""
    file.unlink()
    assert printed.new_text() == ""
