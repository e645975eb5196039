"""``--ftcheck-baseline`` in real sessions: written, compared, several processes, any order, bad files."""

from __future__ import annotations

import json

import pytest

#: A module with a fixture of the module, a run of a test's own, two runs in one test, and parameters.
SUITE = """
import pytest, torch
from torch import nn
from pytest_ftcheck import assert_weights_move, finetune as plain, watch

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.classifier = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.classifier(self.base(x).tanh()) * SCALE

SCALE = 1.0
x = torch.randn(4, 8, 4, generator=torch.Generator().manual_seed(0))
ROWS = [(b, (b[:, 0] > 0).long()) for b in x]
SETTINGS = dict(steps=STEPS, lr=LR, probes=["loss", "metrics"])

@pytest.fixture(scope="module")
def trace(finetune):
    return finetune(Model, ROWS, **SETTINGS)

def test_a(trace):
    assert len(trace.losses)

def test_b(trace):
    assert len(trace.losses)

def test_twice(finetune):
    assert finetune(Model, ROWS, **SETTINGS)
    assert plain(Model, ROWS, **{**SETTINGS, "seed": 7})

@pytest.fixture(scope="module", params=[1e-2, 2e-2])
def rate(request):
    return request.param

@pytest.fixture(scope="module")
def other(finetune, rate):
    return finetune(Model, ROWS, **{**SETTINGS, "lr": rate})

def test_parameters(other):
    assert other

def test_nothing():
    pass
"""
KEYS = [
    "test_suite.py::other[rate=0.01]",
    "test_suite.py::other[rate=0.02]",
    "test_suite.py::test_twice",
    "test_suite.py::test_twice #2",
    "test_suite.py::trace",
]
BASELINE = "--ftcheck-baseline=b.json"
UPDATE, NEW = "--ftcheck-baseline-update", "--ftcheck-baseline-new-only"


@pytest.fixture(scope="module", autouse=True)
def imported():
    """A run in this process takes back what it imports, and torch cannot be imported twice: so it is all here before."""
    import torch
    from filelock import FileLock
    from scipy import stats
    from torch import nn

    from pytest_ftcheck import assert_weights_move, finetune

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    trace = finetune(model, [(torch.randn(8, 4), torch.arange(8) % 2)] * 8, steps=8, lr=1e-2, head="1")
    assert stats.t.isf(0.01, 4)
    assert FileLock
    assert_weights_move(trace)


@pytest.fixture
def suite(pytester):
    def suite(source=SUITE, lr=1e-2, steps=12, **more):
        for name, value in {"LR": lr, "STEPS": steps, "SCALE = 1.0": "SCALE = 1.0", **more}.items():
            source = source.replace(name, str(value))
        pytester.makepyfile(test_suite=source)

    return suite


#: The suite's baseline, made once: nothing in it hangs on the folder.
_MADE: dict[str, bytes] = {}


@pytest.fixture
def written(suite, run, pytester):
    """The suite, and its baseline."""
    suite()
    path = pytester.path / "b.json"
    if "suite" not in _MADE:
        run(BASELINE, UPDATE).assert_outcomes(passed=6)
        _MADE["suite"] = path.read_bytes()
    path.write_bytes(_MADE["suite"])
    return path


def runs_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["runs"]


# ---------------------------------------------------------------------- writing and comparing
def test_a_file_that_is_not_there_ends_the_session(suite, run, pytester):
    suite()
    for arguments in ((), ("-n2",)):
        result = run(BASELINE, *arguments, subprocess=bool(arguments))
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(
            ["ERROR: --ftcheck-baseline: there is no file b.json; --ftcheck-baseline-update writes it"]
        )
        assert "INTERNALERROR" not in result.stdout.str()
    assert run(BASELINE, "--collect-only").ret == 0
    assert not (pytester.path / "b.json").exists()


