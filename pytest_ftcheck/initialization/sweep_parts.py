"""A sweep on an executor: a part of its seeds in each task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..seeds.executors import Task, workers_of
from ..training.payload import packed
from ..training.worker import opened, origin, work_there
from .result import SweepResult

#: torch's threads in a worker: groups of heads are computed with one each anyway.
THREADS = 1


def sweep_parts(
    sweep: Callable[..., SweepResult], executor: Any, arguments: dict[str, Any], parts: Sequence[tuple[int, ...]]
) -> list[SweepResult]:
    """The sweeps of the parts, in their order; an executor that is made here is shut down at the end.

    :param arguments: of ``sweep``, by name, without the seeds.  :param parts: the seeds of each task.
    """
    workers, ours = workers_of(executor)
    payload = packed(arguments)
    tasks: list[Task] = []
    try:
        for seeds in parts:
            name = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
            tasks.append(Task(workers, name, work_there, sweep_part, origin(), payload, THREADS, sweep, list(seeds)))
        return [SweepResult.from_json(opened(task.result())["sweep"]) for task in tasks]
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
    finally:
        if ours:
            workers.close()


def sweep_part(arguments: dict[str, Any], sweep: Callable[..., SweepResult], seeds: list[int]) -> dict[str, Any]:
    """In a worker: the sweep of some seeds."""
    return {"sweep": sweep(**arguments, seeds=seeds).to_json()}
