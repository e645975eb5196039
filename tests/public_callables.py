"""Every public callable with its parameters, found by inspection, and a valid call of each: what the fuzz over all arguments calls.

A callable, or a parameter without a default, that is new needs a valid value here; the fuzz says which one.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pytest_ftcheck as ft
from pytest_ftcheck import strategies
from pytest_ftcheck.core.recipe import Recipe
from pytest_ftcheck.pytest_plugin import fixtures
from pytest_ftcheck.training.finetune_arguments import FinetuneArguments

#: Called by others only: a framework's events, and methods whose first parameter is an object of ours in the middle of a run.
INTERNAL = {"watch.training_begins", "watch.training_ends", "TraceWriter"}
#: Classes whose methods are all events that a framework sends, or a protocol for the user's own class.
EVENTS = {"FtcheckCallback", "TaskReader", "TraceWriter"}
#: Records that our own functions make: every field is whatever they measured. Their methods are fuzzed.
RECORDS = {"Cause", "Diagnosis", "SweepResult", "Trace"}


@dataclasses.dataclass(frozen=True)
class Target:
    """One public callable."""

    name: str
    #: Makes what is called; a method of a new object.
    make: Callable[[], Callable[..., Any]]
    parameters: tuple[str, ...]
    #: Passed by position, for they have no name that a caller could use.
    positional: tuple[str, ...]
    #: Exceptions that its documentation names besides those that all may raise.
    documented: tuple[str, ...]

    def valid(self) -> dict[str, Any]:
        """New arguments of a valid call, without those left at their defaults."""
        return VALID.get(self.name, dict)()

    def call(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Call it, and use what it returns a little."""
        by_name = {name: value for name, value in arguments.items() if name not in self.positional}
        result = function(*(arguments[name] for name in self.positional if name in arguments), **by_name)
        if self.name == "parametrize_with_checks":
            result(lambda subject, check: None)
        return result


# ---------------------------------------------------------------------- valid objects
class Net(nn.Module):
    """A small classifier of 6 features."""

    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.classifier(torch.relu(self.body(x)))


def rows(count=3):
    g = torch.Generator().manual_seed(0)
    return [(v := torch.randn(8, 6, generator=g), (v[:, 0] > 0).long()) for _ in range(count)]


def features():
    x, y = rows(1)[0]
    return ft.Features.of(x, y, held_out=0.25)


def _swept():
    if not _SWEPT:
        _SWEPT.append(ft.sweep(nn.Linear(6, 2), features(), schemes=[0.02], lrs=[1e-2], seeds=1, steps=2))
    return _SWEPT[0]


def _watched():
    w = ft.watch(Net())
    w.__enter__()
    _OPEN.append(w)
    return w


