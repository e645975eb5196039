"""The pytest plugin: hooks only. Verdicts go from the core to a listener, to a report, to the terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ..core import fail_level
from ..core.events import listening
from . import options
from .call_site import called_from
from .fixtures import NAMES, _ftcheck_suite, finetune, tiny_distilbert, toy_batches, toy_features
from .suite import SUITE
from .verdict_log import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from ..core.events import Again
    from ..core.trace import Trace
    from ..core.verdict import Verdict
    from ..reports.html.compressed_trace import Carrier
    from .baseline.recorder import Keeper
    from .progress import ProgressLine
    from .verdict_log import KeptRun
    from .write_reports import Delivery

__all__ = ["RECORD", "Record", "_ftcheck_suite", "finetune", "tiny_distilbert", "toy_batches", "toy_features"]

#: Attribute of a test report: what the phase concluded; builtins only, for nothing else crosses processes.
REPORTED = "ftcheck"
#: Attribute of a call's report that passed: something could not be decided, and was let through.
LET_THROUGH = "ftcheck_let_through"

#: Styles of --tb in which pytest's own failure report leaves the message out, or all but its first line.
_WITHOUT_MESSAGE = ("no",) if pytest.version_tuple >= (9,) else ("no", "line")

#: Either of them: GitHub Actions is there to be told.
GITHUB = frozenset({"GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"})
#: The plugin that annotates every failure; where it is at work, we leave that to it.
ANNOTATOR = "pytest_github_actions_annotate_failures"


#: ``item.stash[RECORD]``: there once a test has been set up.
RECORD: pytest.StashKey[Record] = pytest.StashKey()
_EARS: pytest.StashKey[_Ears] = pytest.StashKey()
_PROGRESS: pytest.StashKey[bool] = pytest.StashKey()
_PROPERTIES: pytest.StashKey[bool] = pytest.StashKey()
#: Packs traces for the page; None: no page is wanted.
_CARRY: pytest.StashKey[Carrier | None] = pytest.StashKey()
#: What goes with each trace of a report, for the page and for the terminal's table; None: nothing.
_TOLD: pytest.StashKey[Callable[[KeptRun], dict[str, Any]] | None] = pytest.StashKey()
#: Names of the properties that a test has from us.
_NAMED: pytest.StashKey[set[str]] = pytest.StashKey()


class _Ears:
    """The session's listener: one for all tests, because event loops and threads may keep an old context."""

    def __init__(self, root: str) -> None:
        self.record = Record()
        self.line: ProgressLine | None = None
        #: Compares runs with a baseline; None: nobody asked for it.
        self.keeper: Keeper | None = None
        #: The test's file, and the root that places are told relative to.
        self.test: str | None = None
        self._root = root

    def progress(self, done: int, total: int, loss: float | None) -> None:
        """Show it, if there is somebody to see it."""
        if self.line is not None:
            self.line.update(done, total, loss)

    def traced(self, trace: Trace) -> None:
        """Keep it with the test."""
        self.still()
        self.record.now.measured(trace)

    def judged(self, verdict: Verdict, trace: Trace | None) -> None:
        """Keep it with the test."""
        self.record.now.judged(verdict, trace, called_from(self.test, self._root))

    def verdicts_reached(self, verdicts: Sequence[Verdict], traces: Sequence[Trace]) -> None:
        """Keep them with the traces."""
        self.record.now.verdicts_reached(verdicts, traces)

    def calibrated(self, record: dict[str, Any]) -> None:
        """Keep it with the test."""
        self.record.now.calibrations.append(record)

    def kept(self, trace: Trace, again: Again | None) -> None:
        """Compare it with the baseline, or make one of it."""
        if self.keeper is not None:
            self.keeper.kept(trace, again, self.record, called_from(self.test, self._root))
            self.still()

    def still(self) -> None:
        """Nothing runs any more, whether it ended well or not."""
        if self.line is not None:
            self.line.erase()


