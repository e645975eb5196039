"""A run beside its baseline: the verdict ``baseline``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ...core.formatting import number, percent, plural
from ...core.trace import Trace
from ...core.verdict import Verdict
from .entry import Entry, Kept, facts, short_digest
from .fingerprint import HOST, differing
from .measures import SECONDS, Measure, binomial_sd, measures

#: Rate of false alarms of a whole file: that any number of any run fails although nothing got worse and only chance is another.
FILE_RATE = 0.01
#: Relative error below which nothing is told from rounding. Weights that differ in the last place at the start change these numbers by
#: 6e-7 at most (float32, six set-ups, benchmarks/baseline.py); another processor's kernels add up in another order, which is more.
#: A bfloat16 has no finer steps than 2**-8.
ROUNDING = {"float32": 1e-4, "float64": 1e-4}
ROUNDING_OF_HALF = 2.0**-8
#: A step may take so many times the baseline's, and the whole training so many seconds more, which the first training of a process needs
#: to load things. On two processors with two busy processes for each, a step took up to 4.5 times as long and the first up to 1.5 s
#: more; with four for each, 13 times (benchmarks/baseline.py).
SECONDS_RATIO = 10.0
SECONDS_FIRST = 2.0
#: Measured in every run: where such a number is missing, nothing moved, and no gradient came.
ALWAYS = ("motion.", "gradient.")
_NOTHING = Measure(0.0, "log", "either")
#: What each fact is called, and what it means that it is another.
_FACTS = {
    "steps": "optimizer steps: {} -> {}",
    "trainable": "trainable tensors: {} -> {}",
    "lr.sum": "sum of the learning rates: {} -> {}, so the schedule or the optimizer's settings are others",
    "loss.initial": "first loss: {} -> {}, so the run starts from other weights, another order or another loss",
}


@dataclass(frozen=True)
class Compared:
    """One number beside the baseline's."""

    name: str
    before: float
    now: float
    #: Bounds within which chance alone brings it; None: it gets worse to the other side only.
    low: float | None
    high: float | None
    #: Distance from the mean over the tolerance: above 1 is beyond it, on the side that is worse.
    used: float
    #: Beyond the tolerance, on the better side.
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
    key: str, entry: Entry, trace: Trace, fingerprint: dict[str, str], *, comparisons: int, file: str
) -> Verdict:
    """Whether a run is as good as its baseline.

    Beyond a baseline of several seeds is a failure; beyond one of a single run, whose own noise is its tolerance, is advice, for of
    runs under another seed 56 % are (benchmarks/baseline.py).

    The same run bit for bit passes at once. Another fingerprint is not compared. Otherwise each number must lie within a prediction
    interval: for the next value of a normal sample of n seeds, mean +- t(1 - a, n - 1) * sd * sqrt(1 + 1/n) (Student's t; Whitmore
    1986), where a is ``FILE_RATE`` over all comparisons that the file makes (Bonferroni).

    :param comparisons: how many numbers the whole file compares.
    :param file: its name, for messages.

    >>> from pytest_ftcheck import example_trace
    >>> from .entry import entry_of
    >>> trace = example_trace()
    >>> compare("test_it", entry_of([trace] * 5, {}), trace, {}, comparisons=10, file="b.json").headline
    'test_it: the very run of b.json again, bit for bit.'
    """
    if short_digest(trace) == entry.digest:
        return Verdict("baseline", "pass", f"{key}: the very run of {file} again, bit for bit.")
    if trace.stopped is not None and "max_seconds" in trace.stopped:
        return Verdict("baseline", "skipped", f"{key}: not compared with {file}, for it ended early ({trace.stopped}).")
    if other := differing(entry.fingerprint, fingerprint):
        return Verdict(
            "baseline",
            "skipped",
            f"{key}: not compared with {file}, for it is another run: {'; '.join(other)}.",
            remedy="if this is meant, --ftcheck-baseline-update writes what it measures now",
        )
    same_host = entry.fingerprint.get(HOST) == fingerprint.get(HOST)
    found = list(_compared(entry, trace, comparisons, same_host=same_host))
    worse = sorted((c for c in found if c.used > 1), key=lambda c: -c.used)
    gone = sorted(n for n in entry.measures.keys() - measures(trace).keys() - {SECONDS} if not n.startswith(ALWAYS))
    return _verdict(key, entry, trace, found, worse, gone, comparisons, file, same_host=same_host)


def tolerance(kept: Kept, seeds: int, comparisons: int, floor: float, *, sides: int) -> float:
    """Half the width of the prediction interval, on the number's own scale.

    :param floor: the least standard deviation to reckon with.  :param sides: 1 or 2.

    >>> round(tolerance(Kept(0.5, 0.01), 5, 100, 1e-4, sides=1), 3)
    0.143
    """
    df = kept.df if kept.df is not None else max(seeds - 1, 1)
    return _quantile(FILE_RATE / max(comparisons, 1) / sides, df) * max(kept.sd, floor) * math.sqrt(1 + 1 / seeds)


