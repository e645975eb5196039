"""The page's content before it is HTML: the overview, and a section for each fine-tune."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...checks.diagnosis import Diagnosis
from ...core.formatting import cell, number, one_line, percent, plural
from ...core.recipe import Recipe
from ...core.verdict import Verdict
from .. import chart_data
from ..run_metrics import head_stands_still, run_metrics
from ..session_diagnosis import diagnosis_of
from ..sparkline import polylines
from .chart import Chart
from .charts import charts
from .compressed_trace import pack, unpack
from .tokens import TokenPicture, token_picture

if TYPE_CHECKING:
    from ...core.trace import Trace
    from ..session_result import CaseResult, ReportedVerdict, SessionResult

#: Health -> mark: it is never shown by colour alone.
MARKS = {"unhealthy": "✕", "undecided": "?", "healthy": "✓"}
STATUS_MARKS = {"fail": "✕", "inconclusive": "?", "advice": "i", "pass": "✓", "skipped": "–"}
STATUS_TITLES = {"fail": "Failed", "inconclusive": "Inconclusive", "advice": "Advice", "pass": "Passed"}
WORST_FIRST = ("unhealthy", "undecided", "healthy")
#: Characters of a name.
NAME = 300
#: Rows of evidence shown; width, height and points of the curve in the overview.
ROWS = 12
SPARK = (96, 26)
POINTS = 60


@dataclass(frozen=True)
class FineTune:
    """One run, and the tests that measured or judged it."""

    #: None: it is in ``packed``, and is unpacked where it is needed, so that a page of many runs has one in memory.
    trace: Trace | None
    #: Empty: named after its tests.
    name: str = ""
    tests: tuple[CaseResult, ...] = ()
    #: The trace as `compressed_trace.pack` gives it; None: not packed yet.
    packed: Callable[[], str] | None = None
    #: What those tests concluded of it, one a check; empty: no test judged it.
    verdicts: tuple[Verdict, ...] = ()

    def read(self) -> Trace:
        """The trace."""
        if self.trace is not None:
            return self.trace
        return unpack(self.text())

    def text(self) -> str:
        """The trace, packed."""
        return self._own_text if self.packed is None else self.packed()

    @cached_property
    def _own_text(self) -> str:
        assert self.trace is not None
        return pack(self.trace).text


@dataclass
class Section:
    """One fine-tune as the page shows it."""

    fine_tune: FineTune
    id: str
    name: str
    #: The trace to download; empty: too large.
    packed: str = ""
    #: Its tensors' series hold every so many recorded steps.
    every: int = 1
    _trace: Trace | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[Section]:
        """Inside, the trace and what is drawn of it are in memory."""
        self._trace = self.fine_tune.read()
        try:
            yield self
        finally:
            self._trace = None
            for name in ("charts", "explanation", "verdicts"):
                vars(self).pop(name, None)

    @property
    def trace(self) -> Trace:
        """The run; inside `opened`."""
        assert self._trace is not None
        return self._trace

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """What the session concluded; where it did not judge the run, all checks."""
        return diagnosis_of(self.trace, self.fine_tune.verdicts)

    @property
    def health(self) -> str:
        """``unhealthy``, ``undecided`` or ``healthy``."""
        return self.diagnosis.status

    @property
    def source(self) -> str:
        """Whose verdicts these are."""
        if not self.fine_tune.verdicts:
            return "No test judged this run: these are all checks with their defaults." if self.tests else ""
        return "These are the verdicts of the tests." if self.diagnosis.not_run else ""

    @property
    def headline(self) -> str:
        """The diagnosis in a sentence."""
        text = one_line(self.diagnosis.headline, 600)
        return text[:1].upper() + text[1:] + "."

    def row(self, first: Section) -> str:
        """Its line in the list of all fine-tunes: the diagnosis in a sentence, but not what is read right below the list.

        :param first: the fine-tune whose section stands there.
        """
        own, shown = ([cause.title for cause in s.diagnosis.causes] for s in (self, first))
        if not own or own != shown:
            return self.headline
        failed = plural(len(self.diagnosis.having("fail")), "check")
        which = "the cause is" if len(own) == 1 else "the causes are"
        return f"{failed} failed: {which} {'below' if self is first else f'that of {first.name}'}."

    @property
    def coverage(self) -> str:
        """How many checks failed, judged the run, and were left out."""
        failed = len(self.diagnosis.having("fail"))
        counted = f"{plural(failed, 'check')} failed; " if failed else ""
        return f"{counted}{one_line(self.diagnosis.coverage, 1_200)}."

    @cached_property
    def charts(self) -> tuple[Chart, ...]:
        """Its charts, in order."""
        return tuple(charts(self.trace).values())

    def chart(self, name: str) -> Chart:
        """One of them."""
        return next(c for c in self.charts if c.id == name)

    @property
    def metrics(self) -> tuple[Chart, ...]:
        """Those of the metrics."""
        return tuple(c for c in self.charts if c.kind == "metric")

    @cached_property
    def tokens(self) -> TokenPicture | None:
        """Which tokens are trained; None where there is not one label a token."""
        return token_picture(self.trace)

    @cached_property
    def explanation(self) -> tuple[tuple[str, str], ...]:
        """The four lines of `explain_weight_motion`."""
        return chart_data.weights(self.trace).explanation if self.trace.tensors else ()

    @cached_property
    def verdicts(self) -> tuple[tuple[str, str, str, tuple[Verdict, ...]], ...]:
        """Status, mark, title and verdicts of each status; the worst first."""
        found = self.diagnosis
        skipped, mark = found.having("skipped"), STATUS_MARKS["skipped"]
        groups = (
            *((s, STATUS_MARKS[s], title, found.having(s)) for s, title in STATUS_TITLES.items()),  # type: ignore[arg-type]
            ("skipped", mark, "Not measured", tuple(v for v in skipped if v.unmeasured)),
            ("skipped", mark, "Does not apply", tuple(v for v in skipped if not v.unmeasured)),
        )
        return tuple(g for g in groups if g[3])

    @cached_property
    def spark(self) -> tuple[str, ...]:
        """The training losses as lines in a box of `SPARK`."""
        losses = [s for s in chart_data.loss(self.trace).series if s.kind == "train"]
        return polylines(losses[0], *SPARK, most=POINTS) if losses else ()

    @cached_property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Its facts in the overview: label and numbers."""
        numbers = run_metrics(self.trace)
        found = []
        steps = f"in {plural(len(self.trace.steps), 'step')}"
        if "loss.initial" in numbers:
            found.append(("loss", f"{number(numbers['loss.initial'])} → {number(numbers['loss.final'])} {steps}"))
        else:
            found.append(("loss", f"not reported, {steps}"))
        if state := self.head_still:
            found.append(("head", state))
        elif "motion.head" in numbers:
            found.append(("head", f"moved {percent(numbers['motion.head'])} of its LR budget"))
        for metric in self.trace.metrics[:1]:
            against = f" (majority {number(metric.baseline)})" if metric.baseline is not None else ""
            found.append((one_line(metric.name, 24), f"{number(metric.first)} → {number(metric.last)}{against}"))
        return tuple(found)

    @cached_property
    def head_still(self) -> str:
        """``frozen`` or ``did not move``; empty: it moved, or there is none."""
        return head_state(self.trace)

    @cached_property
    def open_question(self) -> str:
        """Whether a frozen head is intended; empty: it is not frozen, it is declared, or a check failed."""
        if self.health == "unhealthy" or not undeclared(self.trace, self.head_still):
            return ""
        names = ", ".join(self.trace.head)
        return one_line(
            f"The whole head ({names}) is frozen, and no intent is declared. If it should train, declare Intent(trained={names!r}); "
            f"if not, Intent(frozen={names!r}).",
            600,
        )

    @property
    def tests(self) -> tuple[CaseResult, ...]:
        """The tests, the red ones first."""
        return tuple(sorted(self.fine_tune.tests, key=lambda case: not case.red))

    @property
    def counted(self) -> str:
        """The tests by outcome."""
        counts = Counter(case.outcome for case in self.tests)
        return ", ".join(f"{count:,} {outcome}" for outcome, count in counts.most_common())

    @property
    def no_test_failed(self) -> str:
        """Why an unhealthy run made no test fail; empty: one failed, or the run is not unhealthy."""
        if not self.tests or self.health != "unhealthy" or any(case.red for case in self.tests):
            return ""
        reason = "the failure was expected" if self.fine_tune.verdicts else "no test ran these checks"
        return f"No test failed because of this: {reason}."

    @property
    def recipe(self) -> str:
        """The recipe as code; empty where there is none."""
        trace = self.trace
        return code(trace.recipe_in_force, trace.own_arguments) if trace.recipe is not None else ""

    @property
    def environment(self) -> tuple[tuple[str, str], ...]:
        """Versions, device, what ran how long."""
        trace, optimizer = self.trace, self.trace.optimizer
        rows = [
            *trace.environment.items(),
            ("optimizer", f"{optimizer.name}, {plural(len(optimizer.groups), 'parameter group')}"),
            ("head", ", ".join(trace.head)),
            ("inputs", trace.reading.inputs),
            ("outputs", trace.reading.outputs),
            ("loss", trace.reading.loss),
            ("labels", trace.reading.labels or ""),
            ("seconds", f"{number(trace.seconds)}, of training {number(trace.training_seconds)}"),
        ]
        return tuple((one_line(k, 60), one_line(str(v), 400)) for k, v in rows if str(v))

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks on the run."""
        stopped = (f"The run ended early: {self.trace.stopped}",) if self.trace.stopped else ()
        skipped = tuple(
            f"{'Does not apply' if name in self.trace.not_applicable else 'Not measured'}: {name} ({reason})"
            for name, reason in self.trace.skipped.items()
        )
        return tuple(one_line(text, 500) for text in (*stopped, *self.trace.notes, *skipped))

    @property
    def file(self) -> str:
        """File name of the saved trace."""
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in self.name)[-60:].strip("-")
        return f"trace-{plain or self.id}.json"


@dataclass(frozen=True)
class Overview:
    """The top of the page."""

    headline: str
    #: The worst health there is; ``none``: no fine-tune.
    health: str
    counts: tuple[tuple[str, str, int], ...]
    #: Tests by outcome; empty: no session.
    tests: str = ""
    #: Tests without a fine-tune in the page.
    others: tuple[CaseResult, ...] = ()
    #: Label and value.
    facts: tuple[tuple[str, str], ...] = field(default=())


def head_state(trace: Trace) -> str:
    """``frozen`` or ``did not move``, if nothing of the head moved."""
    if not head_stands_still(trace):
        return ""
    return "did not move" if any(t.trainable for t in trace.tensors if t.part == "head") else "frozen"


def undeclared(trace: Trace, state: str) -> bool:
    """Whether the head is frozen, and no intent is declared for it."""
    intent = trace.intent
    return state == "frozen" and not (intent is not None and (intent.trained or intent.frozen))


def overview(sections: Sequence[Section], session: SessionResult | None) -> Overview:
    """The summary of all fine-tunes."""
    counts = Counter(section.health for section in sections)
    worst = next((health for health in WORST_FIRST if counts[health]), "none")
    tests = ""
    others: tuple[CaseResult, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    headline = _headline(sections, worst, counts[worst])
    if session is not None:
        outcomes = Counter(case.outcome for case in session.tests)
        tests = ", ".join(f"{n:,} {outcome}" for outcome, n in outcomes.most_common())
        tests = f"{plural(len(session.tests), 'test')}: {tests}" if tests else "no tests"
        shown = {(case.nodeid, case.worker) for section in sections for case in section.tests}
        others = tuple(case for case in session.tests if (case.nodeid, case.worker) not in shown)
        facts = (
            *session.environment.items(),
            *session.settings.items(),
            ("fails on", session.fail_on),
            ("exit status", str(session.exit_status)),
        )
        if worst in ("healthy", "none") and (red := sum(case.red for case in session.tests)):
            but = " " if headline.endswith("?") else ", but "
            headline, worst = f"{headline}{but}{plural(red, 'test')} failed", "unhealthy"
    marks = tuple((health, MARKS[health], counts[health]) for health in WORST_FIRST if counts[health])
    return Overview(headline, worst, marks, tests, others, facts)


def _headline(sections: Sequence[Section], worst: str, count: int) -> str:
    total = len(sections)
    if not total:
        return "No fine-tune was measured"
    be = "is" if count == 1 else "are"
    if worst == "unhealthy":
        return "The fine-tune is unhealthy" if total == 1 else f"{count:,} of {total:,} fine-tunes {be} unhealthy"
    if worst == "undecided":
        return (
            "No check failed, but some were inconclusive"
            if total == 1
            else f"No check failed, but {count:,} of {total:,} fine-tunes {be} undecided"
        )
    text = "The fine-tune is healthy" if total == 1 else f"All {total:,} fine-tunes are healthy"
    frozen = sum(bool(section.open_question) for section in sections)
    if not frozen:
        return text
    if total == 1:
        return f"{text}, but its whole head is frozen: is that intended?"
    return f"{text}, but {frozen:,} {'has' if frozen == 1 else 'have'} a frozen head: is that intended?"


def sections_of(fine_tunes: Sequence[FineTune]) -> list[Section]:
    """A section each: the unhealthy ones first, healthy ones with an open question before the others, else in the order given."""
    found = [Section(f, "", name) for f, name in zip(fine_tunes, names(fine_tunes), strict=True)]
    for section in one_at_a_time(found):
        _ = section.diagnosis, section.open_question, section.facts, section.spark  # what the overview shows is kept
    found.sort(key=lambda section: (WORST_FIRST.index(section.health), not section.open_question))
    for place, section in enumerate(found, 1):
        section.id = f"run-{place}"
    return found


def one_at_a_time(sections: Iterable[Section]) -> Iterator[Section]:
    """Each section, with its trace in memory until the next one comes."""
    for section in sections:
        with section.opened():
            yield section


def names(fine_tunes: Sequence[FineTune]) -> list[str]:
    """Distinct names: a fine-tune's own, else that of the first test that used it."""
    wanted = []
    for place, f in enumerate(fine_tunes, 1):
        if f.name or not f.tests:
            wanted.append(one_line(f.name, NAME) or f"fine-tune {place}")
            continue
        first = f.tests[0]
        worker = f" [{first.worker}]" if first.worker else ""
        more = f" and {plural(len(f.tests) - 1, 'more test')}" if len(f.tests) > 1 else ""
        wanted.append(f"{one_line(first.nodeid, NAME)}{worker}{more}")
    total, used = Counter(wanted), Counter[str]()
    found = []
    for name in wanted:
        used[name] += 1
        found.append(f"{name} (run {used[name]} of {total[name]})" if total[name] > 1 else name)
    return found


