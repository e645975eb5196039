"""The same fine-tune under several seeds, each trained on first access and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from ..core import arguments
from ..core.formatting import describe_type, plural
from ..core.recipe import Recipe
from ..core.serialization import encode
from ..core.trace import Trace
from .sprt import Seeds, SeedTest, check_seeds

#: An inconclusive seed is run again with this many times the steps, once.
LONGER = 2


class Runs(Sequence[Trace]):
    """The same fine-tune under the seeds ``s, s + 1, ...``: what ``finetune(..., seeds=)`` returns.

    A sequence of traces, each trained on first access: ``runs[0]`` has the recipe's own seed. Every ``check_x`` and ``assert_x``,
    ``diagnose`` and ``assert_healthy`` accept it in place of a trace, and judge over seeds; Wald's sequential test decides how many are
    needed. Everything else (``runs.losses``, ``print(runs)``) reads the trace of the first seed.

    :param train: ``(seed, steps) -> Trace``.  :param recipe: of the first seed.  :param seeds: a number >= 3, or ``"auto"``.
    :param varies: what differs from seed to seed, in words.  :param no_longer: why no run can have more steps; None: it can.
    :param same_start: all seeds must start from the same weights.  :param calibrating: only statistics are collected.
    :param cancel: cancels seeds that are being trained ahead; None: none are.
    :raises ValueError, TypeError: too few seeds for a verdict.

    >>> from pytest_ftcheck import Recipe, example_trace
    >>> runs = Runs(lambda seed, steps: example_trace(), Recipe(), 3)
    >>> len(runs), len(runs.traces), runs[2].losses[0], len(runs.traces)
    (3, 0, 0.7, 1)
    """

    def __init__(
        self,
        train: Callable[[int, int], Trace],
        recipe: Recipe,
        seeds: Seeds,
        *,
        varies: Sequence[str] = (),
        no_longer: str | None = None,
        same_start: bool = False,
        calibrating: bool = False,
        cancel: Callable[[], None] | None = None,
    ) -> None:
        #: Number of seeds, or ``"auto"``: as many as the test needs.
        self.seeds: Seeds = check_seeds(seeds)
        if not callable(train):
            raise TypeError(f"train is {describe_type(train)}: expected a callable (seed, steps) -> Trace")
        arguments.callables(cancel=cancel)
        arguments.instance("recipe", recipe, Recipe, "a pytest_ftcheck.Recipe")
        arguments.text("no_longer", no_longer, optional=True)
        arguments.flag("same_start", same_start)
        arguments.flag("calibrating", calibrating)
        #: The recipe of the first seed.
        self.recipe = recipe
        #: What differs from seed to seed.
        self.varies = arguments.texts("varies", varies)
        #: Only the checks' statistics are collected (``--ftcheck-calibrate``).
        self.calibrating = calibrating
        #: Why no seed can be run longer; None: it can.
        self.no_longer = no_longer
        self._train = train
        if cancel is not None and not callable(cancel):
            raise TypeError(
                f"cancel is of type {type(cancel).__name__}: expected a function without arguments, or None"
            )
        self._cancel = cancel
        if cancel is not None:
            weakref.finalize(self, cancel)
        self._same_start = same_start
        self._traces: dict[int, Trace] = {}
        self._longer: dict[int, Trace | None] = {}
        self._digests: dict[int, str] = {}

    # ------------------------------------------------------------------ a sequence
    def __len__(self) -> int:
        """The largest number of seeds."""
        return SeedTest().most if self.seeds == "auto" else self.seeds

    @overload
    def __getitem__(self, i: int) -> Trace: ...
    @overload
    def __getitem__(self, i: slice) -> list[Trace]: ...
    def __getitem__(self, i: int | slice) -> Trace | list[Trace]:
        """The trace of the i-th seed, trained now unless it was before."""
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        k = i + len(self) if i < 0 else i
        if not 0 <= k < len(self):
            raise IndexError(f"seed number {i} of {len(self)}")
        if k not in self._traces:
            trace = self._train(self.seed(k), self.recipe.steps)
            if not isinstance(trace, Trace):
                raise TypeError(f"train returned {describe_type(trace)}: expected a Trace")
            self._check_start(k, trace)
            self._traces[k] = trace
        return self._traces[k]

    def __iter__(self) -> Iterator[Trace]:
        return (self[i] for i in range(len(self)))

    def __getattr__(self, name: str) -> Any:
        # called for names that are not found here: a test written for one run reads the first seed's trace
        if name.startswith("_") or not (hasattr(Trace, name) or name in Trace.__dataclass_fields__):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self[0], name)

    def __repr__(self) -> str:
        trained = f"{len(self.traces)} of {'up to ' if self.seeds == 'auto' else ''}{len(self)} seeds trained"
        return f"<Runs: {trained}; seed {self.recipe.seed}: {self[0]!r}>"

    def __str__(self) -> str:
        """The first seed's trace, and a line for each other seed."""
        rest = [f"seed {self.seed(i)}: {self._traces[i]!r}" for i in sorted(self._traces) if i]
        return "\n".join([str(self[0]), *rest])

    # ------------------------------------------------------------------ for the judge
    @property
    def traces(self) -> tuple[Trace, ...]:
        """Traces so far, in the order of their seeds, without the longer runs."""
        return tuple(self._traces[i] for i in sorted(self._traces))

    def seed(self, i: int) -> int:
        """The seed of the i-th run."""
        arguments.whole("i", i, least=0)
        return self.recipe.seed + i

    def cancel(self) -> None:
        """Cancel the seeds that an executor trains ahead, as far as they have not begun; one that is read later is trained then.

        >>> from pytest_ftcheck import Recipe, example_trace
        >>> cancelled = []
        >>> Runs(lambda seed, steps: example_trace(), Recipe(), 3, cancel=lambda: cancelled.append("the rest")).cancel()
        >>> cancelled[0]
        'the rest'
        """
        if self._cancel is not None:
            self._cancel()

    @property
    def all_traces(self) -> tuple[Trace, ...]:
        """Traces so far, followed by those of the longer runs."""
        return (*self.traces, *(t for t in self._longer.values() if t is not None))

    @property
    def spent(self) -> float:
        """Seconds that all runs took so far, including the longer ones."""
        return sum(t.seconds for t in self.all_traces)

    def affords(self, i: int, times: float = 1) -> bool:
        """Whether the i-th seed is trained, or fits into ``max_seconds`` if it takes as long as the slowest run so far."""
        arguments.whole("i", i, least=0)
        arguments.number("times", times, least=0)
        limit = self.recipe.max_seconds
        if limit is None or self.calibrating or (times == 1 and i in self._traces) or not self._traces:
            return True
        return self.spent + times * max(t.seconds for t in self._traces.values()) <= limit

    def longer(self, i: int) -> Trace | None:
        """The i-th seed with twice the steps, for an inconclusive one; None where that is not possible."""
        arguments.whole("i", i, least=0, most=len(self) - 1)
        if i not in self._longer:
            if self.calibrating or self.no_longer is not None or self[i].stopped is not None:
                return None
            if not self.affords(i, LONGER):
                return None
            try:
                self._longer[i] = self._train(self.seed(i), LONGER * self.recipe.steps)
            except Exception as error:  # noqa: BLE001 - the user's code need not support a longer run
                self.no_longer = f"a run of {LONGER * self.recipe.steps:,} steps raised {type(error).__name__}"
                self._longer[i] = None
        return self._longer[i]

    @property
    def identical(self) -> bool:
        """Whether the first two seeds gave identical measurements, so that the seed has no influence."""
        if not {0, 1} <= set(self._traces):
            return False
        for i in (0, 1):
            if i not in self._digests:
                self._digests[i] = digest(self._traces[i], seed=False)
        return self._digests[0] == self._digests[1]

    def _check_start(self, k: int, trace: Trace) -> None:
        """``ValueError`` if a module that was handed over has been changed since the first seed."""
        first = self._traces.get(0)
        if not self._same_start or first is None:
            return
        before = {t.name: t.first for t in first.tensors}
        # compared as text: a NaN is equal to itself there
        changed = [t.name for t in trace.tensors if repr(before.get(t.name)) != repr(t.first)]
        if changed or len(trace.tensors) != len(first.tensors):
            raise ValueError(
                f"model: its weights have changed since seed {self.seed(0)} "
                f"({plural(len(changed), 'tensor')}, {', '.join(changed[:1])}), and seed {self.seed(k)} must start from the same weights: "
                "do not change the module while its runs are judged, or pass a function that makes one"
            )


