"""Whose run is it? A name that is the same in whatever order, and on whatever process, tests are run."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from ...core.formatting import one_line

#: The fixture of `parametrize_with_checks`, and how node ids of ``--ftcheck-model`` begin.
SUITE, MODELS = "_ftcheck_suite", "ftcheck::"
#: What ends the node id of one check of a suite.
_CHECK = re.compile(r"-check_\w+\]$")
#: Characters of a parameter's value in a name.
LONGEST = 40


class Owners:
    """Knows which test or fixture is at work.

    A run that a fixture of the module, class, package or session made belongs to the fixture, for which test asks first is a matter of
    order: ``tests/test_it.py::trace``, with the parameters that it depends on: ``tests/test_it.py::trace[lr=0.001]``. The run of a suite's
    subject belongs to all of its checks: ``tests/test_it.py::test_all[SUBJECT]``. All other runs belong to their test.
    """

    def __init__(self) -> None:
        self._test: str | None = None
        #: Fixtures that are being set up, the innermost last; None for those of a single test.
        self._stack: list[str | None] = []
        #: Fixture -> its name as an owner, as it was set up last.
        self._owners: dict[Any, str] = {}
        #: Name of a fixture -> parameters that it hangs on, as it was set up last.
        self._parameters: dict[str, dict[str, str]] = {}

    @property
    def current(self) -> str | None:
        """The owner of what is trained now; None: no test is at work."""
        return next((owner for owner in reversed(self._stack) if owner is not None), self._test)

    def begin(self, item: Any) -> str:
        """A test is at work from now on; gives the owner of what it trains."""
        self._test, self._stack = owner_of(item), []
        return self._test

    @contextlib.contextmanager
    def fixture(self, fixturedef: Any, request: Any) -> Iterator[str | None]:
        """A fixture is being set up inside the block; gives its name as an owner, None for one of a single test."""
        parameters = dict(p for name in fixturedef.argnames for p in self._parameters.get(name, {}).items())
        if hasattr(request, "param"):
            parameters[fixturedef.argname] = _value(request.param, getattr(request, "param_index", 0))
        self._parameters[fixturedef.argname] = parameters
        owner = None
        if fixturedef.scope != "function":
            told = ", ".join(f"{name}={value}" for name, value in sorted(parameters.items()))
            base = "" if fixturedef.baseid in ("", ".") else fixturedef.baseid
            owner = f"{base}::{fixturedef.argname}{f'[{told}]' if told else ''}"
            self._owners[fixturedef] = owner
        self._stack.append(owner)
        try:
            yield owner
        finally:
            if self._stack:
                self._stack.pop()

    def used_by(self, item: Any) -> list[str]:
        """The test itself, and the fixtures it uses that may own runs."""
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
    """The node id, without the group that ``--dist loadgroup`` of xdist puts behind it."""
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
    """A parameter in a name: itself if it is a plain value, else its place in the list."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return one_line(str(value), LONGEST)
    return f"#{index}"
