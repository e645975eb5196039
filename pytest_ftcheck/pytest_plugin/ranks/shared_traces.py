"""The traces that the ranks of one test share: each writes its own to a folder of this machine, and any of them merges all.

Nothing is a collective here: a rank that asks for a merged trace waits for files, so ranks may ask or not, in any order, and no order of
collectives of the test's own is disturbed.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from ...checks.ranks.record import Ranks
from ...core.files import write_atomically
from ...core.trace import Trace

#: Seconds between two looks at the folder.
_TICK = 0.02


class SharedTraces:
    """The traces of one rank's watched loops, in the order of their ends, and those of the other ranks.

    :param folder: the same one for all ranks.  :param rank: this one's number.  :param world: how many there are.
    """

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        self._folder, self._rank, self._world = folder, rank, world
        self._own: list[Trace] = []

    def publish(self, trace: Trace) -> bool:
        """Let the other ranks have it; whether it is of a distributed run, and was published."""
        found = trace.measured(Ranks)
        if found is None or found.gathered:
            return False
        write_atomically(self._file(len(self._own), self._rank), trace.to_json())
        self._own.append(trace)
        return True

    def merged(self, trace: Trace) -> Trace:
        """Merged with those that the other ranks' loops of the same number left. Waits for them.

        A trace that was not published is returned as it is; one that a rank has no counterpart of, once its body is over, with a note.
        """
        from ...training.merge_ranks import merge_ranks

        number = next((i for i, own in enumerate(self._own) if own is trace), None)
        if number is None:
            return trace
        traces: list[Trace] = []
        for rank in range(self._world):
            found = trace if rank == self._rank else self._of(rank, number)
            if found is None:
                note = f"not merged over the ranks: rank {rank} has left no such watch block"
                return dataclasses.replace(trace, notes=(*trace.notes, note))
            traces.append(found)
        return merge_ranks(traces)

    def body_over(self) -> None:
        """No more traces come from this rank."""
        self._over(self._rank).touch()

    def _of(self, rank: int, number: int) -> Trace | None:
        file = self._file(number, rank)
        while True:
            over = self._over(rank).exists()  # before the look at the file, which it may have left just before
            if file.exists():
                return Trace.from_json(file.read_text(encoding="utf-8"))
            if over:
                return None
            time.sleep(_TICK)

    def _file(self, number: int, rank: int) -> Path:
        return self._folder / f"trace-{number}-{rank}.json"

    def _over(self, rank: int) -> Path:
        return self._folder / f"over-{rank}"
