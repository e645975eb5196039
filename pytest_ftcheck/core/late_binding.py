"""Functions of upper floors that the core calls but may not import: reports of a Trace, the rooms of its measurements."""

from __future__ import annotations

import importlib
from typing import Any

#: Name -> ``module:function`` below the package; filled by ``pytest_ftcheck/__init__.py``, before anything can be called.
PROVIDERS: dict[str, str] = {}


def provided(name: str) -> Any:
    """The function of that name, imported now."""
    module, _, function = PROVIDERS[name].partition(":")
    return getattr(importlib.import_module(module), function)