def one_trace(trace: Trace | Runs) -> Trace:
    """The trace itself, of several seeds that of the first.

    :raises TypeError: it is neither.
    """
    if isinstance(trace, Runs):
        return trace[0]
    arguments.instance("trace", trace, Trace, "a trace from finetune() or watch()")
    return trace


def digest(trace: Trace, *, seed: bool = True) -> str:
    """Fingerprint of everything measured: equal for two runs that are identical bit for bit, seconds excluded.

    :param seed: include the recipe's seed.

    >>> from pytest_ftcheck import example_trace
    >>> digest(example_trace()) == digest(example_trace(seconds=9.0))
    True
    """
    if not seed and trace.recipe is not None:
        trace = dataclasses.replace(trace, recipe=dataclasses.replace(trace.recipe, seed=0))
    plain = encode(dataclasses.replace(trace, seconds=0.0, training_seconds=0.0))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


#: The note of a trace whose batches are not those of another run, so that another run may differ.
DRAWN_TWICE = (
    "the first batch differs when it is drawn twice from the same random states: a generator that cannot be found, or the system's, "
    "decides what is trained on, and another run gives other numbers"
)


def repeatable(measured: Trace | Runs) -> str:
    """Why a rerun gives the same result, as one line; empty where it may differ.

    It holds for complete runs of ``finetune`` on a CPU: all random states are seeded, and the probes' budget is counted in work, not in
    seconds. It is not claimed for the user's own loop, for a GPU, or where a time limit may have left something out.

    >>> from pytest_ftcheck import example_trace
    >>> repeatable(example_trace(environment={"device": "cpu"})).partition(";")[0]
    'deterministic: do not re-run'
    """
    traces = measured.traces if isinstance(measured, Runs) else (measured,)
    if isinstance(measured, Runs) and measured.recipe.max_seconds is not None:
        return ""
    seeds = [t.recipe.seed for t in traces if t.recipe is not None and _repeatable(t)]
    if not seeds or len(seeds) < len(traces):
        return ""
    which = f"seed {seeds[0]}" if len(seeds) == 1 else f"the seeds {seeds[0]} to {seeds[-1]}"
    return (
        f"deterministic: do not re-run; all random states start from {which}: the same model and batches give this verdict again, "
        "bit for bit, on this machine"
    )


def _repeatable(trace: Trace) -> bool:
    if trace.source != "finetune" or trace.recipe is None or trace.environment.get("device") != "cpu":
        return False
    if DRAWN_TWICE in trace.notes:
        return False
    if trace.recipe.max_seconds is None:
        return True
    cut = "max_seconds" in (trace.stopped or "") or any("max_seconds" in why for why in trace.skipped.values())
    return not cut and not any(found.timed for found in trace.measurements.values())
