"""A new check is its file, its page and its test: all else follows from what is declared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_ftcheck

ROOT = Path(pytest_ftcheck.__file__).parents[1]
CHECK = '''
"""Whether the run has a prime number of steps."""

from __future__ import annotations

from ...core.trace import Trace
from ...core.verdict import Verdict
from ...seeds.thresholds import Threshold
from ..spec import Fault, Rank, Stage, Symptom, check

STEPS_DIVISIBLE = Fault(
    "steps_divisible",
    Rank.OPTIMIZER + 999,
    "the number of steps is no prime",
    cause="steps= is {steps}",
    remedy="add a step",
    explains=(Symptom.STANDS_STILL,),
    confidence="certain",
)


@check(
    stage=Stage.OPTIMIZER,
    position=99,
    faults=(STEPS_DIVISIBLE,),
    thresholds=(Threshold("most", "at most", "number of divisors", 1.5, 100.0),),
    shows=(Symptom.OUTCOME,),
)
def check_steps_prime(trace: Trace, *, most: float = 2.0) -> Verdict:
    """The run has a prime number of steps.

    >>> from pytest_ftcheck import example_trace
    >>> check_steps_prime(example_trace()).fault
    'steps_divisible'
    """
    steps = len(trace.steps)
    divisors = sum(steps % n == 0 for n in range(1, steps + 1))
    if divisors <= most:
        return Verdict("steps_prime", "pass", f"{steps} is a prime.")
    return STEPS_DIVISIBLE.with_details(steps=steps).verdict("steps_prime", f"{steps} steps have {divisors} divisors.")
'''
SCRIPT = """
import json, sys
import pytest_ftcheck as f
from pytest_ftcheck.checks.catalogue import CHECKS, FAULTS, SPECS, explained_by
from pytest_ftcheck.reports.sarif import sarif
from pytest_ftcheck.reports.session_result import SessionResult
sys.path.insert(0, "docs/build")
import type_stub
trace = f.example_trace()
try:
    f.assert_steps_prime(trace)
except f.CheckFailed as failed:
    message = str(failed)
rules = json.loads(sarif(SessionResult()))["runs"][0]["tool"]["driver"]["rules"]
print(json.dumps({
    "file": f.__file__,
    "order": list(CHECKS)[:6],
    "public": [n for n in f.__all__ if "steps_prime" in n],
    "message": message,
    "cause": f.diagnose(trace).causes[0].title,
    "explains": sorted(explained_by(FAULTS["steps_divisible"])),
    "explained": "steps_prime" in explained_by(FAULTS["lr_zero"]),
    "thresholds": [t.argument for t in SPECS["steps_prime"].thresholds],
    "stub": [line for line in type_stub.stub().splitlines() if "def check_steps_prime" in line],
    "rules": [r["id"] for r in rules if "steps_prime" in r["id"]],
}))
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the package with one more file in it."""
    root = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "pytest_ftcheck", root / "pytest_ftcheck", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs" / "build", root / "docs" / "build", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "pytest_ftcheck/checks/optimizer/steps_prime.py").write_text(CHECK, encoding="utf-8")
    return root


def run(house, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(house), "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=house,
        env=environment,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_file_registers_a_check(house):
    found = json.loads(run(house, "-c", SCRIPT).splitlines()[-1])
    assert found.pop("file").startswith(str(house))
    assert found == {
        "order": [
            "optimizer_covers_model",
            "optimizer_settings",
            "lr_follows_schedule",
            "lr_sensible",
            "steps_prime",
            "head_init",
        ],
        "public": ["assert_steps_prime", "check_steps_prime"],
        "message": found["message"],
        "cause": "the number of steps is no prime",
        "explains": sorted({*found["explains"], "weights_move", "loss_decreases", "steps_prime"}),
        "explained": True,
        "thresholds": ["most"],
        "stub": ["def check_steps_prime(trace: Trace | Runs, *, most: float = 2.0) -> Verdict:"],
        "rules": found["rules"],
    }
    assert "cause: steps= is 20" in found["message"]
    assert len(found["rules"]) == 1


def test_the_command_knows_it(house):
    assert "steps_prime" in run(house, "-m", "pytest_ftcheck", "list")
    told = run(house, "-m", "pytest_ftcheck", "explain", "steps_divisible")
    assert "The number of steps is no prime" in told
    assert "steps_prime" in told
