"""The order of a run's batches under one of several seeds."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

from ..instruments.snapshots import LoaderSnapshot


@contextlib.contextmanager
def reordered(batches: Any, seed: int, first: int) -> Iterator[Any]:
    """The batches in the order of this seed; the first seed's order is the user's own. A loader's generators are restored."""
    if seed == first:
        yield batches
    elif isinstance(batches, (list, tuple)):
        order = list(batches)
        random.Random(seed).shuffle(order)
        yield order
    else:
        snapshot = LoaderSnapshot(batches)
        try:
            snapshot.reseed(seed)
            yield batches
        finally:
            snapshot.restore()
