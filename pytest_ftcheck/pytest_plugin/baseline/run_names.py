"""Names of runs, independent of the order in which tests run and of the process that runs them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from ...core.formatting import one_line

#: The fixture of `parametrize_with_checks`, and how node ids of ``--ftcheck-model`` begin.
SUITE, MODELS = "_ftcheck_suite", "ftcheck::"
#: End of the node id of one check of a suite.
_CHECK = re.compile(r"-check_\w+\]$")
#: Characters of a parameter's value in a name.
LONGEST = 40


class Owners:
    """Knows which test or fixture is running, and so owns a run.

    A run made by a fixture of the module, class, package or session belongs to the fixture, because the first test that requests it depends
    on the order: ``tests/test_it.py::trace``, with the parameters that it depends on: ``tests/test_it.py::trace[lr=0.001]``. The run of a
    suite's subject belongs to all of its checks: ``tests/test_it.py::test_all[SUBJECT]``. All other runs belong to their test.
    """

    def __init__(self) -> None:
        self._test: str | None = None
        #: Fixtures that are being set up, the innermost last; None for those of a single test.
        self._stack: list[str | None] = []
        #: Fixture -> its name as an owner when it was last set up.
        self._owners: dict[Any, str] = {}
        #: Name of a fixture -> the parameters that it depended on when it was last set up.
        self._parameters: dict[str, dict[str, str]] = {}

    @property
    def current(self) -> str | None:
        """The owner of the current run; None: no test is running."""
        return next((owner for owner in reversed(self._stack) if owner is not None), self._test)

    def begin(self, item: Any) -> str:
        """A test starts; returns the owner of its runs."""
        self._test, self._stack = owner_of(item), []
        return self._test

    @contextlib.contextmanager
    def fixture(self, fixturedef: Any, request: Any) -> Iterator[str | None]:
        """A fixture is set up inside the block; yields its name as an owner, None for one of a single test."""
        parameters = dict(p for name in fixturedef.argnames for p in self._parameters.get(name, {}).items())
        if hasattr(request, "param"):
            parameters[fixturedef.argname] = _value(request.param, getattr(request, "param_index", 0))
        self._parameters[fixturedef.argname] = parameters
        owner = None
        if fixturedef.scope != "function":
            listed = ", ".join(f"{name}={value}" for name, value in sorted(parameters.items()))
            base = "" if fixturedef.baseid in ("", ".") else fixturedef.baseid
            owner = f"{base}::{fixturedef.argname}{f'[{listed}]' if listed else ''}"
            self._owners[fixturedef] = owner
        self._stack.append(owner)
        try:
            yield owner
        finally:
            if self._stack:
                self._stack.pop()

    def used_by(self, item: Any) -> list[str]:
        """The test itself, and those of its fixtures that may own runs."""
        info = getattr(item, "_fixtureinfo", None)
        known = getattr(info, "name2fixturedefs", {})
        used = (self._owners.get(fixturedef) for defs in known.values() for fixturedef in defs)
        return [owner_of(item), *dict.fromkeys(owner for owner in used if owner is not None)]


def owner_of(item: Any) -> str:
    """The test itself; for one check of a suite the suite's subject."""
    name = name_of(item)
    if name.startswith(MODELS):
        return name.partition("::check_")[0]
    if SUITE in getattr(item, "fixturenames", ()):
        return _CHECK.sub("]", name)
    return name


def name_of(item: Any) -> str:
    """The node id, without the group that ``--dist loadgroup`` of pytest-xdist appends."""
    nodeid = str(item.nodeid)
    for marker in item.iter_markers("xdist_group"):
        group = marker.args[0] if marker.args else marker.kwargs.get("name", "default")
        nodeid = nodeid.removesuffix(f"@{group}")
    return nodeid


def file_of(key: str) -> str:
    """The file of a run's owner, relative to pytest's root; a folder, or nothing, for a fixture of a conftest.

    >>> file_of("tests/test_it.py::TestIt::test_a[x] #2")
    'tests/test_it.py'
    """
    return key.partition("::")[0]


def _value(value: Any, index: int) -> str:
    """A parameter in a name: its text if it is a plain value, else its place in the list."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return one_line(str(value), LONGEST)
    return f"#{index}"
