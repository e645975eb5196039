"""Functions of upper floors that the core calls but may not import: reports of a Trace, the rooms of its measurements."""

from __future__ import annotations

import importlib
from typing import Any

#: Name -> ``module:function``; filled by ``pytest_ftcheck/__init__.py``, before anything can be called.
PROVIDERS: dict[str, str] = {}


def provided(name: str) -> Any:
    """The function with this name, imported on first use."""
    module, _, function = PROVIDERS[name].partition(":")
    return getattr(importlib.import_module(module), function)
