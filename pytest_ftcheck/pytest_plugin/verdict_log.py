"""Repeats become one line: what a test concluded, folded by check, however often it asked.

A property test judges hundreds of examples, a loop may judge thousands. What is kept, and what crosses processes, grows with the
number of different checks, never with the number of calls.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..core import fail_level
from ..core.formatting import plural
from ..core.hypothesis_target import in_example
from ..reports.run_metrics import figures

if TYPE_CHECKING:
    from ..core.trace import Trace
    from ..core.verdict import Verdict

#: Traces kept of a test's phase: the first ones, and as many of the last (under ``@given`` the last is the simplest failure's).
TRACES_KEPT = 2

#: From the worst to the plainest.
_WORST_FIRST = ("fail", "inconclusive", "advice", "pass", "skipped")


class Repeats:
    """All verdicts of one check in one phase of a test: how many of which status, and the one to show.

    Shown is the worst status' verdict; among equals the one nearest to its limit (or furthest beyond) where verdicts have a
    margin. Without margins it is the first that passed, or the last that failed. Under ``@given`` it is always the last that
    failed: hypothesis ends with the simplest example, which is the one that pytest's own report is about.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.shown: Verdict | None = None
        #: File and line of the call that came to the verdict shown.
        self.where: tuple[str, int] | None = None
        #: Whether its assertion raised.
        self.gated = False
        #: Whether hypothesis chose the examples.
        self.given = False

    def add(self, verdict: Verdict, *, given: bool = False, where: tuple[str, int] | None = None) -> None:
        """One more."""
        self.counts[verdict.status] += 1
        self.given = self.given or given
        if self.shown is None or self._before(verdict, self.shown):
            self.shown, self.where, self.gated = verdict, where, fail_level.raises(verdict)

    def _before(self, new: Verdict, old: Verdict) -> bool:
        if self.given and not new.ok and not old.ok:
            return True
        worse = _WORST_FIRST.index(old.status) - _WORST_FIRST.index(new.status)
        if worse:
            return worse > 0
        if new.margin is not None and old.margin is not None:
            return new.margin < old.margin
        return not new.ok

    def plain(self, *, failed: bool = False) -> dict[str, Any]:
        """In builtins, for nothing else crosses processes; ``failed``: the test's phase did."""
        verdict = self.shown
        assert verdict is not None
        return {
            "check": verdict.check,
            "status": str(verdict.status),
            "headline": verdict.headline,
            "ok": verdict.ok,
            "gated": self.gated,
            # the whole message only where it may have to be shown
            "message": "" if verdict.ok and not self.gated else str(verdict),
            "counts": dict(self.counts),
            "told": told(verdict, self.counts, shrunk=self.given and failed),
            "fault": verdict.fault,
            "limit": verdict.limit,
            "causes": list(verdict.causes),
            "remedy": verdict.remedy,
            "margin": None if verdict.margin is None else float(verdict.margin),
            "where": None if self.where is None else list(self.where),
        }


def told(verdict: Verdict, counts: Counter[str], *, shrunk: bool = False) -> str:
    """The headline, after how often the check was asked.

    :param shrunk: hypothesis has looked for the simplest example, and this verdict is about it.

    >>> from pytest_ftcheck import Verdict
    >>> told(Verdict("weights_move", "pass", "4 of 4 moved."), Counter({"pass": 100}))
    '100 times, all pass; the first: 4 of 4 moved.'
    """
    total = sum(counts.values())
    if total == 1:
        return verdict.headline
    if len(counts) == 1:
        outcome = f"all {verdict.status}"
    else:
        outcome = ", ".join(f"{counts[status]:,} {status}" for status in _WORST_FIRST if counts[status])
    if shrunk and not verdict.ok:
        which = "the simplest"
    elif verdict.margin is not None:
        which = "the closest" if verdict.ok else "the worst"
    else:
        which = "the first" if verdict.ok else "the last"
    return f"{plural(total, 'time')}, {outcome}; {which}: {verdict.headline}"


class Ends:
    """The first and the last few traces of a series, and how many there were."""

    def __init__(self) -> None:
        self.first: list[Trace] = []
        self.last: deque[Trace] = deque(maxlen=TRACES_KEPT)
        self.count = 0

    def __iter__(self) -> Iterator[Trace]:
        yield from self.first
        yield from self.last

    def add(self, trace: Trace) -> None:
        """Count it, and keep it if it is among the first or the last."""
        self.count += 1
        if len(self.first) < TRACES_KEPT:
            self.first.append(trace)
        else:
            self.last.append(trace)


