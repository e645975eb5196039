"""The traces of all ranks of a run as one: a pure function of traces, wherever they were measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ..checks.ranks.record import Rank, RankGroup, RankRun, Ranks, RankWeights
from ..core.formatting import plural
from ..core.observations import Tensor
from ..core.trace import Trace
from .merge_shards import merge_shards

#: Steps whose learning rates are kept of each rank.
MOST_RATES = 1024


def merge_ranks(traces: Sequence[Trace]) -> Trace:
    """The trace of the first rank, with the records of all ranks; tensors that are sharded are merged.

    A single trace of a run without other ranks is returned with a note.

    :param traces: one trace a rank, in any order, as `watch` or `finetune` made them.
    :raises ValueError: no trace; a trace without a record of its rank; a rank that is missing or comes twice.
    """
    if not traces:
        raise ValueError("traces is empty: expected the trace of each rank")
    if len(traces) == 1 and traces[0].measured(Ranks) is None:
        return dataclasses.replace(
            traces[0], notes=(*traces[0].notes, "one process trained: there are no ranks to gather")
        )
    records = [_record_of(trace, place) for place, trace in enumerate(traces)]
    order = sorted(range(len(traces)), key=lambda place: records[place].rank)
    numbers = [records[place].rank for place in order]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"traces: the ranks {numbers} come twice: expected one trace a rank")
    return merged([traces[place] for place in order], [records[place] for place in order])


def merged(traces: Sequence[Trace], records: Sequence[Rank]) -> Trace:
    """The trace of the first rank with all records; of the other traces only ``tensors`` are read, and only where tensors are sharded."""
    first = traces[0]
    note = f"gathered from {plural(len(records), 'rank')}"
    return dataclasses.replace(
        first,
        tensors=_tensors(traces, records),
        measurements={**first.measurements, Ranks.probe: Ranks(len(records), tuple(records), gathered=True)},
        skipped={name: why for name, why in first.skipped.items() if name != Ranks.probe},
        notes=(*first.notes, note),
    )


def own_record(trace: Trace) -> Rank | None:
    """The record of the rank that a trace was measured on, with what the trace says of the run; None: it has none."""
    found = trace.measured(Ranks)
    if found is None or len(found.ranks) != 1:
        return None
    rank = found.ranks[0]
    return rank if rank.run is not None else dataclasses.replace(rank, run=_run(trace))


def _record_of(trace: Trace, place: int) -> Rank:
    record = own_record(trace)
    if record is not None:
        return record
    found = trace.measured(Ranks)
    if found is not None:
        raise ValueError(f"traces[{place}] is merged already: expected the trace of one rank")
    raise ValueError(
        f"traces[{place}] has no record of its rank ({trace.why_not_measured(Ranks)}): expected a trace that was measured while "
        "torch.distributed was initialized"
    )


def _run(trace: Trace) -> RankRun:
    every = 1
    while len(range(0, len(trace.steps), every)) > MOST_RATES:
        every *= 2
    at = tuple(range(0, len(trace.steps), every))
    return RankRun(
        steps=len(trace.steps),
        groups=tuple(RankGroup(group.weight_decay, group.settings) for group in trace.optimizer.groups),
        lrs_at=at,
        lrs=tuple(trace.steps[i].lrs for i in at),
        first_nonfinite_loss=next(
            (i for i, one in enumerate(trace.iterations) if one.loss is not None and not math.isfinite(one.loss)), None
        ),
        iterations=len(trace.iterations),
        stopped=trace.stopped,
    )


def _tensors(traces: Sequence[Trace], records: Sequence[Rank]) -> tuple[Tensor, ...]:
    """Those of the first rank; where a tensor is sharded, all shards of it."""
    sharded = {w.name for w in records[0].weights if w.sharded}
    if not sharded:
        return traces[0].tensors
    of_rank = [{t.name: t for t in trace.tensors} for trace in traces]
    held = [{w.name: w for w in record.weights} for record in records]
    everywhere = sharded.intersection(*of_rank, *held)
    return tuple(
        _whole([(named[t.name], weights[t.name]) for named, weights in zip(of_rank, held, strict=True)])
        if t.name in everywhere
        else t
        for t in traces[0].tensors
    )


def _whole(shards: Sequence[tuple[Tensor, RankWeights]]) -> Tensor:
    """All of a tensor, each part of it once: ranks may hold copies of one part (``fully_shard`` on a mesh of two dimensions)."""
    once = {weights.part: (tensor, weights.elements) for tensor, weights in reversed(shards)}
    found = [once[part] for part in dict.fromkeys(weights.part for _, weights in shards)]
    return merge_shards([tensor for tensor, _ in found], [count for _, count in found])