@cache
def _quantile(tail: float, df: float) -> float:
    from scipy.stats import t

    return float(t.isf(tail, df))


def floor_of(kept: Kept, measure: Measure | None, entry: Entry) -> float:
    """Least standard deviation: that of rounding, and of rows that are right or wrong by chance."""
    dtypes = entry.fingerprint.get("dtype", "float32").split(", ")
    rounding = max(ROUNDING.get(dtype, ROUNDING_OF_HALF) for dtype in dtypes)
    if measure is None or measure.scale == "log":
        return rounding
    if measure.rows and 0 <= kept.mean <= 1:
        return max(rounding, binomial_sd(kept.mean, measure.rows, entry.seeds))
    return rounding * max(abs(kept.mean), abs(entry.facts.get("loss.initial", 0.0)))


def _compared(entry: Entry, trace: Trace, comparisons: int, *, same_host: bool) -> Iterator[Compared]:
    new = measures(trace)
    for name, kept in entry.measures.items():
        measure = new.get(name, _NOTHING if name.startswith(ALWAYS) else None)
        if measure is None:
            continue
        if name == SECONDS:
            if same_host:
                yield _clock(kept, measure, len(trace.steps))
        elif not measure.rows and name.startswith("metric.") and kept.sd == 0 and measure.value != kept.mean:
            continue  # the seeds agree, and nothing is known of how fine the metric is: no spread to compare with
        else:
            yield _one(name, kept, measure, entry, comparisons)


def _one(name: str, kept: Kept, measure: Measure, entry: Entry, comparisons: int) -> Compared:
    both = measure.worse == "either"
    if measure.scale == "log" and kept.mean == 0:  # it stood still under every seed
        return Compared(name, 0.0, measure.value, None, 0.0, 0.0 if measure.value == 0 else math.inf)
    allowed = tolerance(kept, entry.seeds, comparisons, floor_of(kept, measure, entry), sides=2 if both else 1)
    if measure.scale == "log":
        low, high = kept.mean * math.exp(-allowed), kept.mean * math.exp(min(allowed, 700))
        away = math.log(measure.value / kept.mean) if measure.value > 0 else -math.inf
    else:
        low, high, away = kept.mean - allowed, kept.mean + allowed, measure.value - kept.mean
    if not math.isfinite(measure.value):
        return Compared(name, kept.mean, measure.value, low, high if both else None, math.inf)
    used = abs(away) / allowed if both else -away / allowed
    return Compared(name, kept.mean, measure.value, low, high if both else None, used, better=not both and used < -1)


def _clock(kept: Kept, measure: Measure, steps: int) -> Compared:
    most = SECONDS_RATIO * kept.mean + SECONDS_FIRST / max(steps, 1)
    return Compared(
        SECONDS,
        kept.mean,
        measure.value,
        None,
        most,
        measure.value / most,
        better=measure.value < kept.mean / SECONDS_RATIO,
    )


# ------------------------------------------------------------------ texts
def _verdict(
    key: str,
    entry: Entry,
    trace: Trace,
    found: Sequence[Compared],
    worse: Sequence[Compared],
    gone: Sequence[str],
    comparisons: int,
    file: str,
    *,
    same_host: bool,
) -> Verdict:
    evidence = tuple(_row(c) for c in sorted(found, key=lambda c: -c.used))
    missing = [f"no longer measured: {', '.join(gone)}"] if gone else []
    notes = [*missing, *(_gain(c) for c in found if c.better)]
    if not same_host:
        notes.append(f"seconds are not compared: {entry.fingerprint.get(HOST)} is another kind of machine than this")
    margins = [1 - c.used for c in found if math.isfinite(c.used)]
    if not worse:
        total = plural(len(found), "number")
        return Verdict(
            "baseline",
            "pass" if found else "inconclusive",
            f"{key}: {total} within what chance does to {_seeds(entry)} of {file}."
            if found
            else f"{key}: measured nothing of what {file} keeps ({', '.join(gone)}).",
            evidence if found else (),
            limit=_limit(entry, comparisons),
            remedy="" if found else "measure it again (probes=), or write a new baseline: --ftcheck-baseline-update",
            notes=tuple(notes),
            margin=min(margins) if margins else None,
        )
    # of a single run nobody knows how far another seed would be from it: only what chance cannot do is a failure
    certain = [c for c in worse if entry.seeds > 1 or c.name == SECONDS or math.isinf(c.used)]
    first = certain[0] if certain else worse[0]
    more = (
        f"; {plural(len(worse) - 1, 'more number')} beyond {'chance' if entry.seeds > 1 else 'it'}"
        if len(worse) > 1
        else ""
    )
    return Verdict(
        "baseline",
        "fail" if certain else "advice",
        f"{key}: {first.name} is {number(first.now)}, {_change(first)} the baseline's {number(first.before)} "
        f"({first.bounds} is within {'chance' if entry.seeds > 1 else 'its noise'}){more}.",
        evidence,
        limit=_limit(entry, comparisons),
        causes=(
            *_explained(entry, trace, ("trainable", "steps", "lr.sum")),
            *_still(worse),
            *_explained(entry, trace, ("loss.initial",)),
            *_pattern(worse),
        ),
        remedy=(
            f"if this is meant, write it down with --ftcheck-baseline-update and let the diff of {file} be reviewed; if not, look at what "
            "changed in the model, the loop or the data since that file was written"
        ),
        measured=f"against {_seeds(entry)}; not bit for bit the baseline's run, so the code that trains, or its randomness, has changed",
        notes=tuple(notes),
        fault="regression" if certain else "",
        margin=min(margins) if margins else None,
    )


