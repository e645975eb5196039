"""Compares a run with its baseline: the verdict ``baseline``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from .entry import Entry, RecordedMeasure, facts, short_digest
from .fingerprint import HOST, comparable, differing
from .measures import SECONDS, Measure, binomial_sd, measures

#: False-alarm rate of a whole file: the probability that any number of any run fails although only the random seed differs.
FILE_RATE = 0.01
#: Relative difference that rounding alone can explain. Weights that differ in the last place at the start change these numbers by
#: 6e-7 at most (float32, six set-ups, benchmarks/baseline.py); the kernels of another processor sum in another order, which is more.
#: The resolution of bfloat16 is 2**-8.
ROUNDING = {"float32": 1e-4, "float64": 1e-4}
ROUNDING_OF_HALF = 2.0**-8
#: A step may take this many times the baseline's, and the training this many more seconds, which the first training of a process needs
#: to load libraries. On two processors with two busy processes for each, a step took up to 4.5 times as long and the first up to 1.5 s
#: more; with four for each, 13 times (benchmarks/baseline.py).
SECONDS_RATIO = 10.0
SECONDS_FIRST = 2.0
#: Measured in every run: where such a number is missing, nothing moved, or there was no gradient.
ALWAYS = ("motion.", "gradient.")
_ZERO = Measure(0.0, "log", "either")
#: What to do where the setup has changed.
UPDATE = "if the change is intended, update the baseline with --ftcheck-baseline-update"
#: Fact -> text where it has changed.
_FACTS = {
    "steps": "optimizer steps: {} -> {}",
    "trainable": "trainable tensors: {} -> {}",
    "lr.sum": "sum of the learning rates: {} -> {}, so the schedule or the optimizer settings have changed",
    "loss.initial": "first loss: {} -> {}, so the initial weights, the data order or the loss have changed",
}


@dataclass(frozen=True)
class Comparison:
    """One number beside the baseline's."""

    name: str
    before: float
    now: float
    #: Bounds of the tolerance; None: on this side it does not get worse.
    low: float | None
    high: float | None
    #: Distance from the mean divided by the tolerance; above 1 it is outside, on the worse side.
    used: float
    #: Outside the tolerance on the better side.
    better: bool = False

    @property
    def bounds(self) -> str:
        """``0.31 to 0.52``, ``>= 0.31``."""
        if self.low is None:
            return f"<= {number(self.high)}"
        if self.high is None:
            return f">= {number(self.low)}"
        return f"{number(self.low)} to {number(self.high)}"


