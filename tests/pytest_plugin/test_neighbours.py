"""Beside other plugins: nothing clashes, nothing is lost, nothing is reported twice."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from pytest_ftcheck.checks.catalogue import CHECKS
from pytest_ftcheck.pytest_plugin.fixtures import NAMES

TRAINING = """
import pytest
from light import Light
from pytest_ftcheck import assert_weights_move

@pytest.fixture(scope="module")
def trace(finetune, toy_batches):
    return finetune(Light, toy_batches(4, 8), steps=4, lr=1e-3)

@pytest.mark.parametrize("part", ["head", "base"])
def test_moves(trace, part):
    assert_weights_move(trace, part=part)

def test_does_not_move(finetune, toy_batches):
    assert_weights_move(finetune(Light, toy_batches(4, 8), steps=4, lr=0.0))
"""

# found and not imported: it imports numpy, which pytester would take back, and numpy cannot be imported twice
needs_randomly = pytest.mark.skipif(
    importlib.util.find_spec("pytest_randomly") is None, reason="pytest-randomly is not installed"
)

HEAVY = ("torch", "transformers", "numpy", "scipy", "hypothesis", "tensorboard", "matplotlib")


@needs_randomly
def test_randomly_changes_the_order_and_nothing_else(pytester, run, trains):
    pytester.makepyfile(test_train=TRAINING)
    seen = []
    for seed in "12":
        result = run("-v", f"--randomly-seed={seed}", alone=False)
        result.assert_outcomes(passed=2, failed=1)
        seen.append({line[line.index("->") - 8 :] for line in result.outlines if "->" in line and "█" in line})
    assert seen[0] == seen[1] != set()


@needs_randomly
def test_randomly_reseeds_torch_where_it_is_loaded(pytester, run, trains):
    pytester.makepyfile(
        """
        import random
        import pytest
        import torch

        SEEN = {}

        @pytest.fixture(scope="module", autouse=True)
        def drawn_before():
            torch.rand(7)

        @pytest.mark.parametrize("turn", [1, 2])
        def test_draw(turn):
            print("DRAWN", turn, torch.rand(1).item(), random.random())
        """
    )
    drawn = []
    for _ in range(2):
        result = run("-s", "--randomly-seed=5", "--randomly-dont-reorganize", alone=False)
        drawn.append([line[line.index("DRAWN") :] for line in result.outlines if "DRAWN" in line])
    assert drawn[0] == drawn[1] != []
    other = run("-s", "--randomly-seed=6", "--randomly-dont-reorganize", alone=False)
    assert not set(drawn[0]) & {line[line.index("DRAWN") :] for line in other.outlines if "DRAWN" in line}


def test_reseeding_imports_nothing():
    code = "import sys; from pytest_ftcheck.core.seeding import reseed; reseed(2**70); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 + 5])
def test_reseeding_draws_what_torchs_own_seed_draws(seed):
    import torch

    from pytest_ftcheck.core.seeding import reseed

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        theirs = torch.rand(3)
        reseed(seed)
        assert torch.equal(torch.rand(3), theirs)


def test_reseeding_takes_seeds_of_any_size():
    import torch

    from pytest_ftcheck.core.seeding import reseed

    with torch.random.fork_rng(devices=[]):
        drawn = []
        for seed in (3, 3 + 2**64, 4):
            reseed(seed)
            drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[1] != drawn[2]


# ---------------------------------------------------------------------- pytest-xdist
#: Fine-tunes are counted in a file: workers are other processes.
COUNTED = """
from pathlib import Path
import pytest
from light import Light
from pytest_ftcheck import assert_weights_move, assert_all_finite

@pytest.fixture(scope="module")
def trace(finetune, toy_batches):
    with Path("runs.txt").open("a") as file:
        file.write("x")
    return finetune(Light, toy_batches(4, 8), steps=4, lr=1e-3)

def test_weights(trace):
    assert_weights_move(trace)

def test_finite(trace):
    assert_all_finite(trace)
"""
THREADS = """
import os
import pytest
import torch
from torch import nn

