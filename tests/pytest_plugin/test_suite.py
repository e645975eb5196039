"""Every check a test item: `parametrize_with_checks`, and ``--ftcheck-model`` with no test file."""

from __future__ import annotations

import json

import pytest

from pytest_ftcheck import Subject, parametrize_with_checks, tiny_distilbert
from pytest_ftcheck.checks.catalogue import CHECKS

pytestmark = pytest.mark.usefixtures("trains")

#: Fine-tunes are counted in a file: workers are other processes.
SUBJECTS = """
import os
from pathlib import Path
from light import Light
from pytest_ftcheck import Subject, parametrize_with_checks, toy_batches

def counted(name):
    def make():
        with Path("made.txt").open("a") as file:
            file.write(f"{name} {os.environ.get('PYTEST_XDIST_WORKER', '')}\\n")
        return Light()
    return make

GOOD = Subject("good", counted("good"), lambda: toy_batches(4, 8), lr=1e-3, steps=4)
STILL = Subject("still", counted("still"), lambda: toy_batches(4, 8), lr=0.0, steps=4)

def make_broken():
    raise RuntimeError("the checkpoint is not there")

def make_lazily():
    return Subject("inner", Light, toy_batches(4, 8), lr=0.0, steps=4,
                   expected_failures={"weights_move": "nothing is trained yet"})
"""
GROUPS = """
def pytest_collection_finish(session):
    print("GROUPS", sorted({mark.args[0] for item in session.items for mark in item.iter_markers("xdist_group")}))
"""
#: pass, pass; skipped.
FEW = ["weights_move", "all_finite", "frozen_stay_frozen"]


@pytest.fixture
def suite(pytester):
    """A test file with these subjects and checks."""

    def write(subjects: str, *, checks: list[str] | None = FEW, expected: str = "None") -> None:
        pytester.makepyfile(subjects=SUBJECTS)
        pytester.makepyfile(
            test_inner=f"""
            from subjects import *

            @parametrize_with_checks([{subjects}], checks={checks!r}, expected_failures={expected})
            def test_it(subject, check):
                check(subject)
            """
        )

    return write


@pytest.fixture
def made(pytester):
    """Names of the models made so far, each with its worker."""

    def read() -> list[str]:
        path = pytester.path / "made.txt"
        return path.read_text().splitlines() if path.exists() else []

    return read


def ids(result) -> list[str]:
    return [line for line in result.outlines if "::" in line and " " not in line]


def _statuses(case) -> set[str]:
    return {verdict["status"] for verdict in case["verdicts"]}