def compare(
    key: str,
    entry: Entry,
    trace: Trace,
    fingerprint: dict[str, str],
    *,
    comparisons: int,
    file: str,
    in_part: bool = True,
) -> Verdict:
    """Whether a run is as good as its baseline.

    A number outside the tolerance of several seeds is a failure. The tolerance of a single run is the noise within that run. A number
    outside it is advice, because 56 % of runs under other seeds have one (benchmarks/baseline.py).

    A bit-for-bit identical run passes at once. A run with another fingerprint is not compared, unless only the training data differ: then
    its metrics are, if they are taken on the same rows. Otherwise each number must lie within a
    prediction interval: for the next value of a normal sample of n seeds, mean +- t(1 - a, n - 1) * sd * sqrt(1 + 1/n) (Student's t;
    Whitmore 1986), where a is ``FILE_RATE`` over all comparisons that the file makes (Bonferroni).

    :param comparisons: how many numbers the whole file compares.
    :param file: its name, for messages.
    :param in_part: compare what can be compared where only the training data, or only the evaluation rows, differ.

    >>> from pytest_ftcheck import example_trace
    >>> from .entry import entry_of
    >>> trace = example_trace()
    >>> compare("test_it", entry_of([trace] * 5, {}), trace, {}, comparisons=10, file="b.json").headline
    'test_it: bit-for-bit identical to the baseline run in b.json.'
    """
    if short_digest(trace) == entry.digest:
        return Verdict("baseline", "pass", f"{key}: bit-for-bit identical to the baseline run in {file}.")
    if trace.stopped is not None and "max_seconds" in trace.stopped:
        return Verdict(
            "baseline", "skipped", f"{key}: not compared with {file}: the run ended early ({trace.stopped})."
        )
    which, differences = comparable(entry.fingerprint, fingerprint), differing(entry.fingerprint, fingerprint)
    same_host = entry.fingerprint.get(HOST) == fingerprint.get(HOST)
    found = [
        c for c in _compared(entry, trace, comparisons, same_host=same_host) if _is_comparable(c.name, which, trace)
    ]
    if differences and not (found and in_part):
        return Verdict(
            "baseline",
            "skipped",
            f"{key}: not compared with {file}: the setup differs: {'; '.join(differences)}.",
            remedy=UPDATE,
        )
    worse = sorted((c for c in found if c.used > 1), key=lambda c: -c.used)
    not_measured = sorted(
        n
        for n in entry.measures.keys() - measures(trace).keys() - {SECONDS}
        if not n.startswith(ALWAYS) and _is_comparable(n, which, trace)
    )
    verdict = _verdict(key, entry, trace, found, worse, not_measured, comparisons, file, same_host=same_host)
    if not differences:
        return verdict
    what = "only the metrics were compared" if which == "metrics" else "the metrics were not compared"
    note = f"{what}, because the setup differs: {'; '.join(differences)}"
    return dataclasses.replace(verdict, notes=(note, *verdict.notes))


def _is_comparable(name: str, which: str, trace: Trace) -> bool:
    """Whether this number is among those that can be compared; which rows ``evaluate=`` takes is not known."""
    if which == "all":
        return True
    if not name.startswith("metric."):
        return which == "all but metrics"
    on_known_rows = {f"metric.{m.name}" for m in trace.metrics if m.source != "the user's own"}
    return (name in on_known_rows) == (which == "metrics") and which != "nothing"


def tolerance(recorded: RecordedMeasure, seeds: int, comparisons: int, floor: float, *, sides: int) -> float:
    """Half the width of the prediction interval, on the number's own scale.

    :param floor: the least standard deviation to assume.  :param sides: 1 or 2.

    >>> round(tolerance(RecordedMeasure(0.5, 0.01), 5, 100, 1e-4, sides=1), 3)
    0.143
    """
    df = recorded.df if recorded.df is not None else max(seeds - 1, 1)
    return _quantile(FILE_RATE / max(comparisons, 1) / sides, df) * max(recorded.sd, floor) * math.sqrt(1 + 1 / seeds)


@cache
def _quantile(tail: float, df: float) -> float:
    from scipy.stats import t

    return float(t.isf(tail, df))


def floor_of(recorded: RecordedMeasure, measure: Measure | None, entry: Entry) -> float:
    """Least standard deviation: that of rounding, and that of a share of rows."""
    dtypes = entry.fingerprint.get("dtype", "float32").split(", ")
    rounding = max(ROUNDING.get(dtype, ROUNDING_OF_HALF) for dtype in dtypes)
    if measure is None or measure.scale == "log":
        return rounding
    if measure.rows and 0 <= recorded.mean <= 1:
        return max(rounding, binomial_sd(recorded.mean, measure.rows, entry.seeds))
    return rounding * max(abs(recorded.mean), abs(entry.facts.get("loss.initial", 0.0)))


def _compared(entry: Entry, trace: Trace, comparisons: int, *, same_host: bool) -> Iterator[Comparison]:
    new = measures(trace)
    for name, recorded in entry.measures.items():
        measure = new.get(name, _ZERO if name.startswith(ALWAYS) else None)
        if measure is None:
            continue
        if name == SECONDS:
            if same_host:
                yield _seconds(recorded, measure, len(trace.steps))
        elif not measure.rows and name.startswith("metric.") and recorded.sd == 0 and measure.value != recorded.mean:
            continue  # all seeds agree, and the resolution of the metric is unknown: there is no spread to compare with
        else:
            yield _compared_one(name, recorded, measure, entry, comparisons)


