"""The page *Gate merges*: its workflow files are valid, and every command in them works on the project that it describes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

PAGE = (Path(__file__).parents[2] / "docs/how-to/gate-merges.md").read_text(encoding="utf-8")
WORKFLOWS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
#: File -> what the page says is in it.
TESTS = dict(re.findall(r"`(tests/\S+\.py)`, for [^\n]*:\n\n```python\n(.*?)```", PAGE, re.DOTALL))

pytestmark = pytest.mark.usefixtures("trains")


@pytest.fixture
def project(pytester, monkeypatch):
    for variable in ("GITHUB_WORKSPACE", "CI_PROJECT_DIR"):
        monkeypatch.delenv(variable, raising=False)
    for name, text in TESTS.items():
        path = pytester.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return pytester.path


def commands(lines, nightly):
    """The arguments of each call of pytest, as a shell would make them."""
    calls = [line.replace("$NIGHTLY", nightly) for line in lines if line.startswith("pytest ")]
    assert calls
    return [shlex.split(call)[1:] for call in calls]


def test_the_page_has_what_it_promises():
    github, gitlab, hook = WORKFLOWS
    assert github[True] == {"pull_request": None, "push": {"branches": ["main"]}, "schedule": [{"cron": "17 3 * * *"}]}
    assert github["permissions"]["security-events"] == "write"
    assert gitlab["learns"]["artifacts"]["reports"]["codequality"] == "gl-code-quality.json"
    assert hook["repos"][0]["hooks"][0]["stages"] == ["pre-push"]
    assert sorted(TESTS) == ["tests/learning/test_classifier.py", "tests/nightly/test_real_base.py"]


def test_github(project, run):
    (job,) = WORKFLOWS[0]["jobs"].values()
    (arguments,) = commands([step.get("run", "") for step in job["steps"]], "")
    run(*arguments).assert_outcomes(passed=1)
    uploaded = next(step["with"]["sarif_file"] for step in job["steps"] if "upload-sarif" in step.get("uses", ""))
    assert (project / uploaded).exists()
    assert (project / "junit.xml").exists()


def test_gitlab_and_at_night(project, run):
    job = WORKFLOWS[1]["learns"]
    nightly = job["rules"][0]["variables"]["NIGHTLY"]
    assert f"'{nightly}'" in WORKFLOWS[0]["jobs"]["learns"]["env"]["NIGHTLY"]
    (arguments,) = commands(job["script"], nightly)
    run(*arguments).assert_outcomes(passed=3)
    assert all((project / file).exists() for file in job["artifacts"]["reports"].values())


def test_before_a_push(project, run):
    (arguments,) = commands([WORKFLOWS[2]["repos"][0]["hooks"][0]["entry"]], "")
    run(*arguments).assert_outcomes(passed=1)


def test_on_a_red_repository(project, run):
    """Reasons, then the baseline; then what is allowed cannot get worse unseen."""
    update = re.search(r"`pytest (tests/learning --ftcheck-baseline=\S+ --ftcheck-baseline-update)`", PAGE)
    compare = re.search(r"`(--ftcheck-baseline=\S+ --ftcheck-baseline-strict)` to the command in CI", PAGE)
    assert update
    assert compare
    test = project / "tests/learning/test_classifier.py"
    # fewer steps than on the page, for six sessions train, two of them under several seeds
    test.write_text(test.read_text().replace("lr=1e-3, steps=40", "lr=1e-3, optimizer='sgd', steps=16"))
    run("tests/learning").assert_outcomes(failed=1)
    result = run(*update[1].split())
    result.assert_outcomes(failed=1)
    assert not (project / "ci/baseline.json").exists()
    reasons = dict.fromkeys(("loss_decreases", "metric_improves"), "issue 12: SGD does not get this model going")
    test.write_text(test.read_text().replace("(trace)\n", f"(trace, allow={reasons})\n"))
    run(*update[1].split()).stdout.fnmatch_lines(["ftcheck baseline: ci/baseline.json: 1 added"])
    run("tests/learning", *compare[1].split()).assert_outcomes(passed=1)
    test.write_text(test.read_text().replace("finetune(tiny_distilbert", "finetune(frozen") + FROZEN)
    result = run("tests/learning", *compare[1].split())
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["ftcheck baseline: worse: tests/learning/test_classifier.py::trace"])


#: The same model with nothing but its head to learn.
FROZEN = """

def frozen():
    model = tiny_distilbert()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    return model
"""
