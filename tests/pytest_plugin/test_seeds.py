"""``--ftcheck-seeds`` and ``--ftcheck-calibrate``: settings, what the fixture returns, what is printed, several processes."""

from __future__ import annotations

import pytest

SUITE = """
import pytest, torch
from torch import nn
from pytest_ftcheck import assert_loss_decreases, assert_weights_move, check_grads_nonzero

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.classifier = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.classifier(self.base(x).tanh())

x = torch.randn(4, 8, 4, generator=torch.Generator().manual_seed(0))
ROWS = [(b, (b[:, 0] > 0).long()) for b in x]

@pytest.fixture(scope="module")
def trace(finetune):
    return finetune(Model, ROWS, steps=3, probes=["loss"], lr=LR)

def test_it_moves(trace):
    assert_weights_move(trace)

def test_it_gets_gradients(trace):
    assert check_grads_nonzero(trace).ok

def test_a_trace_is_read(trace):
    assert len(trace.losses) == 3

def test_one_run(finetune):
    trace = finetune(Model, ROWS, steps=3, probes=["loss"], seeds=None)
    print("KIND", type(trace).__name__)
"""


@pytest.fixture(scope="module", autouse=True)
def imported():
    """A run in this process takes back what it imports, and torch cannot be imported twice: so it is all here before."""
    import torch
    from scipy import stats
    from torch import nn

    from pytest_ftcheck import assert_loss_decreases, assert_weights_move, finetune

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    trace = finetune(model, [(torch.randn(8, 4), torch.arange(8) % 2)] * 8, steps=8, lr=1e-2, head="1", probes=["loss"])
    assert stats.binomtest(1, 2)
    assert_weights_move(trace)
    assert_loss_decreases(trace, alpha=0.5)


@pytest.fixture
def suite(pytester):
    def suite(lr=1e-3):
        pytester.makepyfile(test_suite=SUITE.replace("LR)", f"{lr})"))

    return suite


def test_the_option_goes_over_seeds(suite, run):
    suite()
    result = run("--ftcheck-seeds=auto", "-v", "-s")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            "ftcheck: seeds=auto",
            "*KIND Trace*",
            "pass weights_move: 3 of 3 seeds pass; nearest to its limit, seed * - test_suite.py::test_it_moves",
        ]
    )


def test_without_it_there_is_one_run(suite, run):
    suite()
    result = run("-v")
    result.assert_outcomes(passed=4)
    assert "seeds pass" not in result.stdout.str()


def test_one_seed_on_the_command_line_goes_before_the_file(pytester, suite, run):
    suite()
    pytester.makeini("[pytest]\nftcheck_seeds = 3")
    assert "weights_move: 3 of 3 seeds pass" in run("-v").stdout.str()
    assert "seeds pass" not in run("-v", "--ftcheck-seeds=1").stdout.str()


def test_a_failure_says_how_many_and_not_to_run_again(suite, run):
    suite(lr=0.0)
    result = run("--ftcheck-seeds=3")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*weights_move: FAIL. 3 of 3 seeds fail; seed 0: 4 of 4 tensors did not move*",
            "deterministic: do not re-run; all random states start from the seeds 0 to 2*",
        ]
    )
    result = run("--ftcheck-seeds=3", "-v")
    result.stdout.fnmatch_lines(["E*with 95 % confidence from 3 seeds: this passes on at most 63 % of all seeds*"])


def test_a_budget_ends_undecided_and_red(suite, run):
    suite()
    result = run("--ftcheck-seeds=auto", "--ftcheck-max-seconds=0.001")
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(["E*weights_move: INCONCLUSIVE. 1 of 1 seed passes, which is inconclusive*"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--ftcheck-seeds=2", "--ftcheck-seeds=2: expected auto, 1, or a whole number >= 3"),
        ("--ftcheck-seeds=many", "--ftcheck-seeds=many: expected auto, 1"),
        ("--ftcheck-seeds=", "--ftcheck-seeds=: expected auto, 1"),
        ("--ftcheck-seeds=3.0", "--ftcheck-seeds=3.0: expected auto, 1"),
        ("--ftcheck-calibrate=2", "--ftcheck-calibrate=2: expected a whole number >= 3"),
        ("--ftcheck-calibrate=auto", "--ftcheck-calibrate=auto: expected a whole number >= 3"),
        ("--ftcheck-calibrate=-5", "--ftcheck-calibrate=-5: expected a whole number >= 3"),
    ],
)
def test_a_bad_option_ends_the_session(run, argument, message):
    result = run(argument)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}*"])


@pytest.mark.parametrize("text", ["[tool.pytest.ini_options]\nftcheck_seeds = 'two'", "[pytest]\nftcheck_seeds = 2"])
def test_a_bad_key_ends_the_session(pytester, run, text):
    pytester.path.joinpath("pytest.ini" if text.startswith("[pytest]") else "pyproject.toml").write_text(text)
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: ftcheck_seeds = *: expected auto, 1, or a whole number >= 3"])


def test_native_toml_takes_a_text(pytester, suite, run):
    if pytest.version_tuple < (9,):
        pytest.skip("pytest 9 reads [tool.pytest]")
    suite()
    pytester.path.joinpath("pyproject.toml").write_text("[tool.pytest]\nftcheck_seeds = '3'")
    assert "weights_move: 3 of 3 seeds pass" in run("-v").stdout.str()
    pytester.path.joinpath("pyproject.toml").write_text("[tool.pytest]\nftcheck_seeds = 3")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: ftcheck_seeds: expected a text*"])


# ---------------------------------------------------------------------- calibration
def test_calibration_fails_nothing_and_prints_every_statistic(suite, run):
    suite(lr=0.0)
    result = run("--ftcheck-calibrate=4")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            "ftcheck: calibrating, so assertions on fine-tunes do not raise",
            "*= ftcheck calibration =*",
            "calibration: 8 runs of 2 fine-tunes, assumed to be healthy. No assertion on them raised*",
            "false alarms (exact 95 % interval):",
            "*check*runs*fail*inconclusive*false alarms*",
            # one fine-tune with a learning rate of zero, one with the default
            "  weights_move *8 *4 *50 % (16 % to 84 %)",
            "statistics beside their thresholds*",
            "  weights_move *least displacement*4 *min_budget >= 0.00100 *",
            "  suggested: the extreme run. At most * of other healthy runs lie beyond the extreme of *",
        ]
    )


def test_calibration_prints_even_when_quiet(suite, run):
    suite()
    assert "ftcheck calibration" in run("-q", "--ftcheck-calibrate=3").stdout.str()


def test_calibration_without_a_fine_tune_says_so(pytester, run):
    pytester.makepyfile("def test_it(): pass")
    run("--ftcheck-calibrate=3").stdout.fnmatch_lines(["calibration: the fixture finetune made no fine-tune"])


def test_calibration_counts_a_run_once_over_processes(suite, run):
    pytest.importorskip("xdist")
    suite()
    result = run("--ftcheck-calibrate=3", "-n2", "--dist=load", subprocess=True)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["calibration: 6 runs of 2 fine-tunes*"])
    assert result.stdout.str().count("ftcheck calibration") == 1


def test_seeds_over_processes(suite, run):
    pytest.importorskip("xdist")
    suite(lr=0.0)
    result = run("--ftcheck-seeds=auto", "-n2", "--dist=loadfile", subprocess=True)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["fail weights_move: 2 of 2 seeds fail; seed 0: *"])