def _compared_one(name: str, recorded: RecordedMeasure, measure: Measure, entry: Entry, comparisons: int) -> Comparison:
    both = measure.worse == "either"
    if measure.scale == "log" and recorded.mean == 0:  # zero under every seed
        return Comparison(name, 0.0, measure.value, None, 0.0, 0.0 if measure.value == 0 else math.inf)
    allowed = tolerance(recorded, entry.seeds, comparisons, floor_of(recorded, measure, entry), sides=2 if both else 1)
    if measure.scale == "log":
        low, high = recorded.mean * math.exp(-allowed), recorded.mean * math.exp(min(allowed, 700))
        away = math.log(measure.value / recorded.mean) if measure.value > 0 else -math.inf
    else:
        low, high, away = recorded.mean - allowed, recorded.mean + allowed, measure.value - recorded.mean
    if not math.isfinite(measure.value):
        return Comparison(name, recorded.mean, measure.value, low, high if both else None, math.inf)
    used = abs(away) / allowed if both else -away / allowed
    return Comparison(
        name, recorded.mean, measure.value, low, high if both else None, used, better=not both and used < -1
    )


def _seconds(recorded: RecordedMeasure, measure: Measure, steps: int) -> Comparison:
    most = SECONDS_RATIO * recorded.mean + SECONDS_FIRST / max(steps, 1)
    return Comparison(
        SECONDS,
        recorded.mean,
        measure.value,
        None,
        most,
        measure.value / most,
        better=measure.value < recorded.mean / SECONDS_RATIO,
    )


# ------------------------------------------------------------------ texts
def _verdict(
    key: str,
    entry: Entry,
    trace: Trace,
    found: Sequence[Comparison],
    worse: Sequence[Comparison],
    not_measured: Sequence[str],
    comparisons: int,
    file: str,
    *,
    same_host: bool,
) -> Verdict:
    evidence = tuple(_row(c) for c in sorted(found, key=lambda c: -c.used))
    missing = [f"no longer measured: {', '.join(not_measured)}"] if not_measured else []
    notes = [*missing, *(_improvement(c) for c in found if c.better)]
    if not same_host:
        notes.append(
            f"seconds are not compared: the baseline is from another kind of machine ({entry.fingerprint.get(HOST)})"
        )
    margins = [1 - c.used for c in found if math.isfinite(c.used)]
    if not worse:
        total = plural(len(found), "number")
        return Verdict(
            "baseline",
            "pass" if found else "inconclusive",
            f"{key}: {total} within the tolerance of {_seeds(entry)} in {file}."
            if found
            else f"{key}: none of the numbers in {file} was measured ({', '.join(not_measured)}).",
            evidence if found else (),
            limit=_limit(entry, comparisons),
            remedy=""
            if found
            else "measure them again (probes=), or update the baseline with --ftcheck-baseline-update",
            notes=tuple(notes),
            margin=min(margins) if margins else None,
        )
    # the spread over seeds is not known from a single run: only what no seed can cause is a failure
    certain = [c for c in worse if entry.seeds > 1 or c.name == SECONDS or math.isinf(c.used)]
    first = certain[0] if certain else worse[0]
    more = f"; {plural(len(worse) - 1, 'more number')} outside" if len(worse) > 1 else ""
    return Verdict(
        "baseline",
        "fail" if certain else "advice",
        f"{key}: {first.name} is {number(first.now)}, {_change(first)} the baseline's {number(first.before)} "
        f"(tolerance: {first.bounds}{more}).",
        evidence,
        limit=_limit(entry, comparisons),
        causes=(
            *_explained(entry, trace, ("trainable", "steps", "lr.sum")),
            *_without_motion(worse),
            *_explained(entry, trace, ("loss.initial",)),
            *_pattern(worse),
        ),
        remedy=(
            f"if the change is intended, run --ftcheck-baseline-update and have the diff of {file} reviewed; otherwise look for "
            "what changed in the model, the loop or the data since the file was written"
        ),
        measured=f"against {_seeds(entry)}; not bit-for-bit identical to the baseline run: the training code or its randomness changed",
        notes=tuple(notes),
        fault="regression" if certain else "",
        margin=min(margins) if margins else None,
    )


