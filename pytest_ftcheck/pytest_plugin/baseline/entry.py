"""One run in a baseline: its numbers, their spread over seeds, and the fingerprint of its setup."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...core.trace import Trace
from ...seeds.runs import digest
from .fingerprint import DIGITS
from .measures import SECONDS, Measure, measures

#: Significant digits in the file: of a value, and of a standard deviation.
VALUE_DIGITS, SPREAD_DIGITS = 5, 2


@dataclass(frozen=True)
class RecordedMeasure:
    """One number, as the file has it."""

    #: Mean over the seeds; of numbers on a logarithmic scale the geometric mean.
    mean: float
    #: Standard deviation over the seeds; on a logarithmic scale that of the natural logarithm.
    sd: float
    #: Degrees of freedom of ``sd``; None: one less than there are seeds.
    df: float | None = None


@dataclass(frozen=True)
class Entry:
    """One run of a baseline."""

    fingerprint: dict[str, str]
    #: Of everything measured under the recipe's own seed.
    digest: str
    #: Runs behind the numbers.
    seeds: int
    measures: dict[str, RecordedMeasure]
    #: Explain a difference and are not compared: steps, sum of the learning rates, trainable tensors, first loss.
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def comparisons(self) -> int:
        """How many numbers are compared by their spread: all but the seconds."""
        return len(self.measures.keys() - {SECONDS})


class Unrecordable(Exception):
    """The run makes no baseline entry; the message says why."""


def short_digest(trace: Trace) -> str:
    """Digest of everything measured, seconds excluded."""
    return digest(trace)[: 2 * DIGITS]


def facts(trace: Trace) -> dict[str, float]:
    """Numbers that explain a difference and are not compared, named as in `run_metrics`.

    >>> from pytest_ftcheck import example_trace
    >>> facts(example_trace())["steps"]
    20.0
    """
    found = {"steps": float(len(trace.steps)), "trainable": float(sum(t.trainable for t in trace.tensors))}
    if trace.optimizer.groups:
        found["lr.sum"] = _rounded(max(g.lr_sum for g in trace.optimizer.groups), VALUE_DIGITS)
    if trace.losses:
        found["loss.initial"] = _rounded(trace.losses[0], VALUE_DIGITS)
    return found


def entry_of(traces: Sequence[Trace], fingerprint: Mapping[str, str]) -> Entry:
    """From the same fine-tune under several seeds, the recipe's own first; or from one run that cannot be repeated.

    :raises Unrecordable: the run ended early, or has numbers that are not finite.

    >>> from pytest_ftcheck import example_trace
    >>> entry_of([example_trace()] * 3, {}).measures["motion.head"]
    RecordedMeasure(mean=0.25, sd=0.0, df=None)
    """
    for trace in traces:
        if trace.stopped is not None:
            raise Unrecordable(f"it ended early ({trace.stopped})")
    found = [measures(trace) for trace in traces]
    # of the two drops of the loss the less noisy one; from a single run the one whose noise is known
    redundant = "training_loss.drop" if len(traces) > 1 and "loss.drop" in found[0] else "loss.drop"
    recorded = {}
    for name, first in found[0].items():
        if name == redundant or not all(name in other for other in found):
            continue
        measure = _recorded(name, [other[name] for other in found], first)
        if measure is not None:
            recorded[name] = measure
        elif not math.isfinite(first.value):
            raise Unrecordable(f"{name} is {first.value}")
    if not recorded.keys() - {SECONDS}:
        raise Unrecordable("it has no measurement that could be compared")
    return Entry(dict(fingerprint), short_digest(traces[0]), len(traces), recorded, facts(traces[0]))


def _recorded(name: str, values: Sequence[Measure], first: Measure) -> RecordedMeasure | None:
    numbers = [m.value for m in values]
    if not all(map(math.isfinite, numbers)):
        return None
    logarithmic = first.scale == "log"
    if logarithmic and min(numbers) <= 0:
        # zero under every seed is compared with zero; zero under some seeds cannot be compared
        return RecordedMeasure(0.0, 0.0) if max(numbers) == 0 else None
    scaled = [math.log(n) for n in numbers] if logarithmic else numbers
    mean = statistics.fmean(scaled)
    shown = _rounded(math.exp(mean) if logarithmic else mean, VALUE_DIGITS)
    if len(values) > 1:
        return RecordedMeasure(shown, _rounded(statistics.stdev(scaled), SPREAD_DIGITS))
    if name == SECONDS:  # the tolerance of the seconds is not taken from their spread
        return RecordedMeasure(shown, 0.0)
    if first.noise is None:
        return None
    return RecordedMeasure(shown, _rounded(first.noise.sd, SPREAD_DIGITS), _rounded(first.noise.df, SPREAD_DIGITS))


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
