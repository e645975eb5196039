"""Two traces, or two sessions, side by side: changed verdicts and metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.formatting import one_line, percent, plural, table
from ..reports.run_metrics import CLOCK, run_metrics
from ..reports.session_result import CaseResult, ReportedVerdict, SessionResult

if TYPE_CHECKING:
    from ..core.trace import Trace

#: How bad a status is; a verdict gets worse where this grows.
BADNESS = {"pass": 0, "advice": 0, "skipped": 0, "inconclusive": 1, "fail": 2}
#: Tests whose metrics are shown.
MOST = 20


@dataclass(frozen=True)
class Change:
    """One difference."""

    #: ``worse``, ``better``, ``no longer run``, ``now run`` or ``other``.
    kind: str
    #: Node id; empty where two traces are compared.
    test: str
    what: str
    before: str
    after: str
    headline: str = ""


@dataclass
class Comparison:
    """The result of a comparison; ``print`` it."""

    changes: list[Change] = field(default_factory=list)
    #: Recipe, versions and the like: name -> before and after.
    settings: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: Title (a test, or nothing) -> name -> before and after; only where some figure differs.
    metrics: dict[str, dict[str, tuple[float | None, float | None]]] = field(default_factory=dict)
    #: Runs with identical metrics, except times.
    same: int = 0
    judged: int = 0

    @property
    def worse(self) -> bool:
        """Whether something got worse."""
        return any(change.kind == "worse" for change in self.changes)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.settings:
            yield "settings that differ:"
            yield from table([{"": name, "A": a, "B": b} for name, (a, b) in self.settings.items()])
            yield ""
        for kind in ("worse", "no longer run", "other", "now run", "better"):
            found = [change for change in self.changes if change.kind == kind]
            if found:
                yield f"{kind}:"
                for change in found:
                    where = f"{one_line(change.test, 120)} - " if change.test else ""
                    yield f"  {where}{change.what}: {change.before} -> {change.after}"
                    if change.headline:
                        yield f"    {one_line(change.headline, 400)}"
                yield ""
        for title, rows in list(self.metrics.items())[:MOST]:
            yield f"metrics{' of ' + one_line(title, 120) if title else ''}:"
            yield from table([_row(name, a, b) for name, (a, b) in rows.items()])
            yield ""
        if len(self.metrics) > MOST:
            yield f"... and {plural(len(self.metrics) - MOST, 'run')} more with different metrics"
        if self.same:
            yield f"{plural(self.same, 'run')} with identical metrics, except times"
        counts = {kind: sum(c.kind == kind for c in self.changes) for kind in ("worse", "better", "no longer run")}
        counted = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count) or "none worse, none better"
        yield f"{plural(self.judged, 'verdict')} compared: {counted}"


def _row(name: str, a: float | None, b: float | None) -> dict[str, Any]:
    change = percent((b - a) / abs(a)) if a and b is not None and a == a and b == b else "-"
    return {"": name, "A": a, "B": b, "change": f"+{change}" if a and b is not None and b > a else change}


def compare_traces(before: Trace, after: Trace) -> Comparison:
    """Every check over both traces.

    >>> from pytest_ftcheck import example_trace
    >>> compare_traces(example_trace(), example_trace()).worse
    False
    """
    from ..checks.diagnosis import diagnose

    found = Comparison()
    verdicts = [{v.check: v for v in diagnose(trace).verdicts} for trace in (before, after)]
    for check, old in verdicts[0].items():
        new = verdicts[1][check]
        found.judged += 1
        _changed(found, "", check, old.status, new.status, new.headline)
    found.settings = {
        **_differing(_recipe(before), _recipe(after), "recipe: "),
        **_differing(before.environment, after.environment, ""),
        **_differing({"head": ", ".join(before.head)}, {"head": ", ".join(after.head)}, ""),
    }
    _numbers(found, "", run_metrics(before), run_metrics(after))
    return found


def compare_sessions(before: SessionResult, after: SessionResult) -> Comparison:
    """Every verdict of every test that both have; tests that one lacks are listed.

    >>> compare_sessions(SessionResult(), SessionResult()).judged
    0
    """
    found = Comparison()
    found.settings = {
        **_differing(before.environment, after.environment, ""),
        **_differing(before.settings, after.settings, "setting: "),
        **_differing({"fail_on": before.fail_on}, {"fail_on": after.fail_on}, ""),
    }
    old, new = ({(case.nodeid, case.worker): case for case in session.tests} for session in (before, after))
    for key in sorted(old.keys() | new.keys()):
        if key not in new:
            found.changes.append(Change("no longer run", key[0], "test", old[key].outcome, "not run"))
        elif key not in old:
            found.changes.append(Change("now run", key[0], "test", "not run", new[key].outcome, new[key].reason))
        else:
            _case(found, old[key], new[key])
    return found


def _case(found: Comparison, a: CaseResult, b: CaseResult) -> None:
    old, new = _worst(a), _worst(b)
    before = len(found.changes)
    for check in {**old, **new}:
        if check in old and check in new:
            found.judged += 1
            _changed(found, a.nodeid, check, old[check].status, new[check].status, new[check].summary)
        elif check in old:
            # a failed assertion hides those after it, and is listed already
            found.changes.append(Change("no longer run", a.nodeid, check, old[check].status, "not run"))
        else:
            v = new[check]
            kind = "worse" if BADNESS[v.status] and v.blocking and b.red and not a.red else "now run"
            found.changes.append(Change(kind, a.nodeid, check, "not run", v.status, v.summary))
    mine = found.changes[before:]
    if b.red and not a.red and not any(c.kind == "worse" for c in mine):
        found.changes.append(Change("worse", a.nodeid, "test", a.outcome, b.outcome, b.reason))
    elif a.red and not b.red and not mine:
        found.changes.append(Change("better", a.nodeid, "test", a.outcome, b.outcome))
    for i, (x, y) in enumerate(zip(a.runs, b.runs, strict=False)):
        title = a.nodeid if len(a.runs) == len(b.runs) == 1 else f"{a.nodeid}, run {i + 1}"
        _numbers(found, title, x.metrics, y.metrics)
        for name, pair in _differing(x.environment, y.environment, "").items():
            found.settings.setdefault(name, pair)
    if len(a.runs) != len(b.runs):
        found.changes.append(Change("other", a.nodeid, "runs", str(len(a.runs)), str(len(b.runs))))


def _worst(case: CaseResult) -> dict[str, ReportedVerdict]:
    """The worst verdict of each check, over the phases of the test."""
    found: dict[str, ReportedVerdict] = {}
    for verdict in case.verdicts:
        known = found.get(verdict.check)
        if known is None or BADNESS[verdict.status] > BADNESS[known.status]:
            found[verdict.check] = verdict
    return found


def _changed(found: Comparison, test: str, check: str, old: str, new: str, headline: str) -> None:
    if old == new:
        return
    if BADNESS[new] != BADNESS[old]:
        kind = "worse" if BADNESS[new] > BADNESS[old] else "no longer run" if new == "skipped" else "better"
    else:
        kind = "no longer run" if new == "skipped" else "now run" if old == "skipped" else "other"
    found.changes.append(Change(kind, test, check, old, new, headline))


def _numbers(found: Comparison, title: str, a: Mapping[str, float], b: Mapping[str, float]) -> None:
    def equal(x: float | None, y: float | None) -> bool:
        return x == y or (x is not None and y is not None and x != x and y != y)

    if all(equal(a.get(name), b.get(name)) for name in {**a, **b} if name not in CLOCK):
        found.same += 1
    else:
        found.metrics[title] = {name: (a.get(name), b.get(name)) for name in {**a, **b}}


def _recipe(trace: Trace) -> dict[str, str]:
    recipe = trace.recipe
    return {} if recipe is None else {f.name: str(getattr(recipe, f.name)) for f in dataclasses.fields(recipe)}


def _differing(a: Mapping[str, str], b: Mapping[str, str], prefix: str) -> dict[str, tuple[str, str]]:
    return {prefix + n: (a.get(n, "-"), b.get(n, "-")) for n in sorted({*a, *b}) if a.get(n) != b.get(n)}
