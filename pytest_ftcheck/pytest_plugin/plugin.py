"""The pytest plugin: hooks only. Verdicts go from the core to a listener, to a test report, to the terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ..core import fail_level
from ..core.events import listening
from ..core.formatting import clean, one_line
from ..core.verdict import NARROWEST, CheckFailed
from . import options
from .call_site import called_from
from .fixtures import NAMES, _ftcheck_suite, finetune, tiny_distilbert, toy_batches, toy_features
from .ranks import marker as ranks
from .session_executor import WORKERS, session_workers
from .suite import SUITE
from .verdict_log import ATTRIBUTE, Record

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from ..core.events import Rerun
    from ..core.trace import Trace
    from ..core.verdict import Verdict
    from ..reports.html.compressed_trace import TraceSender
    from ..seeds.calibration import CheckCalibration
    from .baseline.recorder import BaselineRecorder
    from .phase_report import PhaseReport
    from .progress import ProgressLine
    from .ranks.shared_traces import SharedTraces
    from .trace_store import TraceStore
    from .write_reports import WrittenReports

__all__ = ["RECORD", "Record", "_ftcheck_suite", "finetune", "tiny_distilbert", "toy_batches", "toy_features"]

#: Attribute of a call's report that passed: an inconclusive verdict was tolerated.
TOLERATED = "ftcheck_tolerated"
#: Attribute of a report that failed because a check was inconclusive.
INCONCLUSIVE = "ftcheck_inconclusive"

#: Columns that pytest puts before a line of an error: its mark, and the indentation of the failing line of a test.
_MARGIN = 9
#: Styles of --tb in which pytest's own failure report leaves the message out, or all but its first line.
_WITHOUT_MESSAGE = ("no",) if pytest.version_tuple >= (9,) else ("no", "line")

#: Either of them: the session runs on GitHub Actions.
GITHUB = frozenset({"GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"})
#: The plugin that annotates every failure on GitHub; where it is active, ours does not.
ANNOTATOR = "pytest_github_actions_annotate_failures"


#: ``item.stash[RECORD]``: present once a test has been set up.
RECORD: pytest.StashKey[Record] = pytest.StashKey()
LISTENER: pytest.StashKey[SessionListener] = pytest.StashKey()
_PROGRESS: pytest.StashKey[bool] = pytest.StashKey()
_PROPERTIES: pytest.StashKey[bool] = pytest.StashKey()
#: Packs traces for the HTML page; None: no page is written.
_TRACE_SENDER: pytest.StashKey[TraceSender | None] = pytest.StashKey()
#: Names of the properties that we gave a test.
_PROPERTY_NAMES: pytest.StashKey[set[str]] = pytest.StashKey()


class SessionListener:
    """The session's listener: one for all tests, because event loops and threads may keep an old context."""

    def __init__(self, root: str) -> None:
        self.record = Record()
        self.progress_line: ProgressLine | None = None
        #: None: runs are not compared with a baseline.
        self.baseline: BaselineRecorder | None = None
        #: File of the test; the root directory that call sites are relative to.
        self.test: str | None = None
        #: On a rank of a test of several: the traces of all of them.
        self.shared_traces: SharedTraces | None = None
        self._root = root

    def progress(self, done: int, total: int, loss: float | None) -> None:
        """Show it on a terminal."""
        if self.progress_line is not None:
            self.progress_line.update(done, total, loss)

    def traced(self, trace: Trace) -> None:
        """Record it with the test; of a distributed run once it is merged."""
        self.erase_progress()
        if self.shared_traces is None or not self.shared_traces.publish(trace):
            self.record.current.measured(trace)

    def merged(self, trace: Trace) -> Trace:
        """On a rank of a test: with what the other ranks measured."""
        found = trace if self.shared_traces is None else self.shared_traces.merged(trace)
        if found is not trace:
            self.record.current.measured(found)
        return found

    def judged(self, verdict: Verdict, trace: Trace | None) -> None:
        """Record it with the test."""
        self.record.current.judged(verdict, trace, called_from(self.test, self._root))

    def verdicts_reached(self, verdicts: Sequence[Verdict], traces: Sequence[Trace]) -> None:
        """Record them with the traces."""
        self.record.current.verdicts_reached(verdicts, traces)

    def calibrated(self, calibration: CheckCalibration) -> None:
        """Record it with the test."""
        self.record.current.calibrations.append(calibration)

    def run_ended(self, trace: Trace, rerun: Rerun | None) -> None:
        """Compare it with the baseline, or record it for one."""
        if self.baseline is not None:
            self.baseline.run_ended(trace, rerun, self.record, called_from(self.test, self._root))
            self.erase_progress()

    def erase_progress(self) -> None:
        """No fine-tune is running any more, whether it finished or not."""
        if self.progress_line is not None:
            self.progress_line.erase()


