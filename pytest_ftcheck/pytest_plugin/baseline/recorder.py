"""In the process that runs the tests: compares each run with the baseline, or makes an entry of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ...core import fail_level
from ...core.events import Rerun, current, listening
from ...core.formatting import one_line, text_of
from ...core.hypothesis_target import in_example
from ...core.trace import Trace
from ...core.verdict import Verdict
from ...seeds.runs import repeatable
from ..verdict_log import Record
from .compare import compare, floor_of, tolerance
from .entry import Entry, Unrecordable, entry_of
from .file import Baseline
from .fingerprint import differing, fingerprint
from .measures import measures
from .run_names import Owners, name_of
from .run_outcome import NOT_COMPARED, RunOutcome

Mode = Literal["compare", "update", "new"]
#: A tolerance by this factor, in both directions, notices nothing but a value of zero.
INSENSITIVE_FACTOR = 100.0
#: What a strict session says of a run that was not compared, and of one that the file does not have.
_STRICT = "--ftcheck-baseline-strict fails every run that is not compared"
_ADD = "if the run is new, add it with --ftcheck-baseline-new-only, and have the diff reviewed"
#: Seeds behind an entry, unless ``--ftcheck-seeds`` asks for more.
SEEDS = 5


@dataclass
class _Run:
    """One run of this session."""

    key: str
    trace: Trace
    call_site: tuple[str, int] | None
    verdict: Verdict | None = None
    #: The test that reports the verdict.
    reported_by: str | None = None


@dataclass
class _ProgressOnly:
    """The listener while a run is repeated: passes on progress, and nothing else."""

    session: Any

    def progress(self, done: int, total: int, loss: float | None) -> None:
        """Passed on."""
        if self.session is not None:
            self.session.progress(done, total, loss)

    def traced(self, trace: Trace) -> None:
        """Ignored: it is none of the session's runs."""

    def judged(self, verdict: Verdict, trace: Trace | None) -> None:
        """Ignored."""

    def calibrated(self, calibration: Any) -> None:
        """Ignored."""