def test_update_writes_every_run_under_five_seeds(suite, run, pytester):
    suite()
    result = run(BASELINE, UPDATE)
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(
        ["ftcheck: writing runs to b.json, each under 5 seeds", "ftcheck baseline: b.json: 5 added"]
    )
    found = runs_of(pytester.path / "b.json")
    assert sorted(found) == KEYS
    assert {entry["seeds"] for entry in found.values()} == {5}
    assert all(measure["sd"] > 0 for measure in found[KEYS[-1]]["measures"].values())
    assert not [path for path in pytester.path.iterdir() if "lock" in path.name or ".tmp" in path.name]


def test_the_same_code_is_the_same_bit_for_bit(written, run):
    before = written.read_bytes()
    result = run(BASELINE, "-vv")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(
        [
            "pass baseline: test_suite.py::trace: bit-for-bit identical to the baseline run in b.json. -*",
            "ftcheck baseline: b.json, 5 runs: 5 identical bit for bit",
        ]
    )
    again = run(BASELINE, UPDATE)
    again.stdout.fnmatch_lines(["ftcheck baseline: b.json: 5 unchanged"])
    assert written.read_bytes() == before


def test_seeds_of_the_session_are_seeds_of_the_entry(suite, run, pytester):
    suite()
    run(BASELINE, UPDATE, "--ftcheck-seeds=6", "-k", "test_a")
    assert {entry["seeds"] for entry in runs_of(pytester.path / "b.json").values()} == {6}
    result = run(BASELINE, "--ftcheck-seeds=3", "-k", "test_a")
    result.stdout.fnmatch_lines(["ftcheck baseline: b.json, 1 run: 1 identical bit for bit"])


def test_a_regression_fails_one_test_a_run(written, run, suite):
    suite(SUITE.replace("self.base(x).tanh()", "self.base(x).tanh().detach() * 1e-3"))
    result = run(BASELINE, "-v")
    result.assert_outcomes(passed=2, failed=4)  # test_b uses the run that test_a is judged by
    result.stdout.fnmatch_lines(
        [
            "E*CheckFailed: baseline: FAIL. test_suite.py::trace: *the baseline's *(tolerance: *",
            "*cause: no gradient reaches the base: *",
            "*cause: almost no motion of base.*",
            "*do: if the change is intended, run --ftcheck-baseline-update*",
            "ftcheck baseline: b.json, 5 runs: 5 worse",
            "ftcheck baseline: worse: test_suite.py::other*",
        ]
    )
    text = result.stdout.str()
    assert "contextlib" not in text
    assert "_hooks.py" not in text


def test_the_failure_is_told_at_the_line_that_trains(written, run, suite, pytester):
    suite(SUITE.replace("self.base(x).tanh()", "self.base(x).tanh().detach() * 1e-3"))
    run(BASELINE, "--ftcheck-json=out.json", "--ftcheck-sarif=out.sarif", "-k", "test_a")
    case = next(c for c in json.loads((pytester.path / "out.json").read_text())["tests"] if "test_a" in c["nodeid"])
    (verdict,) = [v for v in case["verdicts"] if v["check"] == "baseline"]
    lines = (pytester.path / "test_suite.py").read_text().splitlines()
    assert "return finetune(Model, ROWS" in lines[verdict["line"] - 1]
    assert (verdict["status"], verdict["fault"], verdict["blocking"]) == ("fail", "regression", True)
    results = json.loads((pytester.path / "out.sarif").read_text())["runs"][0]["results"]
    assert [result["ruleId"] for result in results] == ["baseline"]


def test_a_harmless_change_is_within_chance(written, run, suite):
    """The same model whose random numbers come in another order."""
    suite(SUITE.replace("super().__init__()", "super().__init__(); torch.rand(1)"))
    result = run(BASELINE)
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["ftcheck baseline: b.json, 5 runs: 5 within tolerance"])


def test_another_recipe_is_said_and_not_compared(written, run, suite):
    suite(steps=13)
    result = run(BASELINE)
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(
        [
            "ftcheck baseline: b.json: 5 of 5 runs NOT COMPARED (5 of another setup)",
            "ftcheck baseline: not compared with b.json: the setup differs: recipe steps=12 -> steps=13. (*",
        ]
    )
    run(BASELINE, "-q").stdout.fnmatch_lines(
        ["ftcheck baseline: b.json: 5 of 5 runs NOT COMPARED (5 of another setup)"]
    )


