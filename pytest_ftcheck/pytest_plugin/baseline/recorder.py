"""In the process that runs the tests: each run is compared with the baseline, or becomes an entry of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ...core import fail_level
from ...core.events import Again, current, listening
from ...core.formatting import one_line
from ...core.hypothesis_target import in_example
from ...core.serialization import encode
from ...core.trace import Trace
from ...core.verdict import Verdict
from ...seeds.runs import repeatable
from ..verdict_log import Record
from .compare import compare, floor_of, tolerance
from .entry import Entry, Unrecordable, entry_of
from .file import Baseline
from .fingerprint import fingerprint
from .measures import measures
from .run_names import Owners, name_of

Mode = Literal["compare", "update", "new"]
#: A tolerance of so many times, in both directions, sees nothing but a stop.
UNSEEN = 100.0
#: Seeds behind an entry, unless ``--ftcheck-seeds`` says more.
SEEDS = 5


@dataclass
class _Run:
    """One run of this session."""

    key: str
    trace: Trace
    where: tuple[str, int] | None
    verdict: Verdict | None = None
    #: The test that is judged by it.
    claimed: str | None = None


@dataclass
class _Progress:
    """Shows the line of progress while a run is repeated, and tells nothing else."""

    outer: Any

    def progress(self, done: int, total: int, loss: float | None) -> None:
        """As the session's listener would."""
        if self.outer is not None:
            self.outer.progress(done, total, loss)

    def traced(self, trace: Trace) -> None:
        """None of the session's runs."""

    def judged(self, verdict: Verdict, trace: Trace | None) -> None:
        """Nobody judges meanwhile."""

    def calibrated(self, record: dict[str, Any]) -> None:
        """Nor calibrates."""


