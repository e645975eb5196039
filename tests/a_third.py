"""Which cases of a long table a plain run of the suite has: a third, chosen by name, so that the choice stays when cases are added."""

from __future__ import annotations

import hashlib
import os


def chosen(name: str) -> bool:
    """Whether a case of this name is run; with ``FTCHECK_MATRIX=all`` every case is."""
    return os.environ.get("FTCHECK_MATRIX") == "all" or hashlib.sha256(name.encode()).digest()[5] % 3 == 0