# ---------------------------------------------------------------------- strict
STRICT = "--ftcheck-baseline-strict"


def test_strict_fails_another_recipe_once_a_run(written, run, suite):
    suite(steps=13)
    result = run(BASELINE, STRICT)
    result.assert_outcomes(passed=2, failed=4)
    result.stdout.fnmatch_lines(
        [
            "E*baseline: FAIL. test_suite.py::trace: not compared with b.json: the setup differs: recipe steps=12 -> steps=13.",
            "*cause: --ftcheck-baseline-strict fails every run that is not compared",
            "*do: if the change is intended, update the baseline with --ftcheck-baseline-update",
            "ftcheck baseline: b.json: 5 of 5 runs NOT COMPARED (5 of another setup)",
        ]
    )


@pytest.mark.parametrize("level", ["inconclusive", "fail"])
def test_strict_fails_a_run_that_is_not_in_the_file(written, run, suite, pytester, level):
    suite(SUITE + "\ndef test_new(finetune):\n    finetune(Model, ROWS, **SETTINGS)\n")
    pytester.makeini("[pytest]\nftcheck_baseline = b.json\nftcheck_baseline_strict = true")
    result = run(f"--ftcheck-fail-on={level}")
    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(
        ["E*baseline: FAIL. test_suite.py::test_new: not compared with b.json: it is not in the file."]
    )
    run(NEW).assert_outcomes(passed=7)
    run().assert_outcomes(passed=7)


def test_strict_fails_the_session_where_no_test_reports_the_run(written, run, suite):
    used = "@pytest.fixture\ndef used(trace):\n    return pytest.skip('not today')\n\ndef test_new(used):\n    pass\n"
    source = SUITE[: SUITE.index("def test_a")].replace("def trace(", "def other_trace(").replace("used", "used")
    suite(source + used.replace("trace", "other_trace"))
    result = run(BASELINE, STRICT)
    result.assert_outcomes(skipped=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ftcheck baseline: b.json: 1 of 1 run NOT COMPARED (1 not in the file)"])
    assert run(BASELINE).ret == 0


def test_strict_needs_a_file(suite, run):
    suite()
    result = run(STRICT)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --ftcheck-baseline-strict: needs --ftcheck-baseline=FILE"])


# ---------------------------------------------------------------------- other rows
HELD_OUT = (
    SUITE[: SUITE.index("def test_a")]
    .replace("SETTINGS = dict(", "SETTINGS = dict(eval_batches=EVAL, ")
    .replace(
        "SETTINGS =",
        "EVAL = [(b, (b[:, 0] > 0).long()) for b in torch.randn(2, 64, 4, generator=torch.Generator().manual_seed(9))]\nSETTINGS =",
    )
    + """
def test_a(trace):
    assert len(trace.losses)
"""
)


@pytest.fixture
def held_out(suite, run):
    """A run with held-out rows, in the file."""
    suite(HELD_OUT, lr=5e-2, steps=40)
    run(BASELINE, UPDATE).assert_outcomes(passed=1)


def test_metrics_are_compared_where_only_the_training_data_differ(held_out, run, suite, pytester):
    assert "evaluation" in runs_of(pytester.path / "b.json")["test_suite.py::trace"]["fingerprint"]
    other_rows = HELD_OUT.replace("manual_seed(0)", "manual_seed(1)")
    suite(other_rows, lr=5e-2, steps=40)
    result = run(BASELINE)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "ftcheck baseline: b.json, 1 run: 1 compared in part",
            "ftcheck baseline: only the metrics were compared, because the setup differs: data * (test_suite.py::trace)",
        ]
    )
    run(BASELINE, STRICT).assert_outcomes(failed=1)
    suite(other_rows.replace("(b[:, 0] > 0).long()", "(b[:, 0] < 0).long()", 1), lr=5e-2, steps=40)  # labels swapped
    result = run(BASELINE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*baseline: FAIL. test_suite.py::trace: metric.*"])


def test_metrics_are_not_compared_where_the_evaluation_rows_differ(held_out, run, suite):
    suite(HELD_OUT.replace("manual_seed(9)", "manual_seed(8)"), lr=5e-2, steps=40)
    result = run(BASELINE, "-vv")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["ftcheck baseline: the metrics were not compared, because the setup differs: evaluation *"]
    )


