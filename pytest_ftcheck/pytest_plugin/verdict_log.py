"""What a test concluded and measured: repeated verdicts become one line a check.

A property test judges hundreds of examples, a loop may judge thousands. What is kept, and what crosses processes, grows with the
number of different checks, never with the number of calls.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core import fail_level
from ..core.formatting import plural
from ..core.hypothesis_target import in_example
from ..core.verdict import WORST_FIRST
from ..reports.run_metrics import run_metrics

if TYPE_CHECKING:
    from ..core.trace import Trace
    from ..core.verdict import Verdict
    from ..reports.session_result import ReportedVerdict
    from ..seeds.calibration import CheckCalibration
    from .baseline.run_outcome import RunOutcome

#: Attribute of a pytest report that holds the encoded `PhaseReport`.
ATTRIBUTE = "ftcheck"
#: Traces kept of a test's phase: this many of the first and of the last (under ``@given`` the last is the simplest failure's).
TRACES_KEPT = 2


class RepeatedVerdict:
    """All verdicts of one check in one phase of a test: how many of which status, and the one to show.

    Shown is a verdict of the worst status. Among equals it is the one nearest to its limit (or furthest beyond) where verdicts have a
    margin, else the first that passed or the last that failed. Under ``@given`` it is always the last that failed: hypothesis ends with
    the simplest example, which is the one in pytest's own report.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.shown: Verdict | None = None
        #: File and line of the call that gave the shown verdict.
        self.call_site: tuple[str, int] | None = None
        #: Whether its assertion raised.
        self.blocking = False
        #: Whether hypothesis chose the examples.
        self.by_hypothesis = False

    @property
    def tolerated(self) -> bool:
        """The check was inconclusive, and the session does not fail on that."""
        return self.shown is not None and not self.shown.ok and not self.blocking

    def add(self, verdict: Verdict, *, by_hypothesis: bool = False, call_site: tuple[str, int] | None = None) -> None:
        """Count the verdict, and keep it if it is the one to show."""
        self.counts[verdict.status] += 1
        self.by_hypothesis = self.by_hypothesis or by_hypothesis
        if self.shown is None or self._replaces(verdict, self.shown):
            self.shown, self.call_site = verdict, call_site
            self.blocking = fail_level.raises(verdict)

    def _replaces(self, new: Verdict, old: Verdict) -> bool:
        if self.by_hypothesis and not new.ok and not old.ok:
            return True
        worse = WORST_FIRST.index(old.status) - WORST_FIRST.index(new.status)
        if worse:
            return worse > 0
        if new.margin is not None and old.margin is not None:
            return new.margin < old.margin
        return not new.ok

    def report(self, when: str, *, failed: bool) -> ReportedVerdict:
        """The shown verdict, for reports.

        :param when: the phase.  :param failed: whether the phase failed.
        """
        from ..reports.session_result import ReportedVerdict

        verdict = self.shown
        assert verdict is not None
        file, line = self.call_site or (None, None)
        return ReportedVerdict(
            check=verdict.check,
            status=str(verdict.status),
            headline=verdict.headline,
            summary=summary(verdict, self.counts, shrunk=self.by_hypothesis and failed),
            # the whole message only where it may have to be shown
            message="" if verdict.ok and not self.blocking else str(verdict),
            fault=verdict.fault,
            limit=verdict.limit,
            causes=tuple(verdict.causes),
            remedy=verdict.remedy,
            margin=None if verdict.margin is None else float(verdict.margin),
            counts=dict(self.counts),
            blocking=self.blocking,
            when=when,
            file=file,
            line=line,
        )


def summary(verdict: Verdict, counts: Counter[str], *, shrunk: bool = False) -> str:
    """The headline, after how often the check gave which status.

    :param shrunk: hypothesis has searched for the simplest example, and this verdict is about it.

    >>> from pytest_ftcheck import Verdict
    >>> summary(Verdict("weights_move", "pass", "4 of 4 moved."), Counter({"pass": 100}))
    '100 times, all pass; the first: 4 of 4 moved.'
    """
    total = sum(counts.values())
    if total == 1:
        return verdict.headline
    if len(counts) == 1:
        outcome = f"all {verdict.status}"
    else:
        outcome = ", ".join(f"{counts[status]:,} {status}" for status in WORST_FIRST if counts[status])
    if shrunk and not verdict.ok:
        which = "the simplest"
    elif verdict.margin is not None:
        which = "the closest" if verdict.ok else "the worst"
    else:
        which = "the first" if verdict.ok else "the last"
    return f"{plural(total, 'time')}, {outcome}; {which}: {verdict.headline}"


@dataclass
class KeptRun:
    """A trace, and the worst verdict of each check on it, the latest of equals."""

    trace: Trace
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def judged(self, verdicts: Iterable[Verdict]) -> None:
        """Keep these verdicts, where none is worse."""
        for verdict in verdicts:
            known = self.verdicts.get(verdict.check)
            if known is None or WORST_FIRST.index(verdict.status) <= WORST_FIRST.index(known.status):
                self.verdicts[verdict.check] = verdict


class FirstAndLast:
    """The first and the last few runs of a series, and their number."""

    def __init__(self) -> None:
        self._first: list[KeptRun] = []
        self._last: deque[KeptRun] = deque(maxlen=TRACES_KEPT)
        self.count = 0

    def __iter__(self) -> Iterator[KeptRun]:
        yield from self._first
        yield from self._last

    @property
    def left_out(self) -> int:
        """How many runs were counted, not kept."""
        return self.count - len(self._first) - len(self._last)

    def release(self) -> None:
        """Keep none of them; the number stays."""
        self._first.clear()
        self._last.clear()

    def add(self, trace: Trace) -> None:
        """Count the trace, and keep it if it is among the first or the last."""
        self.count += 1
        if len(self._first) < TRACES_KEPT:
            self._first.append(KeptRun(trace))
        else:
            self._last.append(KeptRun(trace))