def _row(c: Compared) -> dict[str, Any]:
    return {
        "number": c.name,
        "baseline": c.before,
        "now": c.now,
        "within chance": c.bounds,
        "tolerance used": percent(max(c.used, 0.0)),
    }


def _change(c: Compared) -> str:
    if not math.isfinite(c.now) or c.before == 0:
        return "not"
    if c.before > 0 and c.now > 2 * c.before:
        return f"{number(c.now / c.before)} times"
    return f"{percent(abs(c.now - c.before) / abs(c.before))} {'below' if c.now < c.before else 'above'}"


def _gain(c: Compared) -> str:
    return (
        f"better: {c.name} is {number(c.now)}, beyond chance, where the baseline has {number(c.before)}; "
        "--ftcheck-baseline-update holds on to it"
    )


def _seeds(entry: Entry) -> str:
    return plural(entry.seeds, "seed") if entry.seeds > 1 else "the one run"


def _limit(entry: Entry, comparisons: int) -> str:
    clock = f"{SECONDS}: {SECONDS_RATIO:g} times the baseline's, and {SECONDS_FIRST:g} s in all"
    if entry.seeds == 1:
        return (
            "prediction interval (Student's t) from the noise within one run, which cannot be repeated: two seeds may differ by more, "
            f"so what is beyond it is advice, and only what no seed does (NaN, no gradient at all) fails; {clock}"
        )
    each = percent(FILE_RATE / max(comparisons, 1))
    return (
        f"prediction interval (Student's t) for the next of {entry.seeds} seeds; of runs that are no worse, {each} fail for any one of the "
        f"{plural(comparisons, 'number')} in this file, {percent(FILE_RATE)} for all of them together; {clock}"
    )


def _explained(entry: Entry, trace: Trace, names: Sequence[str]) -> Iterator[str]:
    """What else is not as it was, and is no number to judge."""
    now = facts(trace)
    for name in names:
        if name in entry.facts and name in now and entry.facts[name] != now[name]:
            told = (number(int(v) if v.is_integer() else v) for v in (entry.facts[name], now[name]))
            yield _FACTS[name].format(*told)


def _still(worse: Sequence[Compared]) -> Iterator[str]:
    none = [c.name for c in worse if c.name.startswith("gradient.") and c.now == 0]
    still = [c.name for c in worse if c.name.startswith("motion.") and c.now < 0.1 * c.before]
    if none:
        parts = " and the ".join(name.removeprefix("gradient.") for name in none)
        yield f"no gradient reaches the {parts} any more: frozen, or cut off (.detach(), .data, torch.no_grad())"
    if still:
        groups = ", ".join(name.removeprefix("motion.") for name in still)
        yield f"it hardly moves any more: {groups} (frozen, cut off from the loss, or not in the optimizer)"


def _pattern(worse: Sequence[Compared]) -> Iterator[str]:
    lower = [c for c in worse if c.name.startswith("gradient.") and 0 < c.now < c.before]
    higher = [c for c in worse if c.name.startswith("gradient.") and c.now > c.before]
    if lower or higher:
        yield f"gradients are {'smaller' if lower else 'larger'}: another loss scale, reduction, clipping or accumulation"
    if any(c.name == SECONDS for c in worse):
        yield "a step takes longer: more work a step, a synchronisation, or a machine that is busier than it was"
    if any("loss" in c.name or c.name.startswith("metric.") for c in worse):
        yield "it learns less from the same batches with the same recipe: the model, the loss or the loop has changed"
