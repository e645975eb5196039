"""How much an alteration of the base weighs: a fault where it harms the run, else advice."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...core.formatting import number, percent
from ...core.observations import Metric
from ...core.trace import Trace
from ...core.verdict import Status
from ..learning import loss_fell
from .base_twin_record import BaseTwin
from .readout_record import Readout

#: p-value of the rows that only the unaltered features get right, from which these are the better ones. `benchmarks/readout.py`, seeds 0 to
#: 2: 2 of 400 pairs of equally good features are beyond it, and none loses a third besides.
CHANCE = 0.001
#: Share of what the features say of the labels from which its loss is a harm. `benchmarks/readout.py`, MiniLM, seeds 0 to 2: 7 operators
#: take 0.40 or more, and their runs end at 0.33 to 0.69 right answers (clean: 0.83); 7 take at most 0.30, and end at 0.66 to 0.84.
LOST = 1 / 3
#: p-value of a metric that beats its baseline, from which the run has learnt: less strict than that of `metric_improves`, since a run that
#: learns is not failed here.
ALPHA = 0.05
#: The note where it is not known.
UNKNOWN = "whether the run learns is not known: there is no metric with a baseline, and no loss on a probe"
NOT_MEASURED = "whether the alteration makes the features worse for this task was not measured"


@dataclass(frozen=True)
class Harm:
    """The status of a verdict on an alteration, and what it says of it."""

    status: Status
    #: What was measured, after a space; empty: nothing.
    sentence: str = ""
    limit: str = ""
    notes: tuple[str, ...] = ()

    @property
    def notes_on_learning(self) -> tuple[str, ...]:
        """The notes on an alteration that is not measured in the features: it shows in training alone, or there is no unaltered one."""
        return tuple(note for note in self.notes if note != NOT_MEASURED)


def harm_of_alteration(trace: Trace) -> Harm:
    """A fault where the run does not learn, or where a linear layer on the unaltered features does better than on the altered ones, and
    better than the whole run.

    >>> from pytest_ftcheck import example_trace
    >>> harm_of_alteration(example_trace()).status
    'advice'
    """
    learnt, readout = _learns(trace), readout_of(trace)
    if learnt is False:
        return Harm("fail", _sentence(readout, None))
    if learnt is None:
        return Harm("advice", notes=(UNKNOWN,))
    if readout is None:
        return Harm("advice", notes=(NOT_MEASURED,))
    end = next((m for m in trace.metrics if m.name == "accuracy" and m.source != "the user's own"), None)
    worse = readout.p_value < CHANCE and readout.lost >= LOST
    if worse and end is not None and readout.trained >= readout.fitted and _below(end, readout.unaltered):
        limit = f"a fault from a third of what the unaltered features say, lost with p < {CHANCE:g}, if the run ends below the linear layer"
        return Harm("fail", _sentence(readout, end), limit)
    return Harm("advice", _sentence(readout, end))


def readout_of(trace: Trace) -> Readout | None:
    """What a linear layer reads off the features; None: not measured."""
    twins = trace.measured(BaseTwin)
    return None if twins is None else twins.readout


def _below(metric: Metric, share: float) -> bool:
    """Whether so few right answers would be rare (a twentieth of the cases) if each row's chance were ``share``."""
    right = round(metric.last * metric.rows)
    if not 0 < share < 1:
        return metric.last < share
    logs = (math.log(share), math.log1p(-share))
    return sum(_probability(k, metric.rows, *logs) for k in range(right + 1)) <= ALPHA


def _probability(k: int, n: int, log_right: float, log_wrong: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * log_right + (n - k) * log_wrong)


def _sentence(readout: Readout | None, end: Metric | None) -> str:
    if readout is None:
        return ""
    ends = f"; the run ends at {percent(end.last)}" if end is not None else ""
    return (
        f" At the start a linear layer on the base's features gets {percent(readout.altered)} of {readout.rows} rows right, and "
        f"{percent(readout.unaltered)} on those of the unaltered base (p = {number(readout.p_value)}){ends}."
    )


def _learns(trace: Trace) -> bool | None:
    """Whether a metric beats its baseline, or the loss ends below the class priors'; None: neither is known."""
    known: list[bool] = []
    for m in trace.metrics:
        if m.baseline is not None:
            known.append(m.last > m.baseline and (m.p_value is None or m.p_value <= ALPHA))
    if (fell := loss_fell(trace)) is not None:
        known.append(fell)
    return any(known) if known else None
