"""Beside other plugins: nothing clashes, nothing is lost, nothing is told twice."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pytest_ftcheck.fixtures import NAMES

TRAINING = """
import pytest
from pytest_ftcheck import assert_weights_move

@pytest.fixture(scope="module")
def trace(finetune, tiny_distilbert, toy_batches):
    return finetune(tiny_distilbert, toy_batches(4, 8), steps=4, lr=1e-3)

@pytest.mark.parametrize("part", ["head", "base"])
def test_moves(trace, part):
    assert_weights_move(trace, part=part)

def test_does_not_move(finetune, tiny_distilbert, toy_batches):
    assert_weights_move(finetune(tiny_distilbert, toy_batches(4, 8), steps=4, lr=0.0))
"""

HEAVY = ("torch", "transformers", "numpy", "scipy", "hypothesis", "tensorboard", "matplotlib")


def test_xdist_carries_verdicts_and_traces_of_real_runs(pytester, run):
    pytest.importorskip("xdist")
    pytester.makepyfile(test_train=TRAINING)
    result = run("-n2", "-v", subprocess=True)
    result.assert_outcomes(passed=2, failed=1)
    text = result.stdout.str()
    for status, name in (("pass", "moves?head?"), ("pass", "moves?base?"), ("fail", "does_not_move")):
        result.stdout.fnmatch_lines([f"{status} test_train.py::test_{name} - weights_move: *"])
    assert text.count("= ftcheck =") == 1
    assert "INTERNALERROR" not in text
    # the failure itself: once, at the user's line
    assert text.count("E       pytest_ftcheck.CheckFailed: weights_move: FAIL. ") == 1
    assert "\ntest_train.py:13: CheckFailed" in text


def test_randomly_changes_the_order_and_nothing_else(pytester, run):
    pytest.importorskip("pytest_randomly")
    pytester.makepyfile(test_train=TRAINING)
    seen = []
    for seed in "12":
        result = run("-v", f"--randomly-seed={seed}", alone=False, subprocess=True)
        result.assert_outcomes(passed=2, failed=1)
        seen.append({line.partition("loss ")[2] for line in result.outlines if line.startswith("trace ")})
    assert seen[0] == seen[1] != set()


def test_hypothesis_finds_our_fixtures_healthy(pytester, run):
    pytest.importorskip("hypothesis")
    pytester.makepyfile(
        test_given="""
        from hypothesis import HealthCheck, given, settings, strategies as st

        @settings(max_examples=3, deadline=None, suppress_health_check=[])
        @given(seed=st.integers(0, 99))
        def test_given(finetune, tiny_distilbert, toy_batches, seed):
            trace = finetune(tiny_distilbert, toy_batches(1, 4, seed=seed), steps=1, seed=seed)
            assert trace.recipe.seed == seed
        """
    )
    result = run("-v", alone=False, subprocess=True)
    result.assert_outcomes(passed=1)
    assert "HealthCheck" not in result.stdout.str()


def test_pytest_torch_shares_no_name_with_us(pytester, run):
    pytest.importorskip("pytest_torch")
    pytester.makepyfile("def test_it(): pass")
    result = run("--fixtures", "-v", alone=False, subprocess=True)
    lines = result.outlines
    for name in NAMES:
        assert [line for line in lines if line.startswith(f"{name} ")] == [
            line for line in lines if line.startswith(f"{name} ") and "pytest_ftcheck" in line
        ]
    assert any("pytest_torch" in line for line in lines)
    result = run("--ftcheck-steps=3", alone=False, subprocess=True)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["ftcheck: steps=3"])


def test_the_start_imports_nothing_heavy(pytester):
    pytester.makepyfile(test_empty="")
    code = f"""
import sys, pytest
status = pytest.main(["--collect-only", "-q", "-p", "pytest_ftcheck.plugin", "-p", "no:cacheprovider"])
print("HEAVY", sorted(set({HEAVY!r}) & set(sys.modules)), "pytest_ftcheck.plugin" in sys.modules)
"""
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "HEAVY [] True" in done.stdout


def test_running_other_peoples_tests_imports_nothing_heavy(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        test_it=f"""
        import sys

        def test_light(tmp_path):
            assert not set({HEAVY!r}) & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess("-p", "pytest_ftcheck.plugin", "-v").assert_outcomes(passed=1)
