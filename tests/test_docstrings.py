"""Every public name says what it does, with an example that runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import linecache
import pkgutil

import pytest
import torch

import pytest_ftcheck

MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(pytest_ftcheck.__path__, "pytest_ftcheck.")
    if not m.name.endswith(".__main__")
)
#: Their fields are described beside them.
NOUNS = (
    "Recipe",
    "TraceWriter",
    "Intent",
    "Trace",
    "Verdict",
    "Diagnosis",
    "Cause",
    "CheckFailed",
    "Features",
    "SweepResult",
)
PUBLIC = sorted(set(pytest_ftcheck.__all__) - {"__version__"})


def own_functions(module):
    """Public functions, classes and methods that a module defines itself."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing):
            yield name, thing
        elif inspect.isclass(thing):
            yield name, thing
            for inner, method in vars(thing).items():
                if not inner.startswith("_") and inspect.isfunction(method):
                    yield f"{name}.{inner}", method


def test_every_public_name_can_be_imported():
    assert [n for n in PUBLIC if not hasattr(pytest_ftcheck, n)] == []
    assert set(PUBLIC) <= set(dir(pytest_ftcheck))
    with pytest.raises(AttributeError, match="no attribute 'finetun'"):
        _ = pytest_ftcheck.finetun


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring_with_an_example(name):
    thing = getattr(pytest_ftcheck, name)
    text = inspect.getdoc(thing) or ""
    assert len(text.splitlines()[0]) > 20
    examples = doctest.DocTestFinder(recurse=True).find(thing, name, globs={})
    assert any(test.examples for test in examples), f"{name} has no example"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_spoken_of(name):
    """Each parameter's name is in the docstring, or the docstring says where its arguments are described."""
    thing = getattr(pytest_ftcheck, name)
    text = (inspect.getdoc(thing) or "") + (inspect.getdoc(getattr(thing, "__init__", None)) or "")
    if "arguments as" in text or not callable(thing) or name in NOUNS:
        return
    missing = [p for p in inspect.signature(thing).parameters if p not in text and p != "trace"]
    known = {"limits", "changes", "recipe_fields", "config"}  # **rest
    assert set(missing) <= known, missing


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_function_says_what_it_is_for(name):
    module = importlib.import_module(name)
    assert module.__doc__, name
    silent = [n for n, thing in own_functions(module) if not inspect.getdoc(thing)]
    assert [n for n in silent if not n.startswith("pytest_")] == []  # hooks are described by pytest


@pytest.fixture
def _no_source_changes(monkeypatch):
    """The debugger inside doctest asks the disk about each source file that was ever read, before each docstring."""
    monkeypatch.setattr(linecache, "checkcache", lambda filename=None: None)


@pytest.mark.usefixtures("_no_source_changes")
@pytest.mark.parametrize("name", ["pytest_ftcheck", *MODULES])
def test_the_examples_of_a_module_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"torch": torch} if ".training" in name else None)
    assert failed == 0


@pytest.mark.usefixtures("_no_source_changes")
@pytest.mark.parametrize("name", PUBLIC)
def test_the_examples_of_a_public_name_run(name):
    """A name that gives the package as its module is passed over by ``doctest.testmod``."""
    thing = getattr(pytest_ftcheck, name)
    names = {n: getattr(pytest_ftcheck, n) for n in PUBLIC} | {"torch": torch}
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(thing, name, module=False, globs=names):
        assert runner.run(test).failed == 0
