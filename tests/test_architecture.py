"""Who may import whom: measuring and judging meet only in a Trace, and pytest starts without torch."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_ftcheck

ROOT = Path(pytest_ftcheck.__file__).parent
HEAVY = {
    "altair",
    "jinja2",
    "vl_convert",
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "hypothesis",
    "tensorboard",
    "accelerate",
    "peft",
    "lightning",
    "matplotlib",
    "mlflow",
    "trackio",
    "wandb",
}
#: Folders that may import torch when they are imported.
TORCH_SIDE = ("training", "inits", "integrations")
#: Imported by users of hypothesis only: may import hypothesis and the torch side when it is imported.
HYPOTHESIS_SIDE = ("strategies",)
PYTEST_SIDE = {"options", "fixtures", "plugin", "suite", "collecting"}
JUDGES = ("checks", "diagnosis", "reports", "explain", "asserts")


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


@functools.cache
def imports(name):
    """``(target, when)`` of every import: our own as ``.trace``, others by their top name; when: top, typing or function."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []

    def resolve(node):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif node.level:
            parts = package.split(".") if package else []
            base = parts[: len(parts) - node.level + 1]
            full = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            inside = [f"{full}.{a.name}".strip(".") for a in node.names]
            names = ["pytest_ftcheck." + (i if i in MODULES else full) for i in inside]
        else:
            names = [node.module]
        for target in names:
            top, _, rest = target.partition(".")
            yield "." + rest if top == "pytest_ftcheck" else top

    def visit(node, when):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.extend((target, when) for target in resolve(node))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                visit(child, "typing")
            for child in node.orelse:
                visit(child, when)
        else:
            inner = "function" if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) else when
            for child in ast.iter_child_nodes(node):
                visit(child, inner)

    visit(ast.parse(path.read_text(encoding="utf-8")), "top")
    return found


def at_run_time(name):
    return {target for target, when in imports(name) if when != "typing"}


def at_import(name):
    return {target for target, when in imports(name) if when == "top"}


def inside(module, *packages):
    """Whether a module (with or without its leading dot) is one of the packages or in one."""
    module = module.lstrip(".")
    return any(module == p or module.startswith(p + ".") for p in packages)


def test_the_parser_sees_what_there_is():
    assert (".trace", "top") in imports("asserts")
    assert (".checks", "top") in imports("asserts")
    assert ("scipy", "function") in imports("checks.loss")
    assert (".training.loop", "typing") in imports("")
    assert ("torch", "top") in imports("training.recorder")
    assert len(MODULES) > 25


@pytest.mark.parametrize("name", [n for n in MODULES if not inside(n, *TORCH_SIDE, *HYPOTHESIS_SIDE)])
def test_nothing_heavy_is_imported_at_module_level(name):
    assert at_import(name) & HEAVY == set()
    assert not any(inside(target, *TORCH_SIDE) for target in at_import(name) if target.startswith("."))


@pytest.mark.parametrize("name", [n for n in MODULES if inside(n, *JUDGES)])
def test_judges_never_import_training(name):
    """Not in a function either, nor for its types."""
    assert not any(inside(target, *TORCH_SIDE) for target, _ in imports(name) if target.startswith("."))


@pytest.mark.parametrize("name", [n for n in MODULES if inside(n, "checks", "diagnosis", "explain", "asserts")])
def test_judges_see_no_tensor(name):
    assert {target for target, _ in imports(name)} & {"torch", "transformers"} == set()


@pytest.mark.parametrize("name", [n for n in MODULES if inside(n, "training")])
def test_training_never_imports_judges_or_pytest(name):
    targets = {target for target, _ in imports(name)}
    assert "pytest" not in targets
    assert not any(inside(t, *JUDGES, *PYTEST_SIDE, "progress") for t in targets if t.startswith("."))


@pytest.mark.parametrize("name", MODULES)
def test_only_pytests_side_imports_pytest(name):
    foreign = {target for target, _ in imports(name)} & {"pytest", "_pytest", "pluggy"}
    assert foreign == set() or name in PYTEST_SIDE


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_the_plugin(name):
    assert not any(inside(target, "plugin") for target, _ in imports(name) if target.startswith("."))


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_the_strategies(name):
    """Whoever needs no hypothesis gets none."""
    assert not any(inside(target, *HYPOTHESIS_SIDE) for target, _ in imports(name) if target.startswith("."))


