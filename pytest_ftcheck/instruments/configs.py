"""The config of a model of the user's own: a property that raises is as good as none."""

from __future__ import annotations

from typing import Any


def config_of(module: Any) -> Any:
    """``module.config``; None: there is none, or it cannot be read.

    >>> from types import SimpleNamespace
    >>> config_of(SimpleNamespace(config={"dim": 3})), config_of(object())
    ({'dim': 3}, None)
    """
    try:
        return getattr(module, "config", None)
    except Exception:  # noqa: BLE001 - a property of the user's may raise anything
        return None
