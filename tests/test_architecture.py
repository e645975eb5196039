"""Who may import whom: floors of rooms, measuring and judging meet only in a Trace, and pytest starts without torch."""

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
    "pytorch_lightning",
    "sentence_transformers",
    "datasets",
    "matplotlib",
    "mlflow",
    "trackio",
    "wandb",
}
#: The rooms, from the ground up: each may import those before it, at any time and for its types, too.
FLOORS = (
    "core",
    "seeds",
    "instruments",
    "integrations",
    "checks",
    "training",
    "initialization",
    "reports",
    "strategies",
    "cli",
    "pytest_plugin",
)
#: The package's face and its command line are above all rooms.
FACES = ("", "__main__")
#: Rooms that may import torch when they are imported; in `checks` those are the files of its probes.
TORCH_SIDE = ("instruments", "training", "initialization", "integrations", "pytest_plugin.build_subject")
#: Files in these rooms that import no torch.
TORCH_FREE = ("training.finetune_arguments",)
#: Imported by users of hypothesis only.
HYPOTHESIS_SIDE = ("strategies",)


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


@functools.cache
def imports(name):
    """``(target, when)`` of every import: our own as ``.core.trace``, others by their top name; when: top, typing or function."""
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


def at_import(name):
    return {target for target, when in imports(name) if when == "top"}


def our_own(name):
    """The modules of the package that a module imports: at its top, in functions and for its types."""
    return {target.lstrip(".") for target, _ in imports(name) if target.startswith(".")}


def inside(module, *packages):
    """Whether a module (with or without its leading dot) is one of the packages or in one."""
    module = module.lstrip(".")
    return any(module == p or module.startswith(p + ".") for p in packages)


def room_of(module):
    return module.partition(".")[0]


def is_probe(module):
    """Whether it is one of the files in `checks` that see torch: told by name."""
    parts = module.split(".")
    return parts[0] == "checks" and (parts[2:3] == ["probe"] or module == "checks.probes")


def sees_torch(module):
    return is_probe(module) or (inside(module, *TORCH_SIDE) and module not in TORCH_FREE)


def test_the_parser_sees_what_there_is():
    assert (".core.trace", "top") in imports("checks.assertions")
    assert ("scipy", "function") in imports("checks.loss.loss_decreases")
    assert (".core.trace_writer", "typing") in imports("core.trace")
    assert ("torch", "top") in imports("training.recorder")
    assert len(MODULES) > 100


# ---------------------------------------------------------------------- rooms
def test_the_package_has_few_entries():
    entries = {p.stem for p in ROOT.iterdir() if p.suffix in (".py", ".pyi") or (p.is_dir() and any(p.glob("*.py")))}
    assert len(entries) <= 13, sorted(entries)
    assert {room_of(m) for m in MODULES} <= {*FLOORS, *FACES, "integrations"}


@pytest.mark.parametrize("name", [m for m in MODULES if m not in FACES])
def test_no_room_imports_one_above_it(name):
    """Not in a function either, nor for its types."""
    floor = FLOORS.index(room_of(name))
    above = {target for target in our_own(name) if room_of(target) not in FLOORS[: floor + 1]}
    assert above == set()


def test_no_circles():
    """Among modules, with the imports in functions and for types counted."""
    graph = {name: our_own(name) & set(MODULES) for name in MODULES}
    done, path = set(), []

    def visit(name):
        if name in done:
            return
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        path.append(name)
        for target in sorted(graph[name]):
            visit(target)
        done.add(path.pop())

    for name in graph:
        visit(name)


@pytest.mark.parametrize("name", MODULES)
def test_every_import_of_our_own_exists(name):
    """A module that is gone would only be noticed when the function that imports it runs."""
    assert our_own(name) <= set(MODULES)


# ---------------------------------------------------------------------- torch
@pytest.mark.parametrize("name", [n for n in MODULES if not sees_torch(n) and not inside(n, *HYPOTHESIS_SIDE)])
def test_nothing_heavy_is_imported_at_module_level(name):
    assert at_import(name) & HEAVY == set()
    assert not any(sees_torch(target.lstrip(".")) for target in at_import(name) if target.startswith("."))