# ---------------------------------------------------------------------- settings
def pytest_addoption(parser: pytest.Parser) -> None:
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", ranks.HELP)
    config.stash[options.FIELDS] = options.read(config)
    config.stash[options.SEEDS] = options.seeds(config)
    config.stash[options.EXTEND_SECONDS] = options.extend_seconds(config)
    config.stash[WORKERS] = session_workers(config)
    if options.calibrate(config):
        from .calibration_report import CalibrationReport

        config.pluginmanager.register(CalibrationReport(), "ftcheck-calibration")
    config.stash[_PROGRESS] = options.progress_wanted(config)
    config.stash[_PROPERTIES] = options.properties_wanted(config)
    config.stash[_TRACE_SENDER] = _trace_sender(config)
    config.stash[LISTENER] = SessionListener(str(config.rootpath))
    if compared := options.baseline(config):
        from .baseline.session import install

        try:
            config.stash[LISTENER].baseline = install(
                config, *compared, config.stash[options.SEEDS], strict=options.baseline_strict(config)
            )
        except ValueError as error:
            raise pytest.UsageError(one_line(f"--ftcheck-baseline: {compared[0]}: {error}", 600)) from None
    config.add_cleanup(fail_level.fail_on(options.fail_on(config)))
    config.pluginmanager.register(_SessionSummary(config), "ftcheck-summary")
    if options.models(config)[0] or any(argument.startswith("ftcheck::") for argument in config.args):
        from . import model_items

        if models := model_items.models_of(config):
            config.pluginmanager.register(models, "ftcheck-models")


def _trace_sender(config: pytest.Config) -> TraceSender | None:
    """In a worker of pytest-xdist, too: the controller draws its traces."""
    if config.option.collectonly or "html" not in options.reports(config):
        return None
    from ..reports.html.compressed_trace import TraceSender

    return TraceSender()


def pytest_report_header(config: pytest.Config) -> str | None:
    fields = _settings(config)
    if fail_level.level() != fail_level.DEFAULT:
        fields["fail_on"] = fail_level.level()
    return (
        "ftcheck: " + ", ".join(f"{name}={one_line(str(value), 200)}" for name, value in fields.items())
        if fields
        else None
    )


def _settings(config: pytest.Config) -> dict[str, Any]:
    """What the session's options set for its runs."""
    fields: dict[str, Any] = config.stash[options.FIELDS]
    seeds, extend_seconds = config.stash[options.SEEDS], config.stash[options.EXTEND_SECONDS]
    executor = options.executor(config)
    given = {"seeds": seeds, "executor": executor and executor[0], "extend_seconds": extend_seconds}
    return {**fields, **{name: value for name, value in given.items() if value is not None}}