@dataclass
class BaselineRecorder:
    """Notified of every run, test and fixture.

    :param baseline: content of the file; None: there is no file yet.
    :param file: its name, for messages.
    :param seeds: how many seeds an entry is made of.
    :param strict: a run that is not compared fails its test.
    """

    baseline: Baseline | None
    file: str
    mode: Mode = "compare"
    seeds: int = SEEDS
    strict: bool = False
    owners: Owners = field(default_factory=Owners)
    _runs: dict[str, list[_Run]] = field(default_factory=dict)
    _last_test: str = ""

    # ------------------------------------------------------------------ tests and fixtures
    def begin(self, item: Any) -> None:
        """The test is about to be set up, perhaps not for the first time."""
        self._runs.pop(self._last_test, None)  # traces are large
        owner = self.owners.begin(item)
        self._last_test = name_of(item)
        if owner == name_of(item) or owner not in self._runs:  # the run of a suite is kept for all its tests
            self._runs[owner] = []

    @contextlib.contextmanager
    def fixture(self, fixturedef: Any, request: Any) -> Iterator[None]:
        """The fixture is set up inside the block."""
        with self.owners.fixture(fixturedef, request) as owner:
            if owner is not None:
                self._runs[owner] = []
            yield

    def test_passed(self, item: Any, record: Record) -> None:
        """Judge the runs of a test that passed; raise `CheckFailed` for the worst blocking verdict.

        The run of a fixture is judged with the first test that uses the fixture and is neither skipped nor expected to fail, and again
        with that test when it is run again.
        """
        __tracebackhide__ = True
        if excinfo := getattr(item, "_excinfo", None):  # of unittest, which raises nothing
            self.test_raised(item, record, excinfo[0].value)
            return
        blocking = self._judge(item, record)
        if blocking is not None:
            raise fail_level.error(blocking)

    def test_raised(self, item: Any, record: Record, error: BaseException) -> None:
        """Judge the runs of a test that raised; raise nothing more."""
        self._judge(item, record, skipped=type(error).__name__ == "Skipped")  # pytest's own, which we may not import

    def _judge(self, item: Any, record: Record, *, skipped: bool = False) -> Verdict | None:
        """Log the verdicts of the test's runs; returns the worst blocking one."""
        owners = self.owners.used_by(item)
        runs = [run for owner in owners for run in self._runs.get(owner, ())]
        if self.mode != "compare":
            record.current.baseline_runs_used += [run.key for run in runs]
        if skipped or item.get_closest_marker("xfail") is not None:
            return None  # a failure here would not be reported: the run waits for another test
        worst, name = None, name_of(item)
        for run in runs:
            if run.verdict is None or run.reported_by not in (None, name):
                continue
            run.reported_by = name
            record.current.judged(run.verdict, run.trace, run.call_site)
            record.current.verdicts_reached([run.verdict], [run.trace])
            if fail_level.raises(run.verdict) and (
                worst is None or (worst.status != "fail" and run.verdict.status == "fail")
            ):
                worst = run.verdict
        return worst

    # ------------------------------------------------------------------ runs
    def run_ended(self, trace: Trace, rerun: Rerun | None, record: Record, call_site: tuple[str, int] | None) -> None:
        """Compare or record a run. Examples of hypothesis are excluded: their number and their values vary."""
        owner = self.owners.current
        if owner is None or in_example():
            return
        earlier = self._runs.setdefault(owner, [])
        run = _Run(owner if not earlier else f"{owner} #{len(earlier) + 1}", trace, call_site)
        earlier.append(run)
        try:
            outcome = self._outcome(run, trace, rerun)
        except Exception as error:  # noqa: BLE001 - an error of ours must not fail the user's training
            outcome = RunOutcome(run.key, "error", (f"{type(error).__name__}: {one_line(text_of(error), 300)}",))
            if self.strict and self.mode != "update":
                run.verdict = self._not_compared(run.key, f"it could not be examined: {outcome.reasons[0]}")
        record.current.baseline.append(outcome)

    def _outcome(self, run: _Run, trace: Trace, rerun: Rerun | None) -> RunOutcome:
        entry = None if self.baseline is None else self.baseline.runs.get(run.key)
        setup = fingerprint(trace, *_hashes(rerun))
        if self.mode == "update" or (self.mode == "new" and entry is None):
            return self._recorded(run.key, trace, rerun, setup)
        if entry is None or self.baseline is None:
            if self.strict:
                run.verdict = self._not_compared(run.key, "it is not in the file", _ADD)
            return RunOutcome(run.key, "missing")
        verdict = compare(
            run.key,
            entry,
            trace,
            setup,
            comparisons=self.baseline.comparisons,
            file=self.file,
            in_part=not self.strict,
        )
        if fail_level.raises(verdict) and (note := repeatable(trace)):
            verdict = replace(verdict, notes=(*verdict.notes, note))
        run.verdict = verdict
        status = {"pass": "within", "fail": "worse", "skipped": "not compared", "advice": "outside"}.get(
            verdict.status, verdict.status
        )
        if status == "within" and not verdict.evidence:
            status = "identical"
        elif status == "within" and differing(entry.fingerprint, setup):
            status = "in part"
        if self.strict and status in NOT_COMPARED:
            run.verdict = replace(verdict, status="fail", causes=(_STRICT,))
        reason = (
            verdict.notes[0]
            if status == "in part"
            else verdict.headline.partition(": ")[2]
            if status == "not compared"
            else verdict.headline
        )
        return RunOutcome(
            run.key,
            status,
            reasons=() if status in ("identical", "within") else (reason,),
            improvements=tuple(note for note in verdict.notes if note.startswith("better: ")),
        )

    def _not_compared(self, key: str, reason: str, remedy: str = "") -> Verdict:
        """The verdict on a run that a strict session does not compare."""
        headline = f"{key}: not compared with {self.file}: {reason}."
        return Verdict("baseline", "fail", headline, causes=(_STRICT,), remedy=remedy)

    def _recorded(self, key: str, trace: Trace, rerun: Rerun | None, setup: dict[str, str]) -> RunOutcome:
        reasons: tuple[str, ...] = ()
        traces: Sequence[Trace] = [trace]
        if trace.stopped is None and rerun is not None:
            try:
                with listening(_ProgressOnly(current())):
                    traces = list(rerun.seeds(self.seeds))
            except Exception as error:  # noqa: BLE001 - the user's code under a seed of ours, or an exhausted iterator
                traces = [trace]
                reasons = (f"it could not be repeated ({one_line(text_of(error) or type(error).__name__, 200)})",)
        try:
            entry = entry_of(traces, setup)
        except Unrecordable as error:
            return RunOutcome(key, "unrecordable", (text_of(error),))
        return RunOutcome(key, "recorded", reasons, entry=entry, insensitive=insensitive_measures(entry, trace))


def insensitive_measures(entry: Entry, trace: Trace) -> tuple[str, ...]:
    """Numbers whose seed-to-seed variation is so large that an untrained model would be within tolerance, were the entry the whole file."""
    current_measures = measures(trace)
    untrained = {f"metric.{m.name}": m.baseline for m in trace.metrics}
    found = []
    for name, recorded in entry.measures.items():
        if name.startswith("motion."):
            allowed = tolerance(recorded, entry.seeds, entry.comparisons, floor_of(recorded, None, entry), sides=2)
            insensitive = recorded.mean > 0 and allowed > math.log(INSENSITIVE_FACTOR)
        elif name.endswith("loss.drop") or untrained.get(name) is not None:
            floor = floor_of(recorded, current_measures.get(name), entry)
            allowed = tolerance(recorded, entry.seeds, entry.comparisons, floor, sides=1)
            insensitive = recorded.mean - allowed <= (untrained.get(name) or 0.0)
        else:
            continue
        if insensitive:
            found.append(name)
    return tuple(found)


def _hashes(rerun: Rerun | None) -> tuple[str | None, str | None]:
    """Hash of the batches, and of the evaluation rows; None: unknown."""
    return (None, None) if rerun is None else (_hash(rerun.data), _hash(rerun.evaluation))


def _hash(of_rows: Callable[[], str | None] | None) -> str | None:
    try:
        return None if of_rows is None else of_rows()
    except Exception:  # noqa: BLE001 - a kind of tensor whose bytes cannot be read
        return None