@pytest.mark.parametrize("name", [n for n in MODULES if inside(n, "checks", "core", "seeds") and not is_probe(n)])
def test_judges_see_no_tensor(name):
    """Not in a function either."""
    assert {target for target, _ in imports(name)} & {"torch", "transformers"} == set() or name in BORDER
    assert not any(sees_torch(target) for target in our_own(name))


#: Functions of the core that touch torch for the user: seeding, and filling a module's weights.
BORDER = {"core.seeding", "core.init_scheme"}


@pytest.mark.parametrize("name", [n for n in MODULES if inside(n, "reports")])
def test_reports_never_import_the_torch_side(name):
    assert not any(sees_torch(target) for target in our_own(name))


@pytest.mark.parametrize("name", [n for n in MODULES if inside(n, "instruments", "training") or is_probe(n)])
def test_measuring_never_imports_judges(name):
    """What is measured does not depend on what is concluded: of the checks only records, probes and their finder are imported."""
    targets = {t for t in our_own(name) if inside(t, "checks")} - {"checks.room_modules"}
    assert all(is_probe(t) or t.rpartition(".")[2].endswith("record") for t in targets), targets


# ---------------------------------------------------------------------- pytest and hypothesis
@pytest.mark.parametrize("name", MODULES)
def test_only_the_plugin_imports_pytest(name):
    foreign = {target for target, _ in imports(name)} & {"pytest", "_pytest", "pluggy"}
    assert foreign == set() or inside(name, "pytest_plugin")


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_the_strategies(name):
    """Whoever needs no hypothesis gets none."""
    assert not any(inside(target, *HYPOTHESIS_SIDE) for target in our_own(name))


def test_an_integration_imports_one_framework():
    frameworks = {"transformers", "accelerate", "lightning", "pytorch_lightning", "peft", "datasets"}
    for name in MODULES:
        if inside(name, "integrations"):
            assert len({target for target, _ in imports(name)} & frameworks) <= 1, name


def heavy_after(code):
    """Heavy modules that are loaded once ``code`` has run in a fresh interpreter."""
    script = f"{code}\nimport sys\nprint(*sorted({HEAVY | {'pytest'}!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=400)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import pytest_ftcheck; dir(pytest_ftcheck)", set()),
        ("import pytest_ftcheck.checks.diagnosis, pytest_ftcheck.reports.weight_motion", set()),
        ("import pytest_ftcheck.reports.trace_table", set()),
        ("from pytest_ftcheck.reports import chart_data, notebook, plot", set()),
        ("from pytest_ftcheck.reports.trackers import content, log, loggers", set()),
        ("from pytest_ftcheck import example_trace as e; t = e(); str(t); t._repr_html_()", set()),
        (
            "from pytest_ftcheck import example_trace as e; from pytest_ftcheck.reports.run_metrics import summary_row as s; s(e())",
            set(),
        ),
        ("from pytest_ftcheck.pytest_plugin import progress, write_reports, collect_results, terminal_summary", set()),
        ("from pytest_ftcheck.cli import main, compare; from pytest_ftcheck.reports import check_docs", set()),
        ("from pytest_ftcheck.reports import github as a, sarif as b", set()),
        ("from pytest_ftcheck import Recipe, Trace, Verdict, CheckFailed", set()),
        ("from pytest_ftcheck import example_trace as e; t = e(); str(t); type(t).from_json(t.to_json())", set()),
        (
            "import pytest_ftcheck as f\nt = f.example_trace()\n"
            "f.assert_weights_move(t); f.assert_grads_nonzero(t); f.assert_all_finite(t); f.assert_metric_improves(t)\n"
            "f.assert_frozen_stay_frozen(t); f.explain_weight_motion(t)",
            set(),
        ),
        ("import pytest_ftcheck as f; f.assert_loss_decreases(f.example_trace())", {"scipy", "numpy"}),
        ("from pytest_ftcheck.pytest_plugin import options, fixtures, plugin", {"pytest"}),
        ("import pytest_ftcheck.core.hypothesis_target, pytest_ftcheck.pytest_plugin.hypothesis_profile", set()),
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
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "pytest_ftcheck.pytest_plugin.plugin",
            "-p",
            "no:cacheprovider",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=tmp_path,
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": "", "PYTHONPATH": str(ROOT.parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