def test_other_data_and_another_model_are_said(written, run, suite):
    suite(SUITE.replace("manual_seed(0)", "manual_seed(1)").replace("nn.Linear(4, 4)", "nn.Linear(4, 4, bias=False)"))
    text = run(BASELINE).stdout.str()
    assert "5 of 5 runs NOT COMPARED" in text
    assert "the setup differs: data " in text
    assert "; model " in text


def test_an_old_torch_in_the_file_is_said(written, run):
    import torch

    written.write_text(written.read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "1.9.0"'))
    # what is identical bit for bit is so whatever wrote it
    lines = written.read_text().splitlines()
    written.write_text("\n".join('   "digest": "x",' if '"digest"' in line else line for line in lines))
    run(BASELINE).stdout.fnmatch_lines(
        [f"ftcheck baseline: *the setup differs: torch 1.9.0 -> {torch.__version__}. (*"]
    )


# ---------------------------------------------------------------------- parts of it
def test_new_only_adds_and_compares_the_rest(written, run, suite):
    before = runs_of(written)
    suite(SUITE + "\ndef test_new(finetune):\n    finetune(Model, ROWS, **SETTINGS)\n")
    result = run(BASELINE)
    result.stdout.fnmatch_lines(
        [
            "ftcheck baseline: b.json: 1 of 6 runs NOT COMPARED (1 not in the file); 5 identical bit for bit",
            "ftcheck baseline: not in the baseline file: test_suite.py::test_new; --ftcheck-baseline-new-only adds *",
        ]
    )
    result = run(BASELINE, NEW)
    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(
        ["ftcheck baseline: b.json: 1 added", "ftcheck baseline: b.json, 5 runs: 5 identical bit for bit"]
    )
    after = runs_of(written)
    assert sorted(after) == sorted([*KEYS, "test_suite.py::test_new"])
    assert {key: after[key] for key in KEYS} == before


def test_new_only_lets_a_regression_stand(written, run, suite):
    before = written.read_bytes()
    suite(SUITE.replace("self.base(x).tanh()", "self.base(x).tanh().detach() * 1e-3"))
    run(BASELINE, NEW, UPDATE).assert_outcomes(passed=2, failed=4)
    assert written.read_bytes() == before


def test_unused_entries_are_told_and_removed_by_the_update(written, run, suite):
    suite(SUITE.replace("def test_twice", "def renamed_twice"))
    result = run(BASELINE)
    result.stdout.fnmatch_lines(
        [
            "ftcheck baseline: in the baseline file, but made by no test: test_suite.py::test_twice, test_suite.py::test_twice #2; "
            "--ftcheck-baseline-update removes them"
        ]
    )
    run(BASELINE, NEW)
    assert "test_suite.py::test_twice" in runs_of(written)
    run(BASELINE, UPDATE).stdout.fnmatch_lines(
        ["ftcheck baseline: b.json: 2 removed because no test makes them (*), 3 unchanged"]
    )
    assert sorted(runs_of(written)) == [key for key in KEYS if "twice" not in key]


@pytest.mark.parametrize("arguments", [["-k", "test_a"], ["test_suite.py::test_a"], ["-x", "-k", "test_a or test_b"]])
def test_a_part_of_the_tests_makes_nothing_unused(written, run, arguments):
    result = run(BASELINE, UPDATE, *arguments)
    assert "removed" not in result.stdout.str()
    assert "made by no test" not in run(BASELINE, *arguments).stdout.str()
    assert sorted(runs_of(written)) == KEYS


def test_a_failing_test_makes_no_baseline(suite, run, pytester):
    suite(SUITE.replace("def test_b(trace):\n    assert", "def test_b(trace):\n    assert not"))
    result = run(BASELINE, UPDATE)
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(
        ["ftcheck: warning: baseline: test_suite.py::trace was not written: a test that uses it failed*"]
    )
    assert sorted(runs_of(pytester.path / "b.json")) == KEYS[:-1]


def test_a_test_that_was_stopped_makes_no_baseline(suite, run, pytester):
    suite(SUITE.replace("def test_a(trace):\n", "def test_a(trace):\n    raise KeyboardInterrupt\n"))
    result = run(BASELINE, UPDATE, ctrl_c=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["ftcheck: warning: baseline: test_suite.py::trace was not written: a test that uses it did not finish"]
    )
    assert not (pytester.path / "b.json").exists()


def test_a_loop_of_ones_own_is_compared_by_its_noise(suite, run, pytester):
    source = (
        SUITE[: SUITE.index("@pytest.fixture")]
        + """
def test_loop():
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with watch(model, optimizer) as w:
        for i in range(30):
            batch, labels = ROWS[i % 4]
            optimizer.zero_grad()
            w.loss(nn.functional.cross_entropy(model(batch), labels)).backward()
            optimizer.step()
"""
    )
    suite(source)
    run(BASELINE, UPDATE).assert_outcomes(passed=1)
    (entry,) = runs_of(pytester.path / "b.json").values()
    assert entry["seeds"] == 1
    assert {"gradient.base", "gradient.head", "seconds.step", "training_loss.drop"} == entry["measures"].keys()
    # apart from the one run there is, which says nothing of other seeds: advice
    suite(source.replace("lr=0.5", "lr=0.0001"))
    result = run(BASELINE)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "ftcheck baseline: b.json, 1 run: 1 outside the tolerance of a single run",
            "ftcheck baseline: test_suite.py::test_loop: gradient.head is *the baseline's *(tolerance: *",
        ]
    )
    result = run(BASELINE, "--ftcheck-fail-on=advice")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E*baseline: advice. test_suite.py::test_loop: *", "*cause: sum of the learning rates: 15 -> 0.00300*"]
    )
    # what no seed does
    suite(source.replace("self.base(x)", "self.base(x).detach()"))
    result = run(BASELINE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*baseline: FAIL. test_suite.py::test_loop: gradient.base is 0, *"])


def test_what_can_be_read_once_is_measured_once(suite, run, pytester):
    suite(
        SUITE.replace("return finetune(Model, ROWS, **SETTINGS)", "return finetune(Model, iter(ROWS * 3), **SETTINGS)")
    )
    run(BASELINE, UPDATE).stdout.fnmatch_lines(
        [
            "ftcheck baseline: test_suite.py::trace: it could not be repeated (batches is *), so its tolerance is the noise within one run"
        ]
    )
    assert runs_of(pytester.path / "b.json")["test_suite.py::trace"]["seeds"] == 1


def test_examples_of_hypothesis_are_no_runs_of_a_baseline(suite, run, pytester):
    source = (
        SUITE[: SUITE.index("@pytest.fixture")]
        + """
from hypothesis import given, settings, strategies as st

@settings(max_examples=3, deadline=None, database=None)
@given(seed=st.integers(0, 9))
def test_property(finetune, seed):
    finetune(Model, ROWS, **{**SETTINGS, "seed": seed})
"""
    )
    suite(source)
    run(BASELINE, UPDATE).stdout.fnmatch_lines(["ftcheck baseline: b.json: no run to write"])


# ---------------------------------------------------------------------- neighbours
def test_the_order_of_tests_changes_no_name(written, run, pytester):
    pytester.makeconftest("def pytest_collection_modifyitems(items):\n    items.reverse()\n")
    result = run(BASELINE)
    result.stdout.fnmatch_lines(["ftcheck baseline: b.json, 5 runs: 5 identical bit for bit"])


def test_workers_of_xdist_compare_and_the_controller_writes(suite, run, pytester):
    """A group of xdist is no part of a run's name, and what was not asked for is not missing."""
    pytest.importorskip("xdist")
    suite("import pytest\n" + SUITE.replace("def test_twice", "@pytest.mark.xdist_group('g')\ndef test_twice"))
    result = run(BASELINE, UPDATE, "-n2", "--dist=loadgroup", subprocess=True)
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["ftcheck baseline: b.json: 5 added"])
    assert sorted(runs_of(pytester.path / "b.json")) == KEYS
    result = run(BASELINE, "-n1", "-k", "test_a or test_twice", subprocess=True)
    result.stdout.fnmatch_lines(["ftcheck baseline: b.json, 3 runs: 3 identical bit for bit"])
    assert result.stdout.str().count("ftcheck baseline:") == 1
    assert "made by no test" not in result.stdout.str()