# ---------------------------------------------------------------------- settings
def pytest_addoption(parser: pytest.Parser) -> None:
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "ftcheck: the test fine-tunes a model; set on every test that uses a fixture of pytest-ftcheck",
    )
    config.stash[options.FIELDS] = options.read(config)
    config.stash[options.SEEDS] = options.seeds(config)
    if options.calibrate(config):
        from ..seeds.calibration import Calibration

        config.pluginmanager.register(Calibration(REPORTED), "ftcheck-calibration")
    config.stash[_PROGRESS] = options.progress_wanted(config)
    config.stash[_PROPERTIES] = options.properties_wanted(config)
    config.stash[_CARRY] = _carrier(config)
    config.stash[_TOLD] = _told(config)
    config.stash[_EARS] = _Ears(str(config.rootpath))
    if compared := options.baseline(config):
        from .baseline.session import install

        try:
            config.stash[_EARS].keeper = install(config, *compared, config.stash[options.SEEDS], REPORTED)
        except ValueError as error:
            raise pytest.UsageError(f"--ftcheck-baseline: {compared[0]}: {error}") from None
    config.add_cleanup(fail_level.fail_on(options.fail_on(config)))
    config.pluginmanager.register(_Summary(config), "ftcheck-summary")
    if options.models(config)[0] or any(argument.startswith("ftcheck::") for argument in config.args):
        from . import model_items

        if models := model_items.wanted(config):
            config.pluginmanager.register(models, "ftcheck-models")


def _carrier(config: pytest.Config) -> Carrier | None:
    """In a worker, too: its traces are drawn by the controller."""
    if config.option.collectonly or "html" not in options.reports(config):
        return None
    from ..reports.html.compressed_trace import Carrier

    return Carrier()


def _told(config: pytest.Config) -> Callable[[KeptRun], dict[str, Any]] | None:
    """In a worker, too: its options are the controller's."""
    pack, verbose = config.stash[_CARRY], config.get_verbosity() > 0
    if pack is None and not verbose:
        return None

    def details(run: KeptRun) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if pack is not None:
            from ..reports.session_diagnosis import verdicts_to_text

            found |= {**pack(run.trace), "verdicts": verdicts_to_text(run.verdicts.values())}
        if verbose:
            from ..reports.run_metrics import glance

            found |= glance(run.trace)
        return found

    return details


def pytest_report_header(config: pytest.Config) -> str | None:
    fields = _settings(config)
    if fail_level.level() != fail_level.DEFAULT:
        fields["fail_on"] = fail_level.level()
    return "ftcheck: " + ", ".join(f"{name}={value}" for name, value in fields.items()) if fields else None


def _settings(config: pytest.Config) -> dict[str, Any]:
    """What the session sets about the runs."""
    fields: dict[str, Any] = config.stash[options.FIELDS]
    seeds = config.stash[options.SEEDS]
    return {**fields, **({} if seeds is None else {"seeds": seeds})}


# ---------------------------------------------------------------------- tests
def pytest_itemcollected(item: pytest.Item) -> None:
    # every fixture the test needs, also through fixtures of its own
    used = getattr(item, "fixturenames", ())
    if SUITE in used:
        from .model_items import group

        group(item, item.callspec.params["subject"])  # type: ignore[attr-defined]
    if SUITE in used or not NAMES.isdisjoint(used):
        item.add_marker("ftcheck")


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
    if (keeper := item.config.stash[_EARS].keeper) is not None:
        keeper.begin(item)
    return (yield from _heard(item))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
    if (keeper := request.config.stash[_EARS].keeper) is None:
        return (yield)
    with keeper.fixture(fixturedef, request):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    __tracebackhide__ = True
    if (keeper := item.config.stash[_EARS].keeper) is None:
        return (yield from _heard(item))
    try:
        result = yield from _heard(item)
    except BaseException as error:
        keeper.stopped(item, item.stash[RECORD], error)
        raise
    keeper.settle(item, item.stash[RECORD])
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    __tracebackhide__ = True
    return (yield from _heard(item))


