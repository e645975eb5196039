"""``w.gather()``: the traces of all ranks, on every rank. The only collective of this package, and only where the user calls it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch import distributed

from ..checks.ranks.record import Rank, Ranks
from ..core import arguments
from ..core.formatting import first_line_of
from ..core.trace import Trace
from .merge_ranks import merge_ranks, merged, own_record

#: Seconds in a week.
LONGEST = 604_800.0


def gather(trace: Trace, *, group: Any = None, timeout: float = 300.0) -> Trace:
    """The merged trace, on every rank, see `watch.gather`."""
    arguments.number("timeout", timeout, above=0.0, most=LONGEST)
    known = trace.measured(Ranks)
    if known is not None and known.gathered:  # a test of several ranks has merged it already
        return trace
    if not (distributed.is_available() and distributed.is_initialized()):
        _refuse_if_there_are_others()
        return merge_ranks([trace])
    if distributed.get_world_size(group) == 1:
        return merge_ranks([trace])
    record = own_record(trace)
    with _on_cpu(group, timeout) as cpu:
        _all_here(cpu, timeout)
        sent = None if record is None else _sent(trace, record, first=distributed.get_rank(cpu) == 0)
        found: list[Any] = [None] * distributed.get_world_size(cpu)
        distributed.all_gather_object(found, sent, group=cpu)
    if missing := [i for i, text in enumerate(found) if text is None]:
        raise RuntimeError(
            f"w.gather(): rank {missing[0]} has no record ({trace.why_not_measured(Ranks)}): expected the with block of each rank to begin "
            "after torch.distributed.init_process_group()"
        )
    traces = [Trace.from_json(text) for text in found]
    return merged(traces, [_own(one) for one in traces])


def _own(trace: Trace) -> Rank:
    record = own_record(trace)
    assert record is not None
    return record


def _sent(trace: Trace, record: Rank, *, first: bool) -> str:
    """What a rank sends: the first all of its trace; the others their record, and their shards."""
    found = trace.measured(Ranks)
    assert found is not None
    sent = dataclasses.replace(trace, measurements={Ranks.probe: dataclasses.replace(found, ranks=(record,))})
    if first:
        return dataclasses.replace(sent, measurements={**trace.measurements, **sent.measurements}).to_json()
    sharded = {w.name for w in record.weights if w.sharded}
    tensors = tuple(t for t in trace.tensors if t.name in sharded)
    return dataclasses.replace(sent, tensors=tensors, buffers=(), iterations=(), steps=(), recorded=()).to_json()


def _refuse_if_there_are_others() -> None:
    """One process is fine; one of several that torchrun started, without a process group, is not."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world.isdigit() and int(world) > 1:
        raise RuntimeError(
            f"w.gather(): torch.distributed is not initialized, and WORLD_SIZE is {world}: call it before "
            "torch.distributed.destroy_process_group(), and after init_process_group()"
        )


@contextmanager
def _on_cpu(group: Any, timeout: float) -> Iterator[Any]:
    """A group of the same ranks whose collectives run on the CPU: the group itself, or a new one of gloo, which is destroyed again."""
    if distributed.get_backend(group) == distributed.Backend.GLOO:
        yield group
        return
    ranks = distributed.get_process_group_ranks(group if group is not None else distributed.group.WORLD)
    cpu = distributed.new_group(
        ranks, timeout=timedelta(seconds=timeout), backend="gloo", use_local_synchronization=group is not None
    )
    try:
        yield cpu
    finally:
        distributed.destroy_process_group(cpu)


def _all_here(group: Any, timeout: float) -> None:
    """`RuntimeError` that names the ranks that did not come."""
    try:
        distributed.monitored_barrier(group, timedelta(seconds=timeout), wait_all_ranks=True)
    except RuntimeError as error:
        raise RuntimeError(
            f"w.gather(): not all ranks called it within {timeout:g} s: it is a collective, to be called on every rank after the "
            f"with block ({first_line_of(error)})"
        ) from error
