"""A project to run pytest in: its checks judge hand-written traces, so no test here waits for torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest

# pytester takes out again what a run in this process imports; what was imported before stays, and is one class everywhere
from pytest_ftcheck import CheckFailed, Trace, Verdict  # noqa: F401

#: A module of the project under test: one check a line, through the same calls as the real assertions.
JUDGING = """
from pytest_ftcheck import CheckFailed, Verdict, example_trace
from pytest_ftcheck.core import events, fail_level

TRACE = example_trace()

def judge(status, headline="1 of 4 head tensors moved"):
    __tracebackhide__ = True
    verdict = Verdict("weights_move", status, headline, ({"tensor": "classifier.weight", "share": 0.5},),
                      limit="THE-LIMIT", causes=("THE-CAUSE",), remedy="THE-REMEDY")
    events.current().judged(verdict, TRACE)
    if fail_level.raises(verdict):
        raise fail_level.error(verdict)

def trace():
    events.current().traced(TRACE)
"""

#: A module of the project: a model for `toy_batches` that needs no transformers, whose import takes half of a short session.
LIGHT = """
from torch import nn

class Light(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.classifier = nn.Embedding(200, 16), nn.Linear(16, 2)

    def forward(self, inputs):
        ids, length, mask = inputs
        return self.classifier((self.base(ids) * mask[..., None]).sum(1) / length[:, None])
"""

Run = Callable[..., pytest.RunResult]
NEIGHBOURS = ("randomly", "pytest_torch", "hypothesispytest", "anyio", "asyncio")


@pytest.fixture(scope="session")
def trains() -> None:
    """For tests that train in this process: pytester takes back what a run imports, and torch and transformers cannot be imported
    twice, so all that a fine-tune and its checks need is here before."""
    from pytest_ftcheck import diagnose, finetune, tiny_distilbert, toy_batches
    from pytest_ftcheck.instruments.tiny_architectures import tiny
    from pytest_ftcheck.pytest_plugin import build_subject

    assert build_subject
    tiny("distilbert")
    diagnose(finetune(tiny_distilbert, toy_batches(4, 8), steps=4, lr=1e-3))


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest in the project; neighbouring plugins stay out unless a test is about them.

    In this process, for another one imports torch and transformers again, unless ``subprocess`` is true; with ``ctrl_c`` a
    KeyboardInterrupt of the project's ends its session and not ours.
    """
    for name in (
        "CI",
        "BUILD_NUMBER",
        "TF_BUILD",
        "GITHUB_ACTIONS",
        "GITHUB_STEP_SUMMARY",
    ):  # lines are cut elsewhere only; what runs here is no news there
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    pytester.makepyfile(judging=JUDGING, light=LIGHT)

    def run(*arguments: str, alone: bool = True, subprocess: bool = False, ctrl_c: bool = False) -> pytest.RunResult:
        others: tuple[str, ...] = tuple(f"-pno:{name}" for name in NEIGHBOURS) if alone else ()
        if not alone and importlib.util.find_spec("pytest_asyncio"):  # it warns where its key is not set
            others = ("-oasyncio_default_fixture_loop_scope=function",)
        if subprocess:
            return pytester.runpytest_subprocess(*others, "-pno:cacheprovider", *arguments)
        return pytester.runpytest_inprocess(*others, "-pno:cacheprovider", *arguments, no_reraise_ctrlc=ctrl_c)

    return run
