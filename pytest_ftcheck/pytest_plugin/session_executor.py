"""``--ftcheck-executor=pkg.module:make``: one executor for all seeds of a session."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import pytest

from . import options
from .named_object import named_object

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..seeds.executors import Workers

ACCEPTED = "expected pkg.module:make, a function without arguments that makes an executor"
#: The session's workers; None: seeds are trained here.
WORKERS: pytest.StashKey[Workers | None] = pytest.StashKey()


def session_workers(config: pytest.Config) -> Workers | None:
    """The workers that the session names; None: none. The executor is made when seeds are first trained, and shut down with the session.

    :raises pytest.UsageError: a name that does not lead to a function; cloudpickle is missing.
    """
    named = options.executor(config)
    if named is None:
        return None
    from ..seeds.executors import Workers  # lazily: every start of pytest pays for imports

    name, given = named
    if importlib.util.find_spec("cloudpickle") is None:
        raise pytest.UsageError(f"{given}: needs cloudpickle: pip install 'pytest-ftcheck[executor]'")
    workers = Workers(_function(name, given, config.invocation_params.dir))
    config.add_cleanup(workers.close)
    return workers


def _function(name: str, given: str, folder: Path) -> Callable[[], Any]:
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise pytest.UsageError(f"{given}: {ACCEPTED}")
    before = list(sys.path)
    sys.path.insert(0, str(folder))  # as with `python -m pytest`
    try:
        found, _ = named_object(module, path, ACCEPTED)
    except ValueError as error:
        raise pytest.UsageError(f"{given}: {error}") from None
    finally:
        sys.path[:] = before
    if not callable(found):
        raise pytest.UsageError(f"{given}: expected a function without arguments that makes an executor")
    return found  # type: ignore[no-any-return]