def code(recipe: Mapping[str, Any], own: Sequence[str] = ()) -> str:
    """The recipe as code to paste: the fields that differ from the defaults, and the arguments that were objects of the user's.

    :param recipe: its fields that were in force.  :param own: names of those arguments; their values are not in the trace.

    >>> print(code({"lr": 0.001, "steps": 50}, ["step"]))
    from pytest_ftcheck import Recipe, finetune
    <BLANKLINE>
    recipe = Recipe(
        lr=0.001,
        steps=50,
    )
    # yours, and not in the trace: model, batches, step
    trace = finetune(
        model, batches, recipe,
        step=step,
    )
    """
    default = Recipe()
    changed = [f"    {n}={value!r},\n" for n, value in recipe.items() if value != getattr(default, n)]
    recipe_code = "Recipe(\n" + "".join(changed) + ")" if changed else "Recipe()  # all defaults"
    remark = f"# yours, and not in the trace: {', '.join(('model', 'batches', *own))}\n" if own else ""
    given = "model, batches, recipe"
    if own:
        given = "".join(("\n    ", given, ",\n", *(f"    {name}={name},\n" for name in own)))
    return f"from pytest_ftcheck import Recipe, finetune\n\nrecipe = {recipe_code}\n{remark}trace = finetune({given})"


def rows(evidence: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]], int]:
    """The evidence as a table: columns, cells, and the number of rows left out."""
    columns = tuple(dict.fromkeys(k for row in evidence for k in row if any(r.get(k) is not None for r in evidence)))
    shown = evidence[:ROWS]
    return columns, [tuple(cell(row.get(c)) for c in columns) for row in shown], len(evidence) - len(shown)


def sorted_verdicts(case: CaseResult) -> tuple[ReportedVerdict, ...]:
    """The test's verdicts, the worst first."""
    order = list(STATUS_MARKS)
    return tuple(sorted(case.verdicts, key=lambda v: order.index(v.status) if v.status in order else len(order)))
