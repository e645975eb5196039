"""Seeds torch, if it is loaded. pytest-randomly calls it through the entry point ``pytest_randomly.random_seeder``.

Our own runs seed themselves with the same function, and restore every random state.
"""

from __future__ import annotations

import sys


def reseed(seed: int) -> None:
    """Seed torch on every device; imports nothing.

    :param seed: a whole number of any size.

    >>> reseed(1)
    """
    torch = sys.modules.get("torch")
    # while torch is being imported it has no such function yet
    if (manual_seed := getattr(torch, "manual_seed", None)) is None:
        return
    accelerator = getattr(torch, "accelerator", None)  # torch 2.6
    if accelerator is not None and not accelerator.is_available():
        # the CPU's generator alone: torch.manual_seed records a stack trace for each kind of device that is missing
        manual_seed = torch.default_generator.manual_seed  # type: ignore[union-attr]
    manual_seed(seed % 2**64)
