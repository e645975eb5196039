"""The hypothesis profile is there without anybody registering it, costs nothing otherwise, and our fixtures pass its health checks."""

from __future__ import annotations

import subprocess
import sys

import pytest

SHOW = """
from hypothesis import given, settings, strategies as st

def test_settings():
    s = settings.default
    print("SETTINGS", s.deadline, s.max_examples, sorted(p.name for p in s.phases), s.print_blob, len(s.suppress_health_check))
"""

FIXTURES = """
import pytest
from hypothesis import given, settings, strategies as st
from pytest_ftcheck import assert_grads_nonzero, assert_weights_move
from pytest_ftcheck.strategies import batches, recipes, seeds

@settings(max_examples=3)
@given(seed=seeds(), lr=st.sampled_from([1e-3, 3e-3]))
def test_function(finetune, tiny_distilbert, toy_batches, seed, lr):
    assert_grads_nonzero(finetune(tiny_distilbert, toy_batches(4), steps=2, lr=lr, seed=seed, probes=[]))

class TestInAClass:
    @settings(max_examples=2)
    @given(recipe=recipes(steps=2), rows=batches(layout="tuple"))
    def test_method(self, finetune, tiny_distilbert, recipe, rows):
        assert finetune(tiny_distilbert, rows, recipe, probes=[]).steps

@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@settings(max_examples=2)
@given(seed=seeds())
def test_parametrized(finetune, tiny_distilbert, toy_batches, optimizer, seed):
    assert finetune(tiny_distilbert, toy_batches(2), steps=2, optimizer=optimizer, seed=seed, probes=[]).steps
"""


@pytest.fixture
def with_hypothesis(pytester):
    """Run pytest with hypothesis' own plugin, in a fresh process, because profiles are global."""

    def run(*arguments):
        others = (f"-pno:{name}" for name in ("randomly", "pytest_torch", "anyio", "cacheprovider"))
        return pytester.runpytest_subprocess(*others, *arguments)

    return run


def test_the_profile_is_there_for_the_asking_and_our_fixtures_pass_its_health_checks(
    pytester, with_hypothesis, monkeypatch
):
    monkeypatch.delenv("CI", raising=False)
    pytester.makepyfile(test_show=SHOW, test_it=FIXTURES)
    result = with_hypothesis("--hypothesis-profile=ftcheck", "-s", "-Werror::hypothesis.errors.HypothesisWarning")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines("*SETTINGS None 25 *'generate'*'shrink', 'target'* True 0")
    assert "explain" not in next(line for line in result.outlines if "SETTINGS" in line)


def test_nobody_gets_it_unasked(pytester, with_hypothesis, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    pytester.makepyfile(test_it=SHOW)
    with_hypothesis("-s").stdout.fnmatch_lines(["*SETTINGS 0:00:00.200000 100 *"])


def test_in_ci_it_stays_reproducible():
    code = "from hypothesis import settings; print(settings.get_profile('ftcheck').derandomize)"
    for variables, derandomized in (({"CI": "true"}, "True"), ({}, "False")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PATH": "", **variables}
        )
        assert done.stdout.strip() == derandomized


def test_a_run_without_hypothesis_never_loads_it(pytester, with_hypothesis):
    pytester.makepyfile(test_it="import sys\ndef test_it(tiny_distilbert): assert 'hypothesis' not in sys.modules")
    with_hypothesis().assert_outcomes(passed=1)
