"""A run that is too short for a check: the same fine-tune again with more steps, within a budget of seconds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from ..core import arguments
from ..core.formatting import number
from ..core.hypothesis_target import in_example
from ..core.trace import Trace
from ..core.verdict import Verdict

#: A longer run has this many times the steps of the run before it.
TIMES = 2
#: At most this many longer runs: 20 -> 40 -> 80 steps. Each is one more look at the same question, so that the chance of a wrong verdict
#: is at most three times that of one run; and all of them cost at most six times the first.
MOST = 2
#: The option that sets it.
OPTION = "--ftcheck-extend-seconds"


class BudgetedRuns:
    """The longer runs of one fine-tune, each made when a check needs it and kept for the others.

    :param seconds: they may take together; 0: there are none. ``max_seconds`` of the recipe limits the first run and these together.
    :param clock: measures the seconds that they take.
    :raises ValueError, TypeError: ``seconds`` is no finite number >= 0.

    >>> from pytest_ftcheck import example_trace
    >>> runs = BudgetedRuns(30)
    >>> trace = example_trace(lengthen=lambda steps, seconds: example_trace(), longer_runs=runs)
    >>> runs.after(trace, 0).losses == trace.losses, runs.after(trace, MOST), runs.ended
    (True, None, '2 longer runs are the most')
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        arguments.number("extend_seconds", seconds, least=0)
        self.seconds = seconds
        #: Why there is no further run; empty: there may be.
        self.ended = ""
        self._clock = clock
        self._runs: list[Trace] = []
        self._took: list[float] = []

    def spent(self, count: int) -> float:
        """Seconds that so many longer runs took."""
        return sum(self._took[:count])

    def after(self, trace: Trace, number: int) -> Trace | None:
        """The first (0), second (1), ... longer run of this fine-tune; None: there is none, and `ended` says why."""
        while len(self._runs) <= number and not self.ended:
            self.ended = self._run(trace)
        return self._runs[number] if number < len(self._runs) else None

    def _run(self, trace: Trace) -> str:
        """One more run; the reason where there is none."""
        if len(self._runs) == MOST:
            return f"{MOST} longer runs are the most"
        last, took = (self._runs[-1], self._took[-1]) if self._runs else (trace, trace.seconds)
        if trace.lengthen is None or last.recipe is None:
            return "the model is no longer at hand"
        steps, left = TIMES * last.recipe.steps, self._left(trace)
        if TIMES * took > left:
            return (
                f"{steps:,} steps would take about {number(TIMES * took)} s, and {number(max(left, 0))} s of the budget "
                "are left"
            )
        began = self._clock()
        try:
            longer = trace.lengthen(steps, left)
        except Exception as error:  # noqa: BLE001 - the user's code, run once more, may raise anything
            return f"a run of {steps:,} steps raised {type(error).__name__}"
        elapsed = self._clock() - began
        if longer.stopped is not None and elapsed >= left:
            return f"a run of {steps:,} steps was not complete after {number(left)} s"
        if not _same_start(trace, longer):
            return (
                f"a run of {steps:,} steps does not start as the first did: weights, batches or learning rates differ"
            )
        self._runs.append(longer)
        self._took.append(elapsed)
        return ""

    def _left(self, trace: Trace) -> float:
        """Seconds that the next run may take."""
        left = self.seconds - self.spent(MOST)
        if trace.recipe is not None and trace.recipe.max_seconds is not None:
            left = min(left, trace.recipe.max_seconds - trace.seconds - self.spent(MOST))
        return left


def _same_start(trace: Trace, longer: Trace) -> bool:
    """Whether both runs start from the same weights and the same batch, and follow the same learning rates where these are the user's."""
    # as text: a NaN is equal to itself there
    starts = [repr(([(t.name, t.first) for t in run.tensors], run.losses[:1])) for run in (trace, longer)]
    rates = [[step.lrs for step in run.steps[: len(trace.steps)]] for run in (trace, longer)]
    return starts[0] == starts[1] and ("schedule" in trace.recipe_in_force or rates[0] == rates[1])


def judged_longer(judge: Callable[[Trace], Verdict], trace: Trace, verdict: Verdict) -> Verdict:
    """The verdict; where it is inconclusive, that of the first longer run which decides, if the run may be extended.

    Only an inconclusive verdict is taken up, so that no failure becomes a pass. The headline names the steps, a note has the first verdict.
    What could not be measured is not measured in more steps, and the examples of hypothesis have the steps that it chose.

    :param judge: the check, with its arguments.

    >>> from pytest_ftcheck import example_trace
    >>> few = Verdict("loss_decreases", "inconclusive", "20 steps are too few.")
    >>> longer = lambda steps, seconds: example_trace(recipe=dataclasses.replace(example_trace().recipe, steps=steps))
    >>> trace = example_trace(lengthen=longer, longer_runs=BudgetedRuns(30))
    >>> judged_longer(lambda trace: Verdict("loss_decreases", "pass", "It fell."), trace, few).headline
    'Extended, 20 -> 40 steps: It fell.'
    """
    runs = trace.longer_runs
    if runs is None or not _may_be_extended(trace, verdict):
        return verdict
    latest, steps = verdict, [_steps(trace)]
    while latest.status == "inconclusive" and (longer := runs.after(trace, len(steps) - 1)) is not None:
        found = judge(longer)
        if found.unmeasured or found.status == "skipped":
            break
        latest = found
        steps.append(_steps(longer))
    made = len(steps) - 1
    ended = [f"not extended{' further' * bool(made)}: {runs.ended or 'the longer run judged nothing'}"]
    notes = ended if latest.status == "inconclusive" else []
    if made:
        took = f"{made} longer {'run' if made == 1 else 'runs'} took {number(runs.spent(made))} s"
        before = f"after {steps[0]:,} steps: inconclusive. {verdict.headline}"
        notes = [before, f"{took} of the {number(runs.seconds)} s of {OPTION}", *notes]
    headline = f"Extended, {' -> '.join(f'{s:,}' for s in steps)} steps: {latest.headline}" if made else latest.headline
    return dataclasses.replace(latest, headline=headline, notes=(*latest.notes, *notes), extended=tuple(steps))


def _may_be_extended(trace: Trace, verdict: Verdict) -> bool:
    return (
        verdict.status == "inconclusive"
        and not verdict.unmeasured
        and trace.lengthen is not None
        and trace.stopped is None
        and not in_example()
    )


def _steps(trace: Trace) -> int:
    return len(trace.iterations) if trace.recipe is None else trace.recipe.steps