def test_a_rerun_does_not_turn_it_green(written, run, suite):
    pytest.importorskip("pytest_rerunfailures")
    suite(SUITE.replace("self.base(x).tanh()", "self.base(x).tanh().detach() * 1e-3"))
    result = run(BASELINE, "--reruns=1", "-k", "test_a or test_b")
    result.stdout.fnmatch_lines(["*1 failed, 1 passed*1 rerun*"])


def test_a_skip_leaves_the_run_to_the_next_test_and_an_expected_failure_too(written, run, suite):
    broken = SUITE.replace("self.base(x).tanh()", "self.base(x).tanh().detach() * 1e-3")
    suite(broken.replace("def test_a(trace):\n", "def test_a(trace):\n    pytest.skip('no')\n"))
    run(BASELINE, "-k", "test_a or test_b").assert_outcomes(skipped=1, failed=1)
    suite(broken.replace("def test_a", "@pytest.mark.xfail(reason='known')\ndef test_a"))
    run(BASELINE, "-k", "test_a or test_b").assert_outcomes(xpassed=1, failed=1)


def test_a_unittest_is_compared_too(run, suite):
    source = (
        SUITE[: SUITE.index("@pytest.fixture")]
        + """
import unittest

class TestIt(unittest.TestCase):
    def test_good(self):
        plain(Model, ROWS, **SETTINGS)

    def test_skip(self):
        plain(Model, ROWS, **SETTINGS)
        self.skipTest("no")
"""
    )
    suite(source)
    run(BASELINE, UPDATE).assert_outcomes(passed=1, skipped=1)
    suite(source.replace("self.base(x).tanh()", "self.base(x).tanh().detach() * 1e-3"))
    result = run(BASELINE)
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["E*baseline: FAIL. test_suite.py::TestIt::test_good: *"])