class Phase:
    """What one phase of a test (setup, call, teardown) concluded and measured."""

    def __init__(self) -> None:
        self.verdicts: dict[str, RepeatedVerdict] = {}
        self._measured = FirstAndLast()
        #: Judged here and measured elsewhere, for example by a fixture of the module.
        self._borrowed = FirstAndLast()
        self.calibrations: list[CheckCalibration] = []
        self.baseline: list[RunOutcome] = []
        #: Names of the baseline runs that the test used, while the baseline is written.
        self.baseline_runs_used: list[str] = []

    def __bool__(self) -> bool:
        by_products = (self.calibrations, self.baseline, self.baseline_runs_used)
        return bool(self.verdicts or self._measured.count or any(by_products))

    def judged(self, verdict: Verdict, trace: Trace | None = None, call_site: tuple[str, int] | None = None) -> None:
        """Count a verdict, and keep it if it is the one to show."""
        repeated = self.verdicts.setdefault(verdict.check, RepeatedVerdict())
        repeated.add(verdict, by_hypothesis=in_example(), call_site=call_site)
        if trace is not None:
            self._keep(trace)

    def _keep(self, trace: Trace) -> None:
        if not any(trace is run.trace for run in self.runs):
            self._borrowed.add(trace)

    def verdicts_reached(self, verdicts: Sequence[Verdict], traces: Sequence[Trace]) -> None:
        """Keep the verdicts with the first and the last of the traces, and with those that are kept already."""
        for trace in (*traces[:TRACES_KEPT], *traces[TRACES_KEPT:][-TRACES_KEPT:]):
            self._keep(trace)
        for run in self.runs:
            if any(run.trace is trace for trace in traces):
                run.judged(verdicts)

    def measured(self, trace: Trace) -> None:
        """Count a trace, and keep it if it is among the first or the last."""
        self._measured.add(trace)

    def release(self) -> None:
        """Keep the traces no longer: all that is reported of them was read."""
        self._measured.release()
        self._borrowed.release()

    @property
    def left_out(self) -> int:
        """How many measured runs were counted, not kept."""
        return self._measured.left_out

    @property
    def not_measured(self) -> tuple[str, ...]:
        """Checks that one of the runs has no measurement for; those that a test asked for by name have a verdict that says so."""
        found = (name for run in self.runs for name, verdict in run.verdicts.items() if verdict.unmeasured)
        return tuple(name for name in dict.fromkeys(found) if name not in self.verdicts)

    @property
    def traces(self) -> list[Trace]:
        """Those measured in this phase and kept, in order."""
        return [run.trace for run in self._measured]

    @property
    def runs(self) -> list[KeptRun]:
        """Those kept, wherever they were measured."""
        return [*self._measured, *self._borrowed]

    @property
    def tolerated(self) -> bool:
        """Whether a check was inconclusive, and the session does not fail on that."""
        return any(verdict.tolerated for verdict in self.verdicts.values())


class Record:
    """What one test concluded and measured, over all its phases.

    ``verdicts`` has one verdict a check and phase, the worst; ``counts`` says how many there were; ``traces`` has the first and
    the last few of each phase, until `release`.
    """

    def __init__(self) -> None:
        self.phases: list[Phase] = [Phase()]

    @property
    def current(self) -> Phase:
        """The phase that is running."""
        return self.phases[-1]

    def close(self) -> Phase:
        """End the phase that is running, and return it."""
        ended = self.current
        self.phases.append(Phase())
        return ended

    def release(self) -> None:
        """The test is over and reported: keep its traces no longer. Pytest keeps its items until the session ends."""
        for phase in self.phases:
            phase.release()

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict to show of each check, in the order in which the checks were first called."""
        return [repeated.shown for repeated in self._repeated() if repeated.shown is not None]

    @property
    def counts(self) -> Counter[str]:
        """Verdicts by status, repeated ones counted."""
        return sum((repeated.counts for repeated in self._repeated()), Counter())

    @property
    def traces(self) -> list[Trace]:
        """The traces kept."""
        return [trace for phase in self.phases for trace in phase.traces]

    @property
    def tolerated(self) -> bool:
        """Whether a check was inconclusive, and the session does not fail on that."""
        return any(phase.tolerated for phase in self.phases)

    def properties(self) -> dict[str, str | float]:
        """As JUnit properties: ``ftcheck.CHECK`` is the worst status, ``ftcheck.loss.initial`` a number of the first run,
        ``ftcheck.2.loss.initial`` of the second.

        >>> from pytest_ftcheck import Verdict
        >>> record = Record()
        >>> record.current.judged(Verdict("weights_move", "pass", "4 of 4 moved."))
        >>> record.properties()
        {'ftcheck.weights_move': 'pass'}
        """
        found: dict[str, str | float] = {}
        for verdict in self.verdicts:
            name = f"ftcheck.{verdict.check}"
            found[name] = min(str(verdict.status), str(found.get(name, verdict.status)), key=WORST_FIRST.index)
        runs: list[Trace] = []
        for trace in (run.trace for phase in self.phases for run in phase.runs):
            if not any(trace is known for known in runs):
                runs.append(trace)
        for number, trace in enumerate(runs, 1):
            prefix = "ftcheck." if number == 1 else f"ftcheck.{number}."
            found |= {prefix + name: value for name, value in run_metrics(trace).items()}
        return found

    def _repeated(self) -> Iterable[RepeatedVerdict]:
        return (verdict for phase in self.phases for verdict in phase.verdicts.values())