@pytest.mark.parametrize("name", ["recipe", "trace", "verdict", "session", "text", "codec"])
def test_nouns_know_only_nouns(name):
    nouns = {".recipe", ".trace", ".verdict", ".text", ".codec", ".intent"}
    found = {target for target in at_import(name) if target.startswith(".") and not inside(target, "records")}
    assert found <= nouns


def test_an_integration_imports_one_framework():
    frameworks = {"transformers", "accelerate", "lightning", "pytorch_lightning", "peft", "datasets"}
    for name in MODULES:
        if inside(name, "integrations"):
            assert len({target for target, _ in imports(name)} & frameworks) <= 1, name


def test_no_circles_at_module_level():
    graph = {name: {t.lstrip(".") for t in at_import(name) if t.startswith(".")} & set(MODULES) for name in MODULES}
    done, path = set(), []

    def visit(name):
        if name in done or name == "":
            return
        assert name not in path, " -> ".join([*path, name])
        path.append(name)
        for target in sorted(graph[name]):
            visit(target)
        done.add(path.pop())

    for name in graph:
        visit(name)


@pytest.mark.parametrize("name", MODULES)
def test_every_import_of_our_own_exists(name):
    """A module that is gone would only be noticed when the function that imports it runs."""
    for target, _ in imports(name):
        if target.startswith("."):
            assert target.lstrip(".") in MODULES, target


def heavy_after(code):
    """Heavy modules that are loaded once ``code`` has run in a fresh interpreter."""
    script = f"{code}\nimport sys\nprint(*sorted({HEAVY | {'pytest'}!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import pytest_ftcheck; dir(pytest_ftcheck)", set()),
        ("import pytest_ftcheck.checks, pytest_ftcheck.asserts, pytest_ftcheck.explain", set()),
        ("import pytest_ftcheck.reports.terminal, pytest_ftcheck.reports.tensorboard", set()),
        ("from pytest_ftcheck.reports import logged, loggers, notebook, plot, series, writers", set()),
        ("from pytest_ftcheck import example_trace as e, glance; t = e(); glance.glance(t); t._repr_html_()", set()),
        ("import pytest_ftcheck.progress, pytest_ftcheck.examples", set()),
        ("from pytest_ftcheck import command, comparison, delivery, gathering, pages, summary", set()),
        ("from pytest_ftcheck.reports import github as a, gitlab as b, sarif as c", set()),
        ("from pytest_ftcheck import Recipe, Trace, Verdict, CheckFailed", set()),
        ("from pytest_ftcheck import example_trace as e; t = e(); str(t); type(t).from_json(t.to_json())", set()),
        (
            "import pytest_ftcheck as f\nt = f.example_trace()\n"
            "f.assert_weights_move(t); f.assert_grads_nonzero(t); f.assert_all_finite(t); f.assert_metric_improves(t)\n"
            "f.assert_frozen_stay_frozen(t); f.explain_weight_motion(t)",
            set(),
        ),
        ("import pytest_ftcheck as f; f.assert_loss_decreases(f.example_trace())", {"scipy", "numpy"}),
        ("import pytest_ftcheck.options, pytest_ftcheck.fixtures, pytest_ftcheck.plugin", {"pytest"}),
        ("import pytest_ftcheck.border, pytest_ftcheck.folding, pytest_ftcheck.profile", set()),
        ("import hypothesis", {"hypothesis"}),  # which registers our profile
    ],
)
def test_what_a_fresh_interpreter_loads(code, allowed):
    assert heavy_after(code) <= allowed


def test_pytest_starts_without_torch(tmp_path):
    (tmp_path / "test_it.py").write_text(
        f"import sys\ndef test_it():\n    assert not {HEAVY!r} & set(sys.modules)\n", encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "pytest_ftcheck.plugin", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": "", "PYTHONPATH": str(ROOT.parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