def _watched_one_step():
    model, ((x, y),) = Net(), rows(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ft.watch(model) as w:
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return w


def close_all():
    """End what a call left open."""
    while _OPEN:
        _OPEN.pop().__exit__(None, None, None)


_SWEPT: list[Any] = []
_OPEN: list[Any] = []
_FOLDER = Path(tempfile.gettempdir())
_VERDICT: dict[str, Any] = {"check": "loss_decreases", "status": "fail", "headline": "It does not."}
_SCHEME = ft.InitScheme.normal


#: Removed when the process ends.
_FILES = tempfile.TemporaryDirectory()


def _file(text):
    folder = Path(tempfile.mkdtemp(dir=_FILES.name))
    (folder / "file.json").write_text(text)
    return folder / "file.json"


def _quick(**more):
    return {"batches": rows(), "steps": 2, "probes": ("loss", "metrics"), **more}


#: Class -> an object of it.
OBJECTS: dict[str, Callable[[], Any]] = {
    "CheckFailed": lambda: ft.CheckFailed(ft.Verdict(**_VERDICT)),
    "Diagnosis": lambda: ft.diagnose(ft.example_trace()),
    "Features": features,
    "InitScheme": _SCHEME,
    "Intent": lambda: ft.Intent(peak_lr=1e-3, warmup_steps=2, total_steps=9, schedule="linear", trained="classifier"),
    "Recipe": ft.Recipe,
    "Runs": lambda: ft.Runs(lambda seed, steps: ft.example_trace(), ft.Recipe(), 3),
    "SweepResult": _swept,
    "Trace": ft.example_trace,
    "Verdict": lambda: ft.Verdict(**_VERDICT),
    "watch": _watched,
    "watch.gather": lambda: _watched_one_step(),
}
#: Callable -> arguments of a valid call, where its defaults are not enough. Checks and assertions: a trace.
VALID: dict[str, Callable[[], dict[str, Any]]] = {
    "CheckFailed": lambda: {"verdict": ft.Verdict(**_VERDICT)},
    "Features": lambda: dict(zip(("x", "y"), rows(1)[0], strict=True)),
    "Features.of": lambda: dict(zip(("x", "y"), rows(1)[0], strict=True)),
    "Features.to": lambda: {"device": "cpu"},
    "InitScheme": lambda: {"weight": _SCHEME().weight},
    "InitScheme.apply": lambda: {"module": Net()},
    "InitScheme.at": lambda: {"position": 0, "layers": 2},
    "InitScheme.constant": lambda: {"value": 0.5},
    "InitScheme.scaled": lambda: {"factor": 2.0},
    "InitScheme.with_bias": lambda: {"value": 0.5},
    "InitScheme.with_class_prior": lambda: {"shares": (0.25, 0.75)},
    "InitScheme.with_first": lambda: {"scheme": _SCHEME()},
    "InitScheme.with_last": lambda: {"scheme": _SCHEME()},
    "Intent.filled": lambda: {"recipe": ft.Recipe()},
    "Intent.for_model": lambda: {"names": ["body.weight", "classifier.weight"], "head": ["classifier"]},
    "Intent.is_unused": lambda: {"name": "body.weight"},
    "Intent.lr_at": lambda: {"step": 1},
    "Intent.wants_frozen": lambda: {"name": "body.weight"},
    "Intent.wants_trained": lambda: {"name": "body.weight"},
    "Recipe.lr_at": lambda: {"step": 1},
    "Recipe.lr_factor": lambda: {"step": 1},
    "Runs": lambda: {"train": lambda seed, steps: ft.example_trace(), "recipe": ft.Recipe(), "seeds": 3},
    "Runs.affords": lambda: {"i": 1},
    "Runs.longer": lambda: {"i": 0},
    "Runs.seed": lambda: {"i": 1},
    "Subject": lambda: {"name": "mine", "model": Net, "batches": rows()},
    "SweepResult.from_json": lambda: {"text": _swept().to_json()},
    "SweepResult.load": lambda: {"path": _file(_swept().to_json())},
    "SweepResult.save": lambda: {"path": _file("")},
    "Trace.from_json": lambda: {"text": ft.example_trace().to_json()},
    "Trace.load": lambda: {"path": _file(ft.example_trace().to_json())},
    "Trace.log_to": lambda: {"to": "tensorboard", "directory": _file("").parent},
    "Trace.measured": lambda: {"kind": _measurement()},
    "Trace.save": lambda: {"path": _file("")},
    "Trace.tensor": lambda: {"name": "classifier.weight"},
    "Trace.to_html": lambda: {"path": _file("")},
    "Trace.to_tensorboard": lambda: {"directory": _file("").parent},
    "Trace.why_not_measured": lambda: {"kind": _measurement()},
    "Verdict": lambda: dict(_VERDICT),
    "assert_init_sane": lambda: {"model": Net(), "batches": rows()},
    "assert_trainable": lambda: {"head": nn.Linear(6, 2), "features": features(), "steps": 2},
    "check_init": lambda: {"model": Net(), "batches": rows()},
    "check_trainable": lambda: {"head": nn.Linear(6, 2), "features": features(), "steps": 2},
    "explain_weight_motion": lambda: {"trace": ft.example_trace()},
    "extract_features": lambda: {"model": Net(), "batches": rows()},
    "finetune": lambda: {"model": Net(), **_quick()},
    "head_of": lambda: {"model": Net(), "batches": rows()},
    "identify": lambda: {"module": Net()},
    "register_task": lambda: {"reader": type("Mine", (ft.TaskReader,), {"name": "mine"})},
    "parametrize_with_checks": lambda: {"subjects": [ft.Subject("mine", Net, rows())]},
    "sweep": lambda: {
        "head": nn.Linear(6, 2),
        "features": features(),
        "schemes": [0.02],
        "lrs": [1e-2],
        "seeds": 1,
        "steps": 2,
    },
    "watch": lambda: {"subject": Net()},
    "watch.loss": lambda: {"loss": torch.ones(())},
    "strategies.Head": lambda: {"in_features": 6, "classes": 2},
    "strategies.InitScheme": lambda: {"weight": _SCHEME().weight},
    "strategies.heads": lambda: {"in_features": 16},
    "strategies.toward_border": lambda: {"margin": 0.5},
}
#: Callable -> the names that its ``**keywords`` take.
KEYWORDS: dict[str, tuple[str, ...]] = {
    "Subject": tuple(FinetuneArguments.__annotations__),
    "Trace.log_to": ("prefix", "directory", "unknown"),
    "assert_trainable": ("optimizer", "weight_decay", "warmup", "schedule", "max_grad_norm", "threads", "unknown"),
    "check_trainable": ("optimizer", "weight_decay", "warmup", "schedule", "max_grad_norm", "threads", "unknown"),
    "example_trace": tuple(ft.Trace.__dataclass_fields__),
    "finetune": (*FinetuneArguments.__annotations__, "unknown"),
    "strategies.batches": ("vocabulary", "pad", "keywords", "unknown"),
    "sweep": ("optimizer", "steps", "warmup", "schedule", "weight_decay", "max_grad_norm", "unknown"),
    "tiny_distilbert": ("n_layers", "dim", "n_heads", "dropout", "vocab_size", "hidden_dim", "activation", "unknown"),
}


def _measurement():
    from pytest_ftcheck.checks.mode.record import Modes

    return Modes


# ---------------------------------------------------------------------- inspection
def targets() -> list[Target]:
    """All of them, by name."""
    found = []
    public = [(name, getattr(ft, name)) for name in ft.__all__]
    public += [(f"strategies.{name}", getattr(strategies, name)) for name in strategies.__all__]
    for name, thing in public:
        if isinstance(thing, type):
            found += _of_class(name, thing)
        elif callable(thing):
            found.append(_target(name, thing, lambda thing=thing: thing))
    found += [_of_fixture(name) for name in sorted(fixtures.NAMES)]
    unique = {target.name: target for target in found if target is not None and target.name not in INTERNAL}
    return [unique[name] for name in sorted(unique)]


def _of_fixture(name):
    """The functions that fixtures return are the public functions, or take their place in a session (`session_finetune`)."""
    return None if hasattr(ft, name) else pytest_fail(f"the fixture {name} is no public function: add it")


def pytest_fail(message):
    raise AssertionError(message)


def _of_class(name, kind):
    found = []
    if name not in RECORDS | INTERNAL:
        found.append(_target(name, kind, lambda: kind))
    if name.startswith("strategies.") or name in EVENTS:
        return found  # the same classes, or made by drawing
    for method in sorted(n for n in dir(kind) if not n.startswith("_")):
        static = inspect.getattr_static(kind, method)
        bound = isinstance(static, (classmethod, staticmethod))
        function = static.__func__ if bound else static
        if not inspect.isfunction(function) or not function.__module__.startswith("pytest_ftcheck"):
            continue
        owner = (lambda: kind) if bound else OBJECTS.get(f"{name}.{method}", OBJECTS.get(name))
        if f"{name}.{method}" in INTERNAL:
            continue
        assert owner is not None, f"public_callables.OBJECTS needs an object of {name}, for its method {method}"
        found.append(
            _target(f"{name}.{method}", function, lambda o=owner, m=method: getattr(o(), m), leave_out=1, of=kind)
        )
    return found


def _target(name, function, make, leave_out=0, of=None):
    parameters = list(inspect.signature(function).parameters.values())[leave_out:]
    if name.removeprefix("assert_").removeprefix("check_") in _checks():
        VALID.setdefault(name, lambda: {"trace": ft.example_trace()})
    if name in ("diagnose", "assert_healthy"):
        VALID.setdefault(name, lambda: {"trace": ft.example_trace()})
    names, positional = [], []
    for p in parameters:
        if p.kind is p.VAR_KEYWORD:
            assert name in KEYWORDS, f"public_callables.KEYWORDS needs the names that {name}(**{p.name}) takes"
            names += [n for n in KEYWORDS[name] if n not in names]
        elif p.kind is not p.VAR_POSITIONAL:
            names.append(p.name)
            positional += [p.name] * (p.kind is p.POSITIONAL_ONLY)
    target = Target(name, make, tuple(names), tuple(positional), _documented(function, of))
    needed = {
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    missing = needed - set(target.valid())
    assert not missing, f"public_callables.VALID needs a value of {name}({', '.join(sorted(missing))})"
    return target


def _checks():
    from pytest_ftcheck.checks.catalogue import CHECKS

    return CHECKS


def _documented(*things):
    found = {
        word
        for t in things
        if t is not None
        for line in re.findall(r":raises ([^:]*):", t.__doc__ or "")
        for word in re.findall(r"\w+", line)
    }
    return tuple(sorted(found))


assert set(Recipe.field_names()) <= set(FinetuneArguments.__annotations__)
