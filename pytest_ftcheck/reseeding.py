"""pytest-randomly's reseeding reaches torch, too, where torch is loaded: entry point ``pytest_randomly.random_seeder``.

Our own runs need none of it: they seed themselves and put every random state back.
"""

from __future__ import annotations

import sys


def reseed(seed: int) -> None:
    """Seed torch on every device; nothing is imported for it.

    :param seed: of any size, as pytest-randomly makes it.

    >>> reseed(1)
    """
    torch = sys.modules.get("torch")
    # while torch is being imported it has no such function yet
    if (manual_seed := getattr(torch, "manual_seed", None)) is not None:
        manual_seed(seed % 2**64)