# ---------------------------------------------------------------------- tests
def pytest_itemcollected(item: pytest.Item) -> None:
    # every fixture that the test needs, directly or through others
    used = getattr(item, "fixturenames", ())
    if SUITE in used:
        from .model_items import group

        group(item, item.callspec.params["subject"])  # type: ignore[attr-defined]
    if SUITE in used or not NAMES.isdisjoint(used):
        item.add_marker("ftcheck")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # of the tests that were chosen; a rank itself runs its test as any other
    if not ranks.is_rank(config) and (declared := ranks.declared_by_all(items)):
        from .ranks.rank_tests import RankTests

        config.pluginmanager.register(RankTests(declared), "ftcheck-ranks")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getvalue("dist") != "loadgroup":
        return None
    from .xdist_scheduling import scheduler

    return scheduler(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    __tracebackhide__ = True
    item.stash[RECORD] = Record()
    if (baseline := item.config.stash[LISTENER].baseline) is not None:
        baseline.begin(item)
    return (yield from _listening(item))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
    if (baseline := request.config.stash[LISTENER].baseline) is None:
        return (yield)
    with baseline.fixture(fixturedef, request):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    __tracebackhide__ = True
    if (baseline := item.config.stash[LISTENER].baseline) is None:
        return (yield from _listening(item))
    try:
        result = yield from _listening(item)
    except BaseException as error:
        baseline.test_raised(item, item.stash[RECORD], error)
        raise
    baseline.test_passed(item, item.stash[RECORD])
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    __tracebackhide__ = True
    return (yield from _listening(item))


def _listening(item: pytest.Item) -> Generator[None, Any, Any]:
    __tracebackhide__ = True
    listener = item.config.stash[LISTENER]
    listener.record, listener.test = item.stash.setdefault(RECORD, Record()), str(item.path)
    with listening(listener):
        try:
            return (yield)
        finally:
            listener.erase_progress()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    record = item.stash.get(RECORD, None)
    if record is not None and item.config.stash[_PROPERTIES]:
        _set_properties(item, record)
    error = None if call.excinfo is None else call.excinfo.value
    if isinstance(error, CheckFailed) and item.config.get_verbosity() < 1:
        # pytest's own report of it is made below; reports of ours have the whole message from the verdict
        error.args = (error.brief(max(NARROWEST, item.config.get_terminal_writer().fullwidth - _MARGIN)),)
    report = yield
    if isinstance(error, CheckFailed) and report.failed:
        if error.verdict.status == "inconclusive":
            setattr(report, INCONCLUSIVE, True)
        _shorten_summary_line(item.config, report, error.verdict)
    if call.excinfo is not None and report.failed:
        from .interrupted_run import how_far, partial_trace

        if (trace := partial_trace(call.excinfo.value)) is not None:
            report.sections.append(("ftcheck", how_far(trace)))
    if record is not None:
        if report.when == "call" and report.passed and record.tolerated:
            setattr(report, TOLERATED, True)
        if phase := record.close():
            from .phase_report import PhaseReport

            rows, sender = item.config.get_verbosity() > 0, item.config.stash[_TRACE_SENDER]
            reported = PhaseReport.made_of(phase, report.when, failed=report.failed, rows=rows, sender=sender)
            reported.attach_to(report)
        if report.when == "teardown":
            record.release()
    return report


def _shorten_summary_line(config: pytest.Config, report: pytest.TestReport, verdict: Verdict) -> None:
    """Pytest's short summary needs no name of our error; with ``--tb=no``, where our section has the message, it names the fault alone."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = crash.message.removeprefix("pytest_ftcheck.CheckFailed: ")
    in_section = (
        config.getoption("tbstyle") == "no" and config.get_verbosity() >= 0 and not config.getoption("no_summary")
    )
    if crash is not None and in_section:
        crash.message = f"{verdict.check}: {verdict.fault}" if verdict.fault else verdict.check


def _set_properties(item: pytest.Item, record: Record) -> None:
    """Replace the JUnit properties that we set in an earlier phase."""
    properties = record.properties()
    names = item.stash.setdefault(_PROPERTY_NAMES, set())
    item.user_properties[:] = [p for p in item.user_properties if p[0] not in names] + list(properties.items())
    names.update(properties)


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    if getattr(report, INCONCLUSIVE, False) and report.failed:
        category, letter = ("failed", "I") if report.when == "call" else ("error", "E")
        return category, letter, ("INCONCLUSIVE", {"yellow": True})
    if getattr(report, TOLERATED, False) and not hasattr(report, "wasxfail"):
        return "inconclusive", "i", ("INCONCLUSIVE", {"yellow": True})
    return None


# ---------------------------------------------------------------------- terminal
def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    quiet = config.get_verbosity() < 0 or not config.stash[_PROGRESS]
    if terminal is None or quiet or hasattr(config, "workerinput") or not terminal.isatty():
        return
    try:
        # nothing is captured yet: this copy of the descriptor stays the terminal while tests are captured
        stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return
    from .progress import ProgressLine  # only on a terminal: imports slow down every start of pytest

    config.add_cleanup(stream.close)
    writer = config.get_terminal_writer()
    config.stash[LISTENER].progress_line = ProgressLine(stream, lambda: writer.fullwidth - writer.width_of_current_line)


class _SessionSummary:
    """Collects the tests' reports, of this process or of pytest-xdist's workers; at the end writes files and prints the summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._reports: list[pytest.TestReport] = []
        # only the session that was started writes, and --collect-only does not replace earlier results
        silent = hasattr(config, "workerinput") or ranks.is_rank(config) or config.option.collectonly
        files, github = options.reports(config), options.github_wanted(config) and bool(GITHUB & os.environ.keys())
        self._files, self._github = ({}, False) if silent else (files, github)
        self._written: WrittenReports | None = None
        self._traces: TraceStore | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, ATTRIBUTE) or self._files or self._github:
            self._reports.append(report)
        if hasattr(report, ATTRIBUTE) and "html" in self._files:
            if self._traces is None:
                from .trace_store import TraceStore

                self._traces = TraceStore()
                self._config.add_cleanup(self._traces.close)
            self._traces.take_from(report)

    def _phases(self) -> list[tuple[pytest.TestReport, PhaseReport | None]]:
        """Each report, and what its phase concluded; None: nothing."""
        from .phase_report import PhaseReport

        return [(report, PhaseReport.of(report)) for report in self._reports]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not (self._files or self._github):
            return
        from .collect_results import ResultCollector
        from .write_reports import write_reports

        collector = ResultCollector()
        for report, phase in self._phases():
            collector.add(report, phase)
        result = collector.result(
            root=self._config.rootpath,
            configuration=self._config.inipath,
            setup_only=bool(self._config.getoption("setuponly", False)),
            settings={name: str(value) for name, value in _settings(self._config).items()},
            fail_on=fail_level.level(),
            exit_status=int(session.exitstatus),
        )
        traces = collector.traces(result, self._traces.get) if self._traces is not None else ()
        annotated = self._config.pluginmanager.hasplugin(ANNOTATOR)
        self._written = write_reports(
            result, self._files, root=self._config.rootpath, github=self._github, annotate=not annotated, traces=traces
        )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        verbosity = self._config.get_verbosity()
        # pytest 9.2 calls this hook with --no-summary, too
        if self._reports and verbosity >= -1 and not self._config.getoption("no_summary"):
            from .terminal_summary import show

            without_message = self._config.getoption("tbstyle") in _WITHOUT_MESSAGE
            show(terminalreporter, self._phases(), verbosity=verbosity, messages=without_message)
        for line in self._reruns() if verbosity >= 0 else ():
            terminalreporter.write_line(clean(f"ftcheck: {line}"), yellow=True)
        if self._written is None:
            return
        for line in self._written.annotations:
            terminalreporter.write_line(line)
        for line in self._written.files if verbosity >= 0 else ():
            terminalreporter.write_line(f"ftcheck: {line}")
        for line in self._written.warnings:
            terminalreporter.write_line(f"ftcheck: warning: {line}", yellow=True)

    def _reruns(self) -> list[str]:
        """Lines on tests that pytest-rerunfailures ran again."""
        if not any(getattr(report, "rerun", 0) for report in self._reports):
            return []
        from .reruns import describe_reruns

        return describe_reruns(self._phases())