def _row(c: Comparison) -> dict[str, Any]:
    return {
        "number": c.name,
        "baseline": c.before,
        "now": c.now,
        "tolerance": c.bounds,
        "tolerance used": percent(max(c.used, 0.0)),
    }


def _change(c: Comparison) -> str:
    if not math.isfinite(c.now) or c.before == 0:
        return "not"
    if c.before > 0 and c.now > 2 * c.before:
        return f"{number(c.now / c.before)} times"
    return f"{percent(abs(c.now - c.before) / abs(c.before))} {'below' if c.now < c.before else 'above'}"


def _improvement(c: Comparison) -> str:
    return (
        f"better: {c.name} is {number(c.now)}, outside the tolerance around the baseline's {number(c.before)}; "
        "--ftcheck-baseline-update records it"
    )


def _seeds(entry: Entry) -> str:
    return plural(entry.seeds, "seed") if entry.seeds > 1 else "a single run"


def _limit(entry: Entry, comparisons: int) -> str:
    seconds = f"{SECONDS}: {SECONDS_RATIO:g} times the baseline's plus {SECONDS_FIRST:g} s in all"
    if entry.seeds == 1:
        return (
            "prediction interval (Student's t) from the noise within one run that cannot be repeated; two seeds may differ by more, "
            f"so a number outside it is advice, and only what no seed can cause (NaN, no gradient) fails; {seconds}"
        )
    each = percent(FILE_RATE / max(comparisons, 1))
    return (
        f"prediction interval (Student's t) for the next of {entry.seeds} seeds; of unchanged runs, {each} fail for any one of the "
        f"{plural(comparisons, 'number')} in this file, {percent(FILE_RATE)} for all of them together; {seconds}"
    )


def _explained(entry: Entry, trace: Trace, names: Sequence[str]) -> Iterator[str]:
    """Facts that have changed."""
    now = facts(trace)
    for name in names:
        if name in entry.facts and name in now and entry.facts[name] != now[name]:
            before_and_now = (number(int(v) if v.is_integer() else v) for v in (entry.facts[name], now[name]))
            yield _FACTS[name].format(*before_and_now)


def _without_motion(worse: Sequence[Comparison]) -> Iterator[str]:
    without_gradient = [c.name for c in worse if c.name.startswith("gradient.") and c.now == 0]
    motionless = [c.name for c in worse if c.name.startswith("motion.") and c.now < 0.1 * c.before]
    if without_gradient:
        parts = " and the ".join(name.removeprefix("gradient.") for name in without_gradient)
        yield f"no gradient reaches the {parts}: frozen, or cut off (.detach(), .data, torch.no_grad())"
    if motionless:
        groups = ", ".join(name.removeprefix("motion.") for name in motionless)
        yield f"almost no motion of {groups}: frozen, cut off from the loss, or not in the optimizer"


def _pattern(worse: Sequence[Comparison]) -> Iterator[str]:
    lower = [c for c in worse if c.name.startswith("gradient.") and 0 < c.now < c.before]
    higher = [c for c in worse if c.name.startswith("gradient.") and c.now > c.before]
    if lower or higher:
        yield f"gradients are {'smaller' if lower else 'larger'}: the loss scale, reduction, clipping or accumulation has changed"
    if any(c.name == SECONDS for c in worse):
        yield "a step takes longer: more work per step, a synchronization, or a busier machine"
    if any("loss" in c.name or c.name.startswith("metric.") for c in worse):
        yield "less is learned from the same batches with the same recipe: the model, the loss or the loop has changed"