@pytest.mark.parametrize("turn", [1, 2])
def test_threads(finetune, turn):
    torch.set_num_threads(4 * (os.cpu_count() or 1))
    before = torch.get_num_threads()
    large = lambda: nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 2))
    torch.manual_seed(0)
    batch = torch.randn(4, 1000), torch.tensor([0, 1, 0, 1])
    trace = finetune(large, [batch], steps=1, head="2", probes=())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert int(trace.environment["threads"]) == max(1, cores // 2)
    assert torch.get_num_threads() == before
"""


def test_xdist_carries_verdicts_shares_the_processors_and_fine_tunes_once_a_module(pytester, run):
    """One session for the three: each starts two workers, and each of these imports torch."""
    pytest.importorskip("xdist")
    pytester.makepyfile(test_a=COUNTED, test_b=COUNTED, test_threads=THREADS, test_train=TRAINING)
    result = run("-n2", "--dist=loadfile", "-v", subprocess=True)
    result.assert_outcomes(passed=8, failed=1)
    text = result.stdout.str()
    for name in ("moves?head?", "moves?base?"):
        result.stdout.fnmatch_lines([f"pass weights_move: * - test_train.py::test_{name}"])
    result.stdout.fnmatch_lines(["fail weights_move: *", "     *test_train.py::test_does_not_move"])
    assert text.count("= ftcheck =") == 1
    assert "INTERNALERROR" not in text
    # the failure itself: once, at the user's line
    assert text.count("E       pytest_ftcheck.CheckFailed: weights_move: FAIL. ") == 1
    assert "\ntest_train.py:14: CheckFailed" in text
    assert (pytester.path / "runs.txt").read_text() == "xx"
    assert len([line for line in result.outlines if "->" in line and "█" in line]) == 4


# ---------------------------------------------------------------------- pytest-rerunfailures
def test_a_rerun_comes_to_the_same_verdict_and_says_so(pytester, run, trains):
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(test_train=TRAINING)
    result = run("--reruns=2", "-v", "-k", "does_not_move")
    assert result.parseoutcomes() == {"failed": 1, "rerun": 2, "deselected": 2}
    result.stdout.fnmatch_lines(
        ["*note: deterministic: do not re-run; *", "fail (run again) weights_move: * - test_train.py::test_does_not_move",
         "ftcheck: test_train.py::test_does_not_move ran 3 times with the same verdict: rerunning does not help; "
         "--rerun-except=CheckFailed excludes it"]
    )  # fmt: skip
    assert result.stdout.str().count(" ran 3 times") == 1


def test_what_the_message_advises_works(pytester, run, trains):
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(test_train=TRAINING)
    result = run("--reruns=2", "--rerun-except=CheckFailed", "-k", "does_not_move")
    assert result.parseoutcomes() == {"failed": 1, "deselected": 2}
    assert " ran " not in result.stdout.str()


def test_a_verdict_that_changes_is_reported(pytester, run):
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        test_it="""
        from judging import judge
        times = []
        def test_it():
            times.append(1)
            judge("fail" if len(times) == 1 else "pass")
        """
    )
    result = run("--reruns=2")
    assert result.parseoutcomes() == {"passed": 1, "rerun": 1}
    result.stdout.fnmatch_lines(
        [
            "ftcheck: test_it.py::test_it ran 2 times and its verdict changed (fail, then pass)*; a pass after a failure is no pass"
        ]
    )
    assert " ran " not in run("--reruns=2", "-q").stdout.str()


def test_a_suite_is_not_fine_tuned_again_for_a_rerun(pytester, run, trains):
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        subjects="""
        from pathlib import Path
        from light import Light
        from pytest_ftcheck import toy_batches

        def made():
            with Path("runs.txt").open("a") as file:
                file.write("x")
            return {"model": Light, "batches": toy_batches(4, 8), "lr": 0.0, "steps": 4}

        def broken():
            with Path("broken.txt").open("a") as file:
                file.write("x")
            raise OSError("the network is down")
        """
    )
    args = ("--ftcheck-model=subjects:made", "--ftcheck-model=subjects:broken", "-k", "weights_move or all_finite")
    result = run("--reruns=1", *args)
    assert result.parseoutcomes() == {"failed": 3, "passed": 1, "rerun": 3, "deselected": 2 * (len(CHECKS) - 2)}
    assert (pytester.path / "runs.txt").read_text() == "x"
    # what the network did may be other next time: the item that met it tries again
    assert (pytester.path / "broken.txt").read_text() == "xx"


# ---------------------------------------------------------------------- pytest-timeout
SLOW = """
import time
import pytest
from torch import nn
import torch
from pytest_ftcheck import Subject, finetune as train, parametrize_with_checks

torch.manual_seed(0)  # a process of its own: torch draws another seed in each
BATCHES = [(torch.randn(8, 4), torch.arange(8) % 2)] * 8

def slow(model, batch):
    time.sleep(0.05)
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def make():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

# what is imported at the first run is imported here, for it may take longer than the timeout
train(make, BATCHES, steps=2, head="1", probes=())

@pytest.mark.timeout(5, method="signal")
def test_too_long(finetune):
    finetune(make, BATCHES, steps=100_000, head="1", loss_fn=slow, probes=())

@pytest.mark.timeout(5, method="signal")
@parametrize_with_checks([Subject("slow", make, BATCHES, steps=100_000, head="1", loss_fn=slow, probes=())],
                         checks=["weights_move", "all_finite"])
def test_suite(subject, check):
    check(subject)

def test_the_next_is_as_if_nothing_had_been(finetune):
    before = torch.get_rng_state()
    assert len(finetune(make, BATCHES, steps=3, head="1", probes=()).steps) == 3
    assert torch.equal(torch.get_rng_state(), before)
"""


def test_a_timeout_says_how_far_the_run_got(pytester, run):
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(test_slow=SLOW)
    result = run("-pno:randomly", subprocess=True)
    result.assert_outcomes(passed=1, failed=3)
    text = result.stdout.str()
    # the second check of the suite does not wait for another timeout
    assert text.count("the fine-tune stopped after ") == 2
    result.stdout.fnmatch_lines(
        ["*- ftcheck -*", "the fine-tune stopped after [1-9]*/100,000 steps (* s): Failed: Timeout (>5.0s)*",
         "last step: loss 0.* (first step: 0.*), learning rate *, gradient norm *"]
    )  # fmt: skip
    assert "slow was not fine-tuned: Failed: Timeout (>5.0s) from pytest-timeout" in text


def test_an_error_in_the_users_code_tells_it_too(pytester, run, trains):
    pytester.makepyfile(
        """
        import torch
        from torch import nn

        def test_it(finetune):
            torch.manual_seed(0)
            calls = []
            def loss_fn(model, batch):
                calls.append(1)
                if len(calls) == 9:
                    raise KeyError("the ninth batch")
                return nn.functional.cross_entropy(model(batch[0]), batch[1])
            batches = [(torch.randn(8, 4), torch.arange(8) % 2)]
            model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
            try:
                finetune(model, batches, steps=20, head="1", loss_fn=loss_fn, probes=())
            except KeyError as error:
                raise RuntimeError("wrapped") from error
        """
    )
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["the fine-tune stopped after [1-9]/20 steps (* s): KeyError: 'the ninth batch'"])


# ---------------------------------------------------------------------- others
def test_coverage_sees_the_users_code(pytester, run):
    pytest.importorskip("pytest_cov")
    pytester.makepyfile(
        mine="""
        from torch import nn

        def make():
            return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

        def never():
            return 1
        """,
        test_it="""
        import torch
        from mine import make
        from pytest_ftcheck import assert_weights_move

        def test_it(finetune):
            torch.manual_seed(0)
            batches = [(torch.randn(8, 4), torch.arange(8) % 2)]
            assert_weights_move(finetune(make, batches, steps=3, lr=1e-2, head="1", probes=()))
        """,
    )
    result = run("--cov=mine", "--cov-report=term-missing", "-v", subprocess=True)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["mine.py * 5 * 1 * 80% * 7"])
    result.stdout.fnmatch_lines(["pass weights_move: * - test_it.py::test_it"])
    for word in ("CoverageWarning", "INTERNALERROR"):
        assert word not in result.stdout.str() + result.stderr.str()


def test_asyncio_tests_are_judged_like_others(pytester, run):
    pytest.importorskip("pytest_asyncio")
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nasyncio_mode = auto")
    pytester.makepyfile(
        """
        import asyncio
        from judging import judge, trace

        async def test_in_a_loop():
            await asyncio.sleep(0)
            judge("pass")

        async def test_in_a_thread_and_a_task():
            await asyncio.gather(asyncio.to_thread(judge, "pass"), asyncio.create_task(asyncio.sleep(0)))

        async def test_red():
            await asyncio.sleep(0)
            judge("fail")
        """
    )
    # the plugin is told of by its entry point
    result = pytester.runpytest_subprocess("-v", "-pno:randomly", "-pno:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    for name in ("in_a_loop", "in_a_thread_and_a_task"):
        result.stdout.fnmatch_lines([f"pass weights_move: * - *::test_{name}"])
    result.stdout.fnmatch_lines(["fail weights_move: *", "     *::test_red"])


def test_unittest_cases_are_judged_like_others(pytester, run):
    pytester.makepyfile(
        test_cases="""
        import unittest
        from judging import judge, trace

        class TestIt(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                judge("pass", "in setUpClass")

            def setUp(self):
                trace()

            def test_green(self):
                judge("pass")

            def test_red(self):
                judge("fail")

            @unittest.expectedFailure
            def test_expected(self):
                judge("fail")

            def test_subtests(self):
                for i in range(2):
                    with self.subTest(i=i):
                        judge("pass", f"{i} of 2")
        """
    )
    result = run("-v")
    outcomes = result.parseoutcomes()
    assert (outcomes["failed"], outcomes["xfailed"]) == (1, 1)
    text = result.stdout.str()
    assert "fail weights_move: 1 of 4 head tensors moved - test_cases.py::TestIt::test_red" in text
    assert "fail (expected) weights_move: 1 of 4 head tensors moved - test_cases.py::TestIt::test_expected" in text
    for i in range(2):  # a subtest has a report of its own
        assert f"pass weights_move: {i} of 2 - test_cases.py::TestIt::test_subtests" in text
    assert text.count("= ftcheck =") == 1


def test_hypothesis_finds_our_fixtures_healthy(pytester, run, trains):
    pytest.importorskip("hypothesis")
    pytester.makepyfile(
        test_given="""
        from hypothesis import given, settings, strategies as st

        @settings(max_examples=3, deadline=None, suppress_health_check=[])
        @given(seed=st.integers(0, 99))
        def test_given(finetune, tiny_distilbert, toy_batches, seed):
            trace = finetune(tiny_distilbert, toy_batches(1, 4, seed=seed), steps=1, seed=seed)
            assert trace.recipe.seed == seed
        """
    )
    # A failed health check fails the test. Its name alone says nothing: where `CI` is set,
    # Hypothesis's own header prints its profile, and that names one.
    result = run("-v", alone=False)
    result.assert_outcomes(passed=1)
    assert "FailedHealthCheck" not in result.stdout.str()


def test_pytest_torch_shares_no_name_with_us(pytester, run, trains):
    pytest.importorskip("pytest_torch")
    pytester.makepyfile("def test_it(): pass")
    result = run("--fixtures", "-v", alone=False)
    lines = result.outlines
    for name in NAMES:
        assert [line for line in lines if line.startswith(f"{name} ")] == [
            line for line in lines if line.startswith(f"{name} ") and "pytest_ftcheck" in line
        ]
    assert any("pytest_torch" in line for line in lines)
    result = run("--ftcheck-steps=3", alone=False)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["ftcheck: steps=3"])


def test_the_start_imports_nothing_heavy(pytester):
    pytester.makepyfile(test_empty="")
    code = f"""
import sys, pytest
status = pytest.main(["--collect-only", "-q", "-p", "pytest_ftcheck.pytest_plugin.plugin", "-p", "no:cacheprovider"])
print("HEAVY", sorted(set({HEAVY!r}) & set(sys.modules)), "pytest_ftcheck.pytest_plugin.plugin" in sys.modules)
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
    pytester.runpytest_subprocess("-p", "pytest_ftcheck.pytest_plugin.plugin", "-v").assert_outcomes(passed=1)