# ---------------------------------------------------------------------- the decorator
class TestDecorator:
    def test_an_item_a_check_and_one_fine_tune_a_subject(self, suite, run, made):
        suite("GOOD, STILL")
        result = run("-rsf")
        result.assert_outcomes(passed=3, failed=1, skipped=2)
        result.stdout.fnmatch_lines(["SKIPPED ?2? test_inner.py:*: nothing is frozen."])
        result.stdout.fnmatch_lines(["FAILED test_inner.py::test_it?still-check_weights_move? - weights_move: FAIL. *"])
        assert [line.split()[0] for line in made()] == ["good", "still"]

    def test_all_checks_in_the_order_of_a_run(self, suite, run, made):
        suite("GOOD", checks=None)
        result = run("--collect-only", "-q")
        assert ids(result) == [f"test_inner.py::test_it[good-check_{name}]" for name in CHECKS]
        assert made() == []

    def test_k_selects_a_check_or_a_subject(self, suite, run, made):
        suite("GOOD, STILL")
        run("-k", "check_all_finite").assert_outcomes(passed=2, deselected=4)
        run("-k", "good", "-m", "ftcheck").assert_outcomes(passed=2, skipped=1, deselected=3)
        run("-m", "not ftcheck").assert_outcomes(deselected=6)

    def test_a_failure_is_at_the_users_line(self, suite, run):
        suite("STILL", checks=["weights_move"])
        result = run("--tb=short")
        result.stdout.fnmatch_lines(["test_inner.py:5: in test_it", "    check(subject)", "E   *weights_move: FAIL. *"])
        assert "suite.py:" not in result.stdout.str()

    def test_expected_failures_are_strict(self, suite, run):
        suite("GOOD, STILL", expected='{"check_weights_move": "not yet"}')
        result = run("-rxf")
        result.assert_outcomes(passed=2, xfailed=1, failed=1, skipped=2)
        result.stdout.fnmatch_lines(["XFAIL test_inner.py::test_it?still-check_weights_move? - not yet"])
        result.stdout.fnmatch_lines(
            ["FAILED test_inner.py::test_it?good-check_weights_move? - *XPASS(strict)* not yet"]
        )
        run("--runxfail").assert_outcomes(passed=3, failed=1, skipped=2)

    def test_a_function_may_say_what_each_subject_is_expected_to_fail(self, suite, run):
        suite("GOOD, STILL", expected='lambda s: {"weights_move": "not yet"} if s.name == "still" else None')
        run().assert_outcomes(passed=3, xfailed=1, skipped=2)

    def test_a_subject_made_late_may_say_it_too(self, suite, run):
        suite("make_lazily", checks=["weights_move"])
        run().assert_outcomes(xfailed=1)

    def test_only_the_checks_own_failure_is_expected(self, suite, run):
        suite("make_broken", checks=["weights_move"], expected='{"weights_move": "not yet"}')
        run().assert_outcomes(failed=1)

    def test_an_error_is_told_in_full_once(self, suite, run):
        suite("make_broken")
        result = run()
        result.assert_outcomes(failed=3)
        text = result.stdout.str()
        assert text.count('    raise RuntimeError("the checkpoint is not there")') == 1
        told = "make_broken was not fine-tuned: RuntimeError: the checkpoint is not there (full error: test_inner.py::"
        assert text.count("\n" + told) == 2

    def test_what_skips_while_it_is_made_skips_all(self, pytester, run):
        pytester.makepyfile(
            """
            import pytest
            from pytest_ftcheck import parametrize_with_checks

            def make_it():
                pytest.skip("no network")

            @parametrize_with_checks([make_it], checks=["weights_move", "head_init"])
            def test_it(subject, check):
                check(subject)
            """
        )
        result = run("-rs")
        result.assert_outcomes(skipped=2)
        assert result.stdout.str().count("no network") == 2

    def test_options_reach_what_a_subject_leaves_open(self, pytester, run):
        pytester.makepyfile(
            """
            from pytest_ftcheck import Subject, parametrize_with_checks, tiny_distilbert, toy_batches

            @parametrize_with_checks([Subject("x", tiny_distilbert, toy_batches, steps=4)], checks=["all_finite"])
            def test_it(subject, check):
                check(subject)
            """
        )
        result = run("--ftcheck-steps=9", "--ftcheck-seed=5", "--ftcheck-json=out.json")
        result.assert_outcomes(passed=1)
        (case,) = json.loads((pytester.path / "out.json").read_text())["tests"]
        assert case["runs"][0]["metrics"]["steps"] == 4
        assert case["verdicts"][0]["line"] == 5

    def test_undecided_fails_unless_the_session_lets_it_through(self, pytester, run):
        pytester.makepyfile(
            """
            from pytest_ftcheck import Subject, parametrize_with_checks, tiny_distilbert, toy_batches

            @parametrize_with_checks([Subject("x", tiny_distilbert, toy_batches, steps=2)], checks=["loss_decreases"])
            def test_it(subject, check):
                check(subject)
            """
        )
        run("--ftcheck-extend-seconds=0").assert_outcomes(failed=1)
        result = run("--ftcheck-fail-on=fail", "--ftcheck-extend-seconds=0")
        assert result.ret == 0
        assert "1 inconclusive" in result.outlines[-1]

    def test_seeds_go_over_the_suite(self, suite, run, made):
        suite("GOOD", checks=["weights_move", "all_finite"])
        result = run("--ftcheck-seeds=3", "-v")
        result.assert_outcomes(passed=2)
        assert 2 <= len(made()) <= 3

    def test_what_the_fine_tune_left_out_is_measured(self, pytester, run, made):
        pytester.makepyfile(subjects=SUBJECTS)
        pytester.makepyfile(
            """
            from subjects import *

            SHORT = Subject("short", counted("short"), toy_batches, lr=1e-3, steps=4, probes=["loss"])

            @parametrize_with_checks([SHORT], checks=["eval_deterministic", "batches_sound"])
            def test_it(subject, check):
                check(subject)
            """
        )
        run().assert_outcomes(passed=2)
        assert len(made()) == 3  # the fine-tune, and once more for each of the two probes

    def test_a_probe_that_trains_again_runs_only_for_a_check_that_is_named(self, suite, run):
        suite("GOOD", checks=None)
        result = run("-k", "check_overfits_one_batch", "-rs")
        result.assert_outcomes(skipped=1, deselected=len(CHECKS) - 1)
        result.stdout.fnmatch_lines(["SKIPPED ?1?*Not measured: it trains the model again*"])
        suite("GOOD", checks=["overfits_one_batch"])
        outcomes = run().parseoutcomes()
        assert "skipped" not in outcomes
        assert sum(outcomes.values()) == 1

    def test_no_skipped_verdict_is_a_passed_item(self, suite, run, pytester):
        suite("GOOD", checks=None)
        run("--ftcheck-json=out.json")
        cases = json.loads((pytester.path / "out.json").read_text())["tests"]
        passed = {status for case in cases if case["outcome"] == "passed" for status in _statuses(case)}
        assert passed <= {"pass", "advice"}
        assert {status for case in cases if case["outcome"] == "skipped" for status in _statuses(case)} == {"skipped"}

    def test_several_decorated_tests_share_a_subject(self, pytester, run, made):
        pytester.makepyfile(subjects=SUBJECTS)
        test = """
            from subjects import *

            @parametrize_with_checks([GOOD], checks=["{}"])
            def test_it(subject, check):
                check(subject)
            """
        pytester.makepyfile(test_a=test.format("weights_move"), test_b=test.format("all_finite"))
        run().assert_outcomes(passed=2)
        assert len(made()) == 1

    @pytest.mark.parametrize("distribution", ["loadgroup", "load"])
    def test_workers_fine_tune_a_subject_once(self, suite, run, made, distribution):
        pytest.importorskip("xdist")
        suite(
            "GOOD, STILL", checks=[*FEW, "head_init", "lr_sensible", "batches_sound"], expected='{"weights_move": "?"}'
        )
        result = run("-n2", f"--dist={distribution}", "-v", subprocess=True)
        text = result.stdout.str()
        assert "INTERNALERROR" not in text
        assert text.count("= ftcheck =") == 1
        assert len(set(made())) == len(made())  # once a worker
        assert distribution == "load" or len(made()) == 2

    def test_a_group_of_the_users_own_stays(self, suite, run, pytester):
        pytest.importorskip("xdist")
        suite("GOOD, STILL", checks=["all_finite"])
        path = pytester.path / "test_inner.py"
        path.write_text(path.read_text().replace("@param", "import pytest\n@pytest.mark.xdist_group('mine')\n@param"))
        pytester.makeconftest(GROUPS)
        run("--collect-only").stdout.fnmatch_lines(["GROUPS ['mine']"])

    def test_the_items_of_a_subject_are_a_group(self, suite, run, pytester):
        pytest.importorskip("xdist")
        suite("GOOD, STILL", checks=["all_finite", "head_init"])
        pytester.makeconftest(GROUPS)
        run("--collect-only").stdout.fnmatch_lines(["GROUPS ['good', 'still']"])

    def test_strict_markers_without_xdist(self, suite, run):
        suite("GOOD", checks=["all_finite"])
        run("--strict-markers", "-pno:xdist").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, "subjects is empty"),
        (("tiny",), TypeError, "expected a list of subjects"),
        ((Subject("x", tiny_distilbert),), TypeError, "expected a list of subjects"),
        (
            ([tiny_distilbert, Subject("tiny_distilbert", tiny_distilbert)],),
            ValueError,
            "two are named 'tiny_distilbert'",
        ),
        (([3],), TypeError, r"subjects\[0\] is an int"),
    ],
)
def test_bad_subjects(arguments, error, message):
    with pytest.raises(error, match=message):
        parametrize_with_checks(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"checks": []}, ValueError, "checks is empty"),
        ({"checks": "weights_move"}, TypeError, "checks is a str"),
        ({"checks": ["weight_moves"]}, ValueError, "there is no check 'weight_moves'; did you mean weights_move"),
        ({"expected_failures": {"nope": "?"}}, ValueError, "there is no check 'nope'; the checks are"),
        ({"expected_failures": lambda s: {"weights_move": None}}, TypeError, "expected the reason, a text"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        parametrize_with_checks([tiny_distilbert], **options)


# ---------------------------------------------------------------------- --ftcheck-model
FEWER = ("-k", "weights_move or all_finite or frozen_stay")


class TestModel:
    @pytest.fixture(autouse=True)
    def project(self, pytester):
        """Subjects to name, and a test file of no concern."""
        pytester.makepyfile(subjects=SUBJECTS, test_other="def test_other(): pass")

    def test_a_model_and_no_path_is_the_model_alone(self, run):
        result = run("--ftcheck-model=subjects:GOOD", *FEWER, "-v")
        result.assert_outcomes(passed=2, skipped=1, deselected=len(CHECKS) - 3)
        result.stdout.fnmatch_lines(["ftcheck::subjects:GOOD::check_weights_move PASSED*"])

    def test_beside_paths(self, run):
        result = run("--ftcheck-model=subjects:GOOD", "test_other.py", "-k", "weights_move or other", "-q")
        result.assert_outcomes(passed=2, deselected=len(CHECKS) - 1)

    def test_collecting_makes_nothing_and_shows_all(self, run, made):
        result = run("--ftcheck-model=subjects:GOOD", "--ftcheck-model=subjects:STILL", "--collect-only", "-q")
        assert ids(result) == [f"ftcheck::subjects:{n}::check_{name}" for n in ("GOOD", "STILL") for name in CHECKS]
        assert made() == []
        tree = run("--ftcheck-model=subjects:GOOD", "--collect-only")
        tree.stdout.fnmatch_lines(["*<Model subjects:GOOD>", "*<Check check_optimizer_covers_model>"])
        tree.stdout.fnmatch_lines([f"collected {len(CHECKS)} items"])

    def test_a_node_id_runs_that_check(self, run, made):
        address = "ftcheck::subjects:GOOD::check_all_finite"
        run(address).assert_outcomes(passed=1)
        run(address, "test_other.py", "ftcheck::subjects:GOOD::check_frozen_stay_frozen@subjects:GOOD").assert_outcomes(
            passed=2, skipped=1
        )
        result = run("ftcheck::subjects:GOOD", "--collect-only", "-q")
        assert len(ids(result)) == len(CHECKS)

    def test_the_node_id_of_a_check_that_trains_again_has_it_measured(self, run):
        model = run("--ftcheck-model=subjects:GOOD", "-k", "check_overfits_one_batch")
        model.assert_outcomes(skipped=1, deselected=len(CHECKS) - 1)
        assert "skipped" not in run("ftcheck::subjects:GOOD::check_overfits_one_batch").parseoutcomes()

    def test_the_configuration_file_names_what_is_always_judged(self, pytester, run):
        pytester.makeini("[pytest]\nftcheck_model =\n  subjects:GOOD\n  subjects:STILL")
        assert len(ids(run("--collect-only", "-q"))) == 2 * len(CHECKS) + 1
        assert len(ids(run("--collect-only", "-q", "test_other.py"))) == 1
        assert len(ids(run("--collect-only", "-q", "--ftcheck-model=subjects:GOOD"))) == len(CHECKS)

    def test_native_toml(self, pytester, run):
        if pytest.version_tuple < (9,):
            pytest.skip("pytest 9 reads it")
        pytester.makepyprojecttoml('[tool.pytest]\nftcheck_model = ["subjects:GOOD"]')
        assert len(ids(run("--collect-only", "-q"))) == len(CHECKS) + 1

    def test_skips_expected_failures_and_errors(self, run):
        result = run("--ftcheck-model=subjects:make_lazily", "--ftcheck-model=subjects:make_broken", *FEWER, "-rsxf")
        result.assert_outcomes(passed=1, skipped=1, xfailed=1, failed=3, deselected=2 * (len(CHECKS) - 3))
        result.stdout.fnmatch_lines(["SKIPPED ?1? ftcheck::subjects:make_lazily: nothing is frozen."])
        result.stdout.fnmatch_lines(
            ["XFAIL ftcheck::subjects:make_lazily::check_weights_move - nothing is trained yet"]
        )
        text = result.stdout.str()
        assert text.count('raise RuntimeError("the checkpoint is not there")') == 1
        assert "model_items.py" not in text
        assert (
            text.count("make_broken was not fine-tuned: RuntimeError: the checkpoint is not there (full error: ") >= 2
        )

    @pytest.mark.parametrize("style", ["auto", "short", "line", "native", "no"])
    def test_a_failure_is_its_message_once(self, run, style):
        result = run("--ftcheck-model=subjects:STILL", "-k", "weights_move", f"--tb={style}")
        result.assert_outcomes(failed=1, deselected=len(CHECKS) - 1)
        text = result.stdout.str()
        assert text.count("cause: the run was requested with lr=0") == 1
        assert "site-packages" not in text

    def test_last_failed_and_stepwise(self, pytester, run, made):
        base = ("--ftcheck-model=subjects:STILL", "-pno:randomly", "-pno:asyncio")
        first = pytester.runpytest_inprocess(*base, *FEWER)
        first.assert_outcomes(passed=1, failed=1, skipped=1, deselected=len(CHECKS) - 3)
        again = pytester.runpytest_inprocess(*base, "--lf", "-v")
        again.assert_outcomes(failed=1, deselected=len(CHECKS) - 1)
        step = pytester.runpytest_inprocess(*base, *FEWER, "--sw")
        assert step.ret == pytest.ExitCode.INTERRUPTED

    def test_workers(self, run, made):
        pytest.importorskip("xdist")
        result = run("--ftcheck-model=subjects:GOOD", "--ftcheck-model=subjects:STILL", *FEWER, "-n2", "-q",
                     "--dist=loadgroup", "ftcheck::subjects:GOOD::check_all_finite", subprocess=True)  # fmt: skip
        result.assert_outcomes(passed=2, failed=1, skipped=1)
        assert len(made()) == 2

    def test_reports_know_the_function(self, pytester, run):
        run(
            "--ftcheck-model=subjects:make_lazily",
            "-k",
            "weights_move",
            "--ftcheck-json=out.json",
            "--junitxml=out.xml",
        )
        (case,) = json.loads((pytester.path / "out.json").read_text())["tests"]
        line = SUBJECTS.splitlines().index("def make_lazily():") + 1
        assert (case["nodeid"], case["outcome"]) == ("ftcheck::subjects:make_lazily::check_weights_move", "xfailed")
        assert case["file"] == "subjects.py"
        assert abs(case["line"] - line) <= 1
        assert case["verdicts"][0]["file"] is None
        assert 'name="check_weights_move"' in (pytester.path / "out.xml").read_text()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("subjects:GOD", "--ftcheck-model=subjects:GOD: subjects has no 'GOD'; did you mean GOOD?"),
            ("subject:GOOD", "--ftcheck-model=subject:GOOD: there is no module 'subject'"),
            (
                "tiny:distlbert",
                "--ftcheck-model=tiny:distlbert: transformers has no class for text-classification of 'distlbert'*",
            ),
            (
                "nonsense",
                "--ftcheck-model=nonsense: expected pkg.module:make_model, hf:NAME, tiny:ARCHITECTURE or tiny:ARCHITECTURE/TASK",
            ),
            ("a::b", "--ftcheck-model=a::b: name='a::b': expected a text without*"),
        ],
    )
    def test_a_name_that_does_not_resolve_ends_the_session(self, run, name, message):
        result = run(f"--ftcheck-model={name}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: {message}"])

    def test_it_does_so_under_xdist_before_a_worker_starts(self, run):
        pytest.importorskip("xdist")
        result = run("--ftcheck-model=subjects:GOD", "-n2", subprocess=True)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["ERROR: --ftcheck-model=subjects:GOD: subjects has no 'GOD'; did you mean GOOD?"])
        assert "INTERNALERROR" not in result.stdout.str()

    def test_a_node_id_of_no_check(self, run):
        result = run("ftcheck::subjects:GOOD::check_nothing")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["ERROR: *there is no check 'check_nothing'; `ftcheck list` shows all"])

    def test_the_path_is_as_before(self, run, pytester):
        import sys

        before = list(sys.path)
        run("--ftcheck-model=subjects:GOOD", "--collect-only", "-q")
        assert sys.path == before

    def test_a_tiny_architecture_passes_every_check(self, run):
        result = run("--ftcheck-model=tiny:distilbert")
        outcomes = result.parseoutcomes()
        assert set(outcomes) == {"passed", "skipped"}
        assert outcomes["passed"] >= 25