@dataclass
class Keeper:
    """Told of every run, test and fixture.

    :param baseline: what the file says; None: there is none yet.
    :param file: its name, for messages.
    :param seeds: how many an entry is made of.
    """

    baseline: Baseline | None
    file: str
    mode: Mode = "compare"
    seeds: int = SEEDS
    owners: Owners = field(default_factory=Owners)
    _runs: dict[str, list[_Run]] = field(default_factory=dict)
    _last: str = ""

    # ------------------------------------------------------------------ tests and fixtures
    def begin(self, item: Any) -> None:
        """The test is about to be set up, perhaps once more."""
        self._runs.pop(self._last, None)  # traces are large
        owner = self.owners.begin(item)
        self._last = name_of(item)
        if owner == name_of(item) or owner not in self._runs:  # the run of a suite outlives its single tests
            self._runs[owner] = []

    @contextlib.contextmanager
    def fixture(self, fixturedef: Any, request: Any) -> Iterator[None]:
        """The fixture is set up inside the block."""
        with self.owners.fixture(fixturedef, request) as owner:
            if owner is not None:
                self._runs[owner] = []
            yield

    def settle(self, item: Any, record: Record) -> None:
        """The test is over and passed: judge its runs, and raise `CheckFailed` for the worst that the session does not let through.

        A run of a fixture is judged with the first test that uses it and is neither skipped nor expected to fail, and with that one
        again if it is repeated.
        """
        __tracebackhide__ = True
        if told := getattr(item, "_excinfo", None):  # of unittest, which raises nothing
            self.stopped(item, record, told[0].value)
            return
        worst = self._judge(item, record)
        if worst is not None:
            raise fail_level.error(worst)

    def stopped(self, item: Any, record: Record, error: BaseException) -> None:
        """The test raised: judge its runs, and raise nothing more."""
        self._judge(item, record, skipped=type(error).__name__ == "Skipped")  # pytest's own, which we may not import

    def _judge(self, item: Any, record: Record, *, skipped: bool = False) -> Verdict | None:
        owners = self.owners.used_by(item)
        runs = [run for owner in owners for run in self._runs.get(owner, ())]
        if self.mode != "compare" and runs:
            record.now.baseline.append({"uses": [run.key for run in runs]})
        if skipped or item.get_closest_marker("xfail") is not None:
            return None  # its failure would be none: the run waits for another test
        worst, name = None, name_of(item)
        for run in runs:
            if run.verdict is None or run.claimed not in (None, name):
                continue
            run.claimed = name
            record.now.judged(run.verdict, run.trace, run.where)
            record.now.verdicts_reached([run.verdict], [run.trace])
            if fail_level.raises(run.verdict) and (
                worst is None or (worst.status != "fail" and run.verdict.status == "fail")
            ):
                worst = run.verdict
        return worst

    # ------------------------------------------------------------------ runs
    def kept(self, trace: Trace, again: Again | None, record: Record, where: tuple[str, int] | None) -> None:
        """A run has ended. Examples of hypothesis are no runs of a baseline: there are as many as it likes, each another."""
        owner = self.owners.current
        if owner is None or in_example():
            return
        mine = self._runs.setdefault(owner, [])
        run = _Run(owner if not mine else f"{owner} #{len(mine) + 1}", trace, where)
        mine.append(run)
        try:
            told = self._told(run, trace, again)
        except Exception as error:  # noqa: BLE001 - whoever trains is not to suffer from what we keep of it
            told = {"status": "broken", "why": [f"{type(error).__name__}: {one_line(str(error), 300)}"]}
        record.now.baseline.append({"key": run.key, **told})

    def _told(self, run: _Run, trace: Trace, again: Again | None) -> dict[str, Any]:
        entry = None if self.baseline is None else self.baseline.runs.get(run.key)
        made_of = fingerprint(trace, _data(again))
        if self.mode == "update" or (self.mode == "new" and entry is None):
            return self._recorded(trace, again, made_of)
        if entry is None or self.baseline is None:
            return {"status": "missing"}
        verdict = compare(run.key, entry, trace, made_of, comparisons=self.baseline.comparisons, file=self.file)
        if fail_level.raises(verdict) and (note := repeatable(trace)):
            verdict = replace(verdict, notes=(*verdict.notes, note))
        run.verdict = verdict
        status = {"pass": "within", "fail": "worse", "skipped": "not compared", "advice": "apart"}.get(
            verdict.status, verdict.status
        )
        if status == "within" and not verdict.evidence:
            status = "same"
        why = verdict.headline.partition(": ")[2] if status == "not compared" else verdict.headline
        better = [note for note in verdict.notes if note.startswith("better: ")]
        return {"status": status, "why": [] if status in ("same", "within") else [why], "better": better}

    def _recorded(self, trace: Trace, again: Again | None, made_of: dict[str, str]) -> dict[str, Any]:
        why: list[str] = []
        traces: Sequence[Trace] = [trace]
        if trace.stopped is None and again is not None:
            try:
                with listening(_Progress(current())):
                    traces = list(again.seeds(self.seeds))
            except Exception as error:  # noqa: BLE001 - the user's code under a seed of ours, or batches that are spent
                traces = [trace]
                why.append(f"it could not be repeated ({one_line(str(error) or type(error).__name__, 200)})")
        try:
            entry = entry_of(traces, made_of)
        except Unrecordable as error:
            return {"status": "unrecordable", "why": [str(error)]}
        return {"status": "recorded", "why": why, "entry": encode(entry), "blind": blind(entry, trace)}


def blind(entry: Entry, trace: Trace) -> list[str]:
    """Numbers that scatter so much that even a run which learns nothing would be within chance, were this entry the whole file."""
    now, found = measures(trace), []
    nothing = {f"metric.{m.name}": m.baseline for m in trace.metrics}
    for name, kept in entry.measures.items():
        if name.startswith("motion."):
            allowed = tolerance(kept, entry.seeds, entry.comparisons, floor_of(kept, None, entry), sides=2)
            hidden = kept.mean > 0 and allowed > math.log(UNSEEN)
        elif name.endswith("loss.drop") or nothing.get(name) is not None:
            allowed = tolerance(kept, entry.seeds, entry.comparisons, floor_of(kept, now.get(name), entry), sides=1)
            hidden = kept.mean - allowed <= (nothing.get(name) or 0.0)
        else:
            continue
        if hidden:
            found.append(name)
    return found


def _data(again: Again | None) -> str | None:
    """Hash of the batches; None: not known."""
    if again is None:
        return None
    try:
        return again.data()
    except Exception:  # noqa: BLE001 - a kind of tensor that has no bytes to look at
        return None
