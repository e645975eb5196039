"""Seeding torch where it is loaded. pytest-randomly's reseeding reaches torch by it: entry point ``pytest_randomly.random_seeder``.

Our own runs do not hang on that: they seed themselves, by the same function, and put every random state back.
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
    if (manual_seed := getattr(torch, "manual_seed", None)) is None:
        return
    accelerator = getattr(torch, "accelerator", None)  # torch 2.6
    if accelerator is not None and not accelerator.is_available():
        # without the rest of it, which writes down the stack for each kind of device that is not there
        manual_seed = torch.default_generator.manual_seed  # type: ignore[union-attr]
    manual_seed(seed % 2**64)
