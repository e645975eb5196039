"""Whether the user's batches are the same when they are drawn again from the same random states."""

from __future__ import annotations

from typing import Any

from .batches import spent
from .environment import data_hash
from .global_state import GlobalState, seed_everything
from .snapshots import LoaderSnapshot
from .undo import Undo


def draws_differ(batches: Any, seed: int) -> bool:
    """Whether the first batch differs when it is drawn twice from the same random states: a generator that is not known decides.

    Random states and known generators are restored. Of a loader with workers, the order of the rows is drawn: what the workers draw
    depends on random states that torch hands them. True also where it cannot be drawn again.

    >>> import random
    >>> class Batches:
    ...     def __iter__(self):
    ...         yield random.SystemRandom().random()
    >>> draws_differ(Batches(), 0), draws_differ([1, 2], 0)
    (True, False)
    """
    if batches is None or isinstance(batches, (list, tuple)):
        return False
    source = batches
    if getattr(batches, "num_workers", 0):
        source = getattr(batches, "batch_sampler", None) or getattr(batches, "sampler", None)
    try:
        if source is None or spent(source):
            return False  # what can be read only once was kept, and is what a run of the same batches reads
        return _first(source, batches, seed) != _first(source, batches, seed)
    except Exception:  # noqa: BLE001 - whatever the user's iterable raises
        return True


def _first(source: Any, batches: Any, seed: int) -> str:
    undo = Undo()

    def draw() -> str:
        undo.keep(GlobalState(), LoaderSnapshot(batches))
        seed_everything(seed)
        return data_hash([next(iter(source))])

    return undo.after(draw)