def test_the_checks_of_a_suite_share_their_subjects_run(run, pytester):
    suite = pytest.importorskip("pytest_ftcheck.pytest_plugin.suite")
    assert suite.parametrize_with_checks
    source = (
        SUITE[: SUITE.index("@pytest.fixture")]
        + """
from pytest_ftcheck.pytest_plugin.suite import parametrize_with_checks
from pytest_ftcheck.pytest_plugin.subject import Subject

@parametrize_with_checks([Subject("mine", Model, ROWS, **SETTINGS)], checks=["weights_move", "all_finite"])
def test_all(subject, check):
    check(subject)
"""
    )
    pytester.makepyfile(test_suite=source.replace("LR", "0.01").replace("STEPS", "12"))
    run(BASELINE, UPDATE).assert_outcomes(passed=2)
    assert list(runs_of(pytester.path / "b.json")) == ["test_suite.py::test_all[mine]"]
    result = run(BASELINE, "-v", "-k", "all_finite")
    result.stdout.fnmatch_lines(["ftcheck baseline: b.json, 1 run: 1 identical bit for bit"])


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([UPDATE], "--ftcheck-baseline-update: needs --ftcheck-baseline=FILE"),
        ([NEW], "--ftcheck-baseline-new-only: needs --ftcheck-baseline=FILE"),
        (["--ftcheck-baseline="], "--ftcheck-baseline=: expected a file name"),
        (["--ftcheck-baseline=."], "--ftcheck-baseline=.: expected a file name (it is a folder)"),
        (
            [BASELINE, UPDATE, "--ftcheck-calibrate=3"],
            "--ftcheck-baseline-update: cannot be combined with --ftcheck-calibrate*",
        ),
    ],
)
def test_a_bad_option_ends_the_session(run, arguments, message):
    result = run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}*"])