def _heard(item: pytest.Item) -> Generator[None, Any, Any]:
    __tracebackhide__ = True
    ears = item.config.stash[_EARS]
    ears.record, ears.test = item.stash.setdefault(RECORD, Record()), str(item.path)
    with listening(ears):
        try:
            return (yield)
        finally:
            ears.still()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    record = item.stash.get(RECORD, None)
    if record is not None and item.config.stash[_PROPERTIES]:
        ours = record.properties()
        named = item.stash.setdefault(_NAMED, set())
        item.user_properties[:] = [p for p in item.user_properties if p[0] not in named] + list(ours.items())
        named.update(ours)
    report = yield
    if call.excinfo is not None and report.failed:
        from .interrupted_run import partial_trace, told

        if (trace := partial_trace(call.excinfo.value)) is not None:
            report.sections.append(("ftcheck", told(trace)))
    if record is not None:
        if report.when == "call" and report.passed and record.let_through:
            setattr(report, LET_THROUGH, True)
        if phase := record.close():
            setattr(report, REPORTED, phase.plain(failed=report.failed, carry=item.config.stash[_TOLD]))
    return report


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    if getattr(report, LET_THROUGH, False) and not hasattr(report, "wasxfail"):
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
    from .progress import ProgressLine  # only where somebody looks: every start of pytest pays for imports

    config.add_cleanup(stream.close)
    writer = config.get_terminal_writer()
    config.stash[_EARS].line = ProgressLine(stream, lambda: writer.fullwidth - writer.width_of_current_line)


class _Summary:
    """Gathers what reports carry, from this process or from xdist's workers; writes it and prints it at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._seen: list[tuple[pytest.TestReport, dict[str, Any] | None]] = []
        # the controller alone writes, and nobody replaces yesterday's results because he looked at a list of tests
        silent = hasattr(config, "workerinput") or config.option.collectonly
        files, github = options.reports(config), options.github_wanted(config) and bool(GITHUB & os.environ.keys())
        self._files, self._github = ({}, False) if silent else (files, github)
        self._delivery: Delivery | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        carried = getattr(report, REPORTED, None)
        if carried is not None or self._files or self._github:
            self._seen.append((report, carried))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not (self._files or self._github):
            return
        from .collect_results import Gathered
        from .write_reports import deliver

        gathered = Gathered()
        for report, carried in self._seen:
            gathered.add(report, carried)
        result = gathered.result(
            root=self._config.rootpath,
            configuration=self._config.inipath,
            setup_only=bool(self._config.getoption("setuponly", False)),
            settings={name: str(value) for name, value in _settings(self._config).items()},
            fail_on=fail_level.level(),
            exit_status=int(session.exitstatus),
        )
        traced = gathered.traced(result) if "html" in self._files else ()
        annotated = self._config.pluginmanager.hasplugin(ANNOTATOR)
        self._delivery = deliver(
            result, self._files, root=self._config.rootpath, github=self._github, annotate=not annotated, traced=traced
        )

    def _again(self) -> list[str]:
        """What is to be said of tests that pytest-rerunfailures ran again."""
        if not any(getattr(report, "rerun", 0) for report, _ in self._seen):
            return []
        from .terminal_summary import reruns

        return reruns(self._seen)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        verbosity = self._config.get_verbosity()
        # pytest 9.2 calls this hook with --no-summary, too
        if self._seen and verbosity >= -1 and not self._config.getoption("no_summary"):
            from .terminal_summary import show

            without_message = self._config.getoption("tbstyle") in _WITHOUT_MESSAGE
            show(terminalreporter, self._seen, verbosity=verbosity, messages=without_message)
        for line in self._again() if verbosity >= 0 else ():
            terminalreporter.write_line(f"ftcheck: {line}", yellow=True)
        if self._delivery is None:
            return
        for line in self._delivery.annotations:
            terminalreporter.write_line(line)
        for line in self._delivery.written if verbosity >= 0 else ():
            terminalreporter.write_line(f"ftcheck: {line}")
        for line in self._delivery.warnings:
            terminalreporter.write_line(f"ftcheck: warning: {line}", yellow=True)
