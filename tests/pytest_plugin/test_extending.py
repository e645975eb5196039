"""``--ftcheck-extend-seconds``: the fixture's runs are extended where a check is inconclusive, within a budget of seconds."""

from __future__ import annotations

import pytest

from pytest_ftcheck.pytest_plugin import options

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("trains")]

SUITE = """
import pytest
from pytest_ftcheck import assert_loss_decreases

@pytest.fixture(scope="module")
def trace(finetune, tiny_distilbert, toy_batches):
    return finetune(tiny_distilbert, toy_batches(), ARGUMENTS, probes=["loss", "descent"])

def test_it_falls(trace):
    print(assert_loss_decreases(trace))
"""
#: Long enough for any machine.
AMPLE = "--ftcheck-extend-seconds=10000"


@pytest.fixture
def extend(pytester, run):
    def extend(arguments, *flags):
        pytester.makepyfile(test_extending=SUITE.replace("ARGUMENTS", arguments))
        return run(*flags)

    return extend


def test_a_short_run_is_extended_and_says_so(extend):
    result = extend("lr=1e-3, steps=4", AMPLE, "-v", "-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "ftcheck: extend_seconds=10000.0",
            "*loss_decreases: pass. Extended, 4 -> 8*steps: *",
            "*note: after 4 steps: inconclusive. 4 steps are too few to decide*",
            "*note: * longer run* took * s of the 10,000 s of --ftcheck-extend-seconds",
            "pass loss_decreases: Extended, 4 -> 8 * - test_extending.py::test_it_falls",
        ]
    )


def test_what_stays_inconclusive_is_inconclusive(extend):
    result = extend("lr=1e-7, steps=1", AMPLE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*loss_decreases: INCONCLUSIVE. Extended, 1 -> 2 -> 4 steps: *"])
    assert "do not re-run" not in result.stdout.str()


@pytest.mark.parametrize(("arguments", "flag"), [("", "--ftcheck-extend-seconds=0"), (", extend_seconds=0", AMPLE)])
def test_a_budget_of_zero_turns_it_off(extend, arguments, flag):
    result = extend(f"lr=1e-3, steps=4{arguments}", flag)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*loss_decreases: INCONCLUSIVE. 4 steps are too few*"])
    result.stdout.fnmatch_lines(["*deterministic: do not re-run*"])


def test_a_run_that_fails_is_not_extended(extend):
    result = extend("lr=0.0, steps=4", AMPLE, "-v")
    result.assert_outcomes(failed=1)
    assert "Extended" not in result.stdout.str()


def test_several_seeds_have_a_rule_of_their_own(extend):
    result = extend("lr=1e-3, steps=4, seeds=3", AMPLE, "-s")
    assert "Extended" not in result.stdout.str()
    result.stdout.fnmatch_lines(["*note: seed* inconclusive after 4 steps and ran 8 instead"])


def test_an_invalid_argument_is_refused_before_any_training(extend):
    result = extend("lr=1e-3, steps=4, extend_seconds=-1", "-v")
    result.stdout.fnmatch_lines(["E*ValueError: extend_seconds=-1: expected a finite number >= 0"])
    assert "loss_decreases:" not in result.stdout.str()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--ftcheck-extend-seconds=-1", "--ftcheck-extend-seconds=-1: expected a number >= 0, 0 for never"),
        ("--ftcheck-extend-seconds=", "--ftcheck-extend-seconds=: expected a number >= 0, 0 for never"),
        ("--ftcheck-extend-seconds=inf", "--ftcheck-extend-seconds=inf: expected a number >= 0, 0 for never"),
        ("-oftcheck_extend_seconds=nan", "ftcheck_extend_seconds = nan: expected a number >= 0, 0 for never"),
        ("-oftcheck_extend_seconds=long", "ftcheck_extend_seconds: expected a number >= 0 (*'long'*)"),
    ],
)
def test_a_bad_budget_is_one_usage_error(run, argument, message):
    result = run(argument)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_the_default_is_in_the_help(run):
    text = " ".join(run("--help").stdout.str().split())
    assert f"a number >= 0, 0 for never (default: {options.EXTEND_DEFAULT:g})" in text