class Phase:
    """What one phase of a test (setup, call, teardown) concluded and measured."""

    def __init__(self) -> None:
        self.repeats: dict[str, Repeats] = {}
        self._measured = Ends()
        #: Judged here and measured elsewhere, as by a fixture of the module.
        self._borrowed = Ends()
        #: What `calibrate.gather` told.
        self.calibrations: list[dict[str, Any]] = []
        #: What `baseline.keeper.Keeper` made of the runs.
        self.baseline: list[dict[str, Any]] = []

    def __bool__(self) -> bool:
        return bool(self.repeats or self._measured.count or self.calibrations or self.baseline)

    def judged(self, verdict: Verdict, trace: Trace | None = None, where: tuple[str, int] | None = None) -> None:
        """Count it, and keep it if it is the one to show."""
        self.repeats.setdefault(verdict.check, Repeats()).add(verdict, given=in_example(), where=where)
        if trace is not None and not any(trace is known for known in (*self._measured, *self._borrowed)):
            self._borrowed.add(trace)

    def measured(self, trace: Trace) -> None:
        """Count it, and keep it if it is among the first or the last."""
        self._measured.add(trace)

    @property
    def traced(self) -> int:
        """How many traces were measured."""
        return self._measured.count

    @property
    def traces(self) -> list[Trace]:
        """Those measured and kept, in order."""
        return list(self._measured)

    @property
    def runs(self) -> list[Trace]:
        """Those kept, wherever they were measured."""
        return [*self._measured, *self._borrowed]

    @property
    def let_through(self) -> bool:
        """Whether something could not be decided, and the session lets that through."""
        return any(r.shown is not None and not r.shown.ok and not r.gated for r in self.repeats.values())

    def plain(self, *, failed: bool = False, carry: Callable[[Trace], dict[str, Any]] | None = None) -> dict[str, Any]:
        """In builtins, for nothing else crosses processes.

        :param failed: the phase did.  :param carry: what is to be told of each trace beside its figures; None: nothing.
        """
        traces = [repr(trace) for trace in self.traces]
        if left := self.traced - len(traces):
            traces.insert(len(self._measured.first), f"... and {plural(left, 'trace')} more ...")
        return {
            "verdicts": [r.plain(failed=failed) for r in self.repeats.values()],
            "traces": traces,
            "runs": [
                {
                    "summary": repr(t),
                    "figures": figures(t),
                    "environment": dict(t.environment),
                    **(carry(t) if carry else {}),
                }
                for t in self.runs
            ],
            **({"calibrations": self.calibrations} if self.calibrations else {}),
            **({"baseline": self.baseline} if self.baseline else {}),
        }


class Record:
    """What one test concluded and measured, over all its phases.

    ``verdicts`` has one verdict a check and phase, the worst; ``counts`` says how many there were; ``traces`` has the first and
    the last few of each phase.
    """

    def __init__(self) -> None:
        self.phases: list[Phase] = [Phase()]

    @property
    def now(self) -> Phase:
        """The phase that runs."""
        return self.phases[-1]

    def close(self) -> Phase:
        """End the phase that runs, and give what it had."""
        ended = self.now
        self.phases.append(Phase())
        return ended

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict to show of each check, in the order in which the checks were first asked."""
        return [r.shown for r in self._repeats() if r.shown is not None]

    @property
    def counts(self) -> Counter[str]:
        """Verdicts by status, repeats counted."""
        return sum((r.counts for r in self._repeats()), Counter())

    @property
    def traces(self) -> list[Trace]:
        """The traces kept."""
        return [trace for phase in self.phases for trace in phase.traces]

    @property
    def let_through(self) -> bool:
        """Whether something could not be decided, and the session lets that through."""
        return any(phase.let_through for phase in self.phases)

    def properties(self) -> dict[str, str | float]:
        """As JUnit properties: ``ftcheck.CHECK`` is the worst status, ``ftcheck.loss.initial`` a number of the first run,
        ``ftcheck.2.loss.initial`` of the second.

        >>> from pytest_ftcheck import Verdict
        >>> record = Record()
        >>> record.now.judged(Verdict("weights_move", "pass", "4 of 4 moved."))
        >>> record.properties()
        {'ftcheck.weights_move': 'pass'}
        """
        found: dict[str, str | float] = {}
        for verdict in self.verdicts:
            name = f"ftcheck.{verdict.check}"
            found[name] = min(str(verdict.status), str(found.get(name, verdict.status)), key=_WORST_FIRST.index)
        runs: list[Trace] = []
        for trace in (t for phase in self.phases for t in phase.runs):
            if not any(trace is known for known in runs):
                runs.append(trace)
        for number, trace in enumerate(runs, 1):
            prefix = "ftcheck." if number == 1 else f"ftcheck.{number}."
            found |= {prefix + name: value for name, value in figures(trace).items()}
        return found

    def _repeats(self) -> Iterable[Repeats]:
        return (r for phase in self.phases for r in phase.repeats.values())
