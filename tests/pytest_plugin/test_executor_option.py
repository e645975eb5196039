"""``--ftcheck-executor``: where it is named, when it is made and shut down, and that verdicts are those of a session without it."""

from __future__ import annotations

import re

import pytest

SUITE = """
import pytest, torch
from torch import nn
from pytest_ftcheck import assert_loss_decreases, assert_weights_move

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.classifier = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.classifier(self.base(x).tanh())

x = torch.randn(4, 8, 4, generator=torch.Generator().manual_seed(0))
ROWS = [(b, (b[:, 0] > 0).long()) for b in x]

def test_it_moves(finetune):
    assert_weights_move(finetune(Model, ROWS, steps=3, probes=["loss"], lr=1e-3))

def test_one_run(finetune):
    print("KIND", type(finetune(Model, ROWS, steps=3, probes=["loss"], seeds=None)).__name__)
"""

#: In the session's own thread, so that no process has to be started here; tests/seeds has real ones.
POOLS = """
from concurrent.futures import Future

class Serial:
    def __init__(self):
        print("MADE", flush=True)

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        print("SEED", flush=True)
        return future

    def shutdown(self, wait=True, cancel_futures=False):
        print("SHUT", flush=True)

number = 3
"""


@pytest.fixture(scope="module", autouse=True)
def imported():
    """A run in this process takes back what it imports, and torch cannot be imported twice: so it is all here before."""
    import cloudpickle  # noqa: F401
    import torch
    from scipy import stats
    from torch import nn

    from pytest_ftcheck import assert_weights_move, finetune

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    trace = finetune(model, [(torch.randn(8, 4), torch.arange(8) % 2)] * 8, steps=8, lr=1e-2, head="1", probes=["loss"])
    assert stats.binomtest(1, 2)
    assert_weights_move(trace)


@pytest.fixture
def project(pytester):
    pytester.makepyfile(test_suite=SUITE, pools=POOLS)
    return pytester


def test_one_executor_for_all_seeds_of_a_session(project, run):
    result = run("--ftcheck-seeds=auto", "--ftcheck-executor=pools:Serial", "-v", "-s")
    result.assert_outcomes(passed=2)
    printed = result.stdout.str()
    assert "ftcheck: seeds=auto, executor=pools:Serial" in printed
    assert [printed.count(word) for word in ("MADE", "SEED", "SHUT")] == [1, 3, 1]
    assert "KIND Trace" in printed
    plain = run("--ftcheck-seeds=auto", "-v").stdout.str()
    assert verdicts(printed) == verdicts(plain) != []


def verdicts(printed):
    return re.findall(r"^pass weights_move: .*$", printed, re.MULTILINE)


def test_without_seeds_none_is_made(project, run):
    printed = run("--ftcheck-executor=pools:Serial", "-s").stdout.str()
    assert "MADE" not in printed


def test_calibration_uses_it(project, run):
    (with_it, without) = (
        run("--ftcheck-calibrate=3", *more).stdout.str().partition("= ftcheck calibration")[2].splitlines()[1:12]
        for more in (["--ftcheck-executor=pools:Serial"], [])
    )
    assert with_it == without
    assert with_it[0].startswith("calibration: 6 runs of 2 fine-tunes")


def test_a_baseline_of_it_is_that_of_a_session_without(project, run, monkeypatch):
    for name in ("CI", "BUILD_NUMBER", "TF_BUILD"):
        monkeypatch.delenv(name, raising=False)
    given = ["--ftcheck-seeds=3", "--ftcheck-baseline=base.json"]
    run(*given, "--ftcheck-baseline-update").assert_outcomes(passed=2)
    result = run(*given, "--ftcheck-baseline-strict", "--ftcheck-executor=pools:Serial", "-v")
    result.assert_outcomes(passed=2)
    assert "identical" in result.stdout.str()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pools", "expected pkg.module:make, a function without arguments that makes an executor"),
        ("pools:", "expected pkg.module:make"),
        ("", "expected pkg.module:make"),
        ("nowhere:make", "there is no module 'nowhere'"),
        ("pools:nothing", "pools has no 'nothing'"),
        ("pools:number", "expected a function without arguments that makes an executor"),
    ],
)
def test_a_name_that_leads_nowhere_ends_the_session(project, run, name, message):
    result = run(f"--ftcheck-executor={name}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --ftcheck-executor={name}: {message}*"])


def test_the_key_of_the_configuration_file_is_named(project, run):
    project.makeini("[pytest]\nftcheck_executor = pools")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: ftcheck_executor = pools: expected pkg.module:make*"])


def test_without_cloudpickle_it_is_a_usage_error(project, run, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "cloudpickle" else found(name, *a)
    )
    result = run("--ftcheck-executor=pools:Serial")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --ftcheck-executor=pools:Serial: needs cloudpickle: pip install 'pytest-ftcheck*executor*'"]
    )
