"""One run's line in a baseline: its numbers, how far seeds scatter them, and what it was made of."""

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
class Kept:
    """One number, as the file keeps it."""

    #: Mean over the seeds; of numbers on a logarithmic scale the geometric mean.
    mean: float
    #: Standard deviation over the seeds; on a logarithmic scale that of the natural logarithm.
    sd: float
    #: Degrees of freedom behind ``sd``; None: one less than there are seeds.
    df: float | None = None


@dataclass(frozen=True)
class Entry:
    """What a baseline knows of one run."""

    fingerprint: dict[str, str]
    #: Of everything measured under the recipe's own seed.
    digest: str
    #: Runs behind the numbers.
    seeds: int
    measures: dict[str, Kept]
    #: What explains a difference, and is not judged: steps, sum of the learning rates, trainable tensors, first loss.
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def comparisons(self) -> int:
        """Numbers that are judged by their spread: all but the clock's."""
        return len(self.measures.keys() - {SECONDS})


class Unrecordable(Exception):
    """Why a run makes no baseline; the message says so."""


def short_digest(trace: Trace) -> str:
    """Of everything measured, the clocks aside."""
    return digest(trace)[: 2 * DIGITS]


def facts(trace: Trace) -> dict[str, float]:
    """What is not judged, but explains: named as in `figures`.

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
    Kept(mean=0.25, sd=0.0, df=None)
    """
    for trace in traces:
        if trace.stopped is not None:
            raise Unrecordable(f"it ended early ({trace.stopped})")
    found = [measures(trace) for trace in traces]
    # of two that say the same, the one that is less noisy; from a single run, the one whose noise is known
    twice = "training_loss.drop" if len(traces) > 1 and "loss.drop" in found[0] else "loss.drop"
    kept = {}
    for name, first in found[0].items():
        if name == twice or not all(name in other for other in found):
            continue
        one = _kept(name, [other[name] for other in found], first)
        if one is not None:
            kept[name] = one
        elif not math.isfinite(first.value):
            raise Unrecordable(f"{name} is {first.value}")
    if not kept.keys() - {SECONDS}:
        raise Unrecordable("nothing was measured that could be compared")
    return Entry(dict(fingerprint), short_digest(traces[0]), len(traces), kept, facts(traces[0]))


def _kept(name: str, values: Sequence[Measure], first: Measure) -> Kept | None:
    numbers = [m.value for m in values]
    if not all(map(math.isfinite, numbers)):
        return None
    logarithmic = first.scale == "log"
    if logarithmic and min(numbers) <= 0:
        # what stands still under every seed is to stand still; what does so under some is no number to compare
        return Kept(0.0, 0.0) if max(numbers) == 0 else None
    scaled = [math.log(n) for n in numbers] if logarithmic else numbers
    mean = statistics.fmean(scaled)
    shown = _rounded(math.exp(mean) if logarithmic else mean, VALUE_DIGITS)
    if len(values) > 1:
        return Kept(shown, _rounded(statistics.stdev(scaled), SPREAD_DIGITS))
    if name == SECONDS:  # the clock's tolerance is not taken from its spread
        return Kept(shown, 0.0)
    if first.noise is None:
        return None
    return Kept(shown, _rounded(first.noise.sd, SPREAD_DIGITS), _rounded(first.noise.df, SPREAD_DIGITS))


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