@pytest.mark.parametrize(
    ("flag", "name", "value"), [(UPDATE, "CI", "true"), (NEW, "BUILD_NUMBER", "0217"), (UPDATE, "TF_BUILD", "True")]
)
def test_a_ci_machine_writes_none(suite, run, monkeypatch, flag, name, value):
    suite()
    monkeypatch.setenv(name, value)
    result = run(BASELINE, flag)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {flag}: refused on a CI machine ({name}={value})*"])
    assert run("-k", "test_nothing").ret == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "it is not valid JSON*"),
        ('{"kind": "ftcheck-session", "schema": 1}', "it is not a baseline file*"),
        ('{"kind": "ftcheck-baseline", "schema": 99}', "it has schema 99*upgrade*"),
        ("<<<<<<< a\n=======\n>>>>>>> b\n", "it has unresolved merge conflicts*"),
    ],
)
@pytest.mark.parametrize("more", [[], [UPDATE]])
def test_a_bad_file_ends_the_session_and_stays_as_it_is(suite, run, pytester, text, said, more):
    suite()
    path = pytester.path / "b.json"
    path.write_text(text)
    result = run(BASELINE, *more)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --ftcheck-baseline: {path}: {said}"])
    assert path.read_text() == text


@pytest.mark.parametrize("how", [(), (UPDATE,)])
def test_a_file_that_cannot_be_there_is_refused_first(suite, run, pytester, how):
    suite()
    (pytester.path / "folder").write_text("a file")
    result = run("--ftcheck-baseline=folder/b.json", *how, "-k", "test_a")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --ftcheck-baseline=folder/b.json: expected a file name (Not a directory)"])


def test_a_full_disk_is_a_warning_and_the_verdicts_stand(suite, run, pytester):
    suite()
    pytester.makeconftest(
        "import errno, os\n"
        "import pytest_ftcheck.pytest_plugin.baseline.file as file\n"
        "def full(path, text):\n    raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "def pytest_configure():\n    file.write_atomically = full\n"
    )
    result = run(BASELINE, UPDATE, "-k", "test_a", subprocess=True)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "ftcheck: warning: baseline: b.json was not written: *No space left on device*. Test results and exit status are unaffected."
        ]
    )


def test_the_ini_key_is_relative_to_the_root(written, run, pytester):
    pytester.makeini("[pytest]\nftcheck_baseline = b.json")
    run("-k", "test_a").stdout.fnmatch_lines(["ftcheck baseline: b.json, 1 run: 1 identical bit for bit"])


def test_what_is_not_compared_is_said_even_in_a_quiet_session(written, run, suite):
    gap = "not compared with b.json: the setup differs: recipe steps=12 -> steps=13. ("
    suite(steps=13)
    assert f"ftcheck baseline: {gap}" in run(BASELINE, "-q", "-k", "test_a").stdout.str()
    suite(SUITE.replace("def trace(", "def other_trace(").replace("test_a(trace)", "test_a(other_trace)"))
    result = run(BASELINE, "-q", "-k", "test_a")
    result.stdout.fnmatch_lines(
        ["ftcheck baseline: not in the baseline file: test_suite.py::other_trace; --ftcheck-baseline-new-*"]
    )


def test_the_name_of_the_file_is_told_as_a_person_would_write_it(written, run, pytester, monkeypatch):
    (pytester.path / "below").mkdir()
    monkeypatch.chdir(pytester.path / "below")
    result = run(f"--rootdir={pytester.path}", "--ftcheck-baseline=../b.json", "../test_suite.py", "-k", "test_a")
    result.stdout.fnmatch_lines(["ftcheck baseline: b.json, 1 run: 1 identical bit for bit"])


def test_quiet_says_nothing_and_collecting_writes_nothing(written, run):
    assert "baseline" not in run(BASELINE, "-q").stdout.str()
    before = written.read_bytes()
    run(BASELINE, UPDATE, "--collect-only")
    assert written.read_bytes() == before


def test_without_the_option_nothing_is_loaded(run, pytester):
    pytester.makepyfile(
        test_it="import sys\ndef test_it():\n    assert not [m for m in sys.modules if '.pytest_plugin.baseline' in m]\n"
    )
    run(subprocess=True).assert_outcomes(passed=1)
