"""The seeds of a fine-tune on an executor: what travels there, and how a trace that comes back becomes one of this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

from torch import nn

from ..core import events
from ..core.recipe import Recipe
from ..core.trace import Trace
from ..instruments.task_readers.interface import TaskReader
from ..instruments.task_readers.registered import registered_tasks, tasks_alone
from ..seeds.executors import Task, Workers, workers_of
from ..seeds.runs import Runs
from ..seeds.spread import AHEAD, AHEAD_AUTO, Spread
from ..seeds.sprt import Seeds, SeedTest
from .data_order import reordered
from .finetune_arguments import OwnArguments
from .payload import packed
from .repeatable import keep_repeatable
from .worker import opened, origin, work_there

#: torch's threads in a worker where the recipe names none: workers share a machine, and threads beyond its processors slow each other down.
THREADS = 1


class SeedsOnExecutor:
    """``(seed, steps) -> Trace``, computed by workers; the arguments are those of `finetune_seeds`, and packed once.

    No part of it refers to it, so that an executor that was made for it is shut down as soon as nobody holds it.
    """

    def __init__(
        self,
        finetune: Callable[..., Trace],
        finetune_seeds: Callable[..., Runs],
        executor: Any,
        seeds: Seeds,
        model: Any,
        batches: Any,
        recipe: Recipe,
        own: OwnArguments,
    ) -> None:
        workers, _ = workers_of(executor)
        _refuse_hooked(own.get("optimizer"))
        payload = packed({"model": model, "batches": batches, "recipe": recipe, **own, **_tasks()})
        self._jobs = _Jobs(workers, payload, recipe.threads or THREADS, finetune)
        self._recipe = recipe
        self._holds_model = isinstance(model, nn.Module)
        self._more_seeds = lambda count: finetune_seeds(finetune, count, model, batches, recipe, own, workers)
        few = seeds == "auto" or recipe.max_seconds is not None
        self._spread = Spread(
            self._jobs.begin,
            first=recipe.seed,
            steps=recipe.steps,
            count=SeedTest().most if seeds == "auto" else seeds,
            block=AHEAD_AUTO if few else AHEAD,
        )

    def __call__(self, seed: int, steps: int) -> Trace:
        """Wait for the trace, and treat it as one that was made here."""
        found = opened(self._spread.answer(seed, steps))
        trace = Trace.from_json(found["trace"])
        if listener := events.current():
            listener.traced(trace)
        with events.repeating((seed, steps) != (self._recipe.seed, self._recipe.steps)):
            events.run_ended(
                trace, events.Rerun(lambda: str(found["data"]), self._more_seeds, lambda: found["evaluation"])
            )
        # as here: checks find the same traces able to be measured again
        keep_repeatable(trace, _Remeasured(self._jobs, seed, steps), None, holds_model=self._holds_model)
        return trace

    def cancel(self) -> None:
        """Cancel what has been begun ahead."""
        self._spread.cancel()


@dataclasses.dataclass(frozen=True)
class _Jobs:
    """Begins seeds on the workers."""

    workers: Workers
    payload: bytes
    threads: int
    finetune: Callable[..., Trace]

    def begin(self, seed: int, steps: int, probes: tuple[str, ...] | None = None) -> Task:
        job = {"seed": seed, "steps": steps, "probes": probes}
        arguments = (train_seed, origin(), self.payload, self.threads, self.finetune, job)
        return Task(self.workers, f"seed {seed}", work_there, *arguments)


class _Remeasured:
    """Trains a seed again on the workers with one probe, once for each probe."""

    def __init__(self, jobs: _Jobs, seed: int, steps: int) -> None:
        self._jobs, self._seed, self._steps = jobs, seed, steps
        self._measured: dict[str, Trace] = {}

    def __call__(self, probe: str) -> Trace:
        if probe not in self._measured:
            answer = self._jobs.begin(self._seed, self._steps, probes=(probe,)).result()
            self._measured[probe] = Trace.from_json(opened(answer)["trace"])
        return self._measured[probe]


def train_seed(arguments: dict[str, Any], finetune: Callable[..., Trace], job: dict[str, Any]) -> dict[str, Any]:
    """In a worker: one seed.  :param arguments: of `finetune`, as packed.  :param job: ``seed``, ``steps``, and ``probes`` or None."""
    model, batches, recipe = (arguments.pop(name) for name in ("model", "batches", "recipe"))
    tasks = arguments.pop("register_task", registered_tasks())
    own = cast("OwnArguments", arguments)
    if job["probes"] is not None:
        own["probes"] = job["probes"]
    of_seed = dataclasses.replace(recipe, seed=job["seed"], steps=job["steps"])
    hashes, other = _Hashes(), (of_seed.seed, of_seed.steps) != (recipe.seed, recipe.steps)
    with (
        tasks_alone(tasks),
        events.listening(hashes),
        events.repeating(other),
        reordered(batches, of_seed.seed, recipe.seed) as source,
    ):
        trace = finetune(model, source, of_seed, **own)
    return {"trace": trace.to_json(), "data": hashes.data, "evaluation": hashes.evaluation}


def _tasks() -> dict[str, tuple[TaskReader, ...]]:
    """The user's task readers, for the workers; under the name by which they were registered, which an error names."""
    tasks = registered_tasks()
    return {"register_task": tasks} if tasks else {}


class _Hashes(events.ProgressOnly):
    """Notes what the data of a run were, for a baseline in the process that asked for it."""

    def __init__(self) -> None:
        super().__init__(None)
        self.data: str | None = None
        self.evaluation: str | None = None

    def run_ended(self, trace: Trace, rerun: events.Rerun | None) -> None:  # noqa: ARG002
        """While the batches are in memory."""
        if rerun is not None:
            self.data = rerun.data()
            self.evaluation = None if rerun.evaluation is None else rerun.evaluation()


def _refuse_hooked(optimizer: Any) -> None:
    """:raises TypeError: an optimizer with hooks, which torch leaves out when it pickles one: another training would come of it."""
    if isinstance(optimizer, str) or not hasattr(optimizer, "param_groups"):
        return
    if any(getattr(optimizer, f"_optimizer_step_{when}_hooks", None) for when in ("pre", "post")):
        raise TypeError(
            f"optimizer cannot be sent to the executor's workers: the hooks of this {type(optimizer).__name__} would stay behind: "
            "pass a function (model) -> optimizer that registers them"
        )
