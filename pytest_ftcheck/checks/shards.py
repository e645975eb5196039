"""What may be concluded from the shards that one rank holds of tensors: that something is there, seldom that it is missing."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from ..core.formatting import plural
from ..core.observations import Tensor
from ..core.trace import Trace
from ..core.verdict import Verdict

P = ParamSpec("P")
#: What settles it.
GATHER = "call w.gather() on every rank after the block: it merges the shards, and the merged trace is judged"


def careful_with_shards(
    function: Callable[Concatenate[Trace, P], Verdict], *, of_values: bool
) -> Callable[Concatenate[Trace, P], Verdict]:
    """The check, which fails no sharded tensor for what this rank's part of it lacks.

    The rows of an embedding that no token of the batches needs have no gradient, and a bias of two elements leaves most ranks without one.
    A failure that rests on such shards alone is ``inconclusive``.

    :param of_values: the check judges values or gradients of the tensors: a note says that they are those of shards.
    """

    @functools.wraps(function)
    def judge(trace: Trace, /, *arguments: P.args, **options: P.kwargs) -> Verdict:
        verdict = function(trace, *arguments, **options)
        sharded = sum(t.shard is not None for t in trace.tensors)
        if not sharded or verdict.status == "skipped":
            return verdict
        if verdict.status == "fail":
            verdict = _without_undecided(verdict, trace, lambda decided: function(decided, *arguments, **options))
        if not of_values:
            return verdict
        note = f"{sharded} of {plural(len(trace.tensors), 'tensor')} are sharded: what is said of them is said of this rank's shards"
        return dataclasses.replace(verdict, notes=(*verdict.notes, note))

    return judge


def _without_undecided(verdict: Verdict, trace: Trace, again: Callable[[Trace], Verdict]) -> Verdict:
    """The failure, if there is one without the shards that decide nothing; else it is inconclusive."""
    alive = any(t.gradients.max_norm > 0 for t in trace.tensors)
    decided = tuple(t for t in trace.tensors if not _undecided(t, alive=alive))
    if len(decided) == len(trace.tensors):
        return verdict
    try:
        found = again(dataclasses.replace(trace, tensors=decided))
    except ValueError:  # nothing is left of the selection
        found = None
    if found is not None and found.status == "fail":
        return found
    headline = f"This rank's shards do not decide it: {verdict.headline}"
    return dataclasses.replace(
        verdict, status="inconclusive", headline=headline, causes=(), remedy=GATHER, fault="", margin=None
    )


def _undecided(tensor: Tensor, *, alive: bool) -> bool:
    """A shard without elements; and one whose gradients were all zero, where another tensor's were not (``alive``)."""
    if tensor.shard is None:
        return False
    g = tensor.gradients
    return not math.prod(tensor.shard) or (alive and g.max_norm == 0 and g.none < g.steps)
