"""An interrupt, an exception and a signal in each writer: the old file or the new one is there, whole, and nothing beside it.

A few places of each writer; `make interrupts` tries every line that runs, and every instruction of the one writer of files. A page
takes half a second and runs 3,600 places: each is tried with one of the three, and the two other ways to a page at 300 places.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest
from everything import process_state
from interrupted import KINDS, WHOLE, Boom, Lines, by_signal, stopped, timer  # noqa: F401 - a fixture

from pytest_ftcheck import example_trace
from pytest_ftcheck.cli.main import main
from pytest_ftcheck.pytest_plugin.baseline.entry import Entry, RecordedMeasure
from pytest_ftcheck.pytest_plugin.baseline.file import Baseline, change
from pytest_ftcheck.pytest_plugin.collect_results import CollectedTrace
from pytest_ftcheck.pytest_plugin.write_reports import write_reports
from pytest_ftcheck.reports.github import append_summary
from pytest_ftcheck.reports.html.compressed_trace import pack
from pytest_ftcheck.reports.session_result import CaseResult, ReportedVerdict, SessionResult
from pytest_ftcheck.reports.trackers.log import log

TRACE = example_trace()
FAILED = ReportedVerdict(
    check="weights_move", status="fail", headline="1 of 4 moved.", summary="1 of 4 moved.", fault="", limit="",
    message="weights_move: fail. 1 of 4 moved.", causes=("X",), remedy="Do it.", margin=None, counts={"fail": 1}, blocking=True,
    when="call", file="tests/test_a.py", line=7,
)  # fmt: skip
CASE = CaseResult(
    nodeid="tests/test_a.py::test_a", outcome="failed", file="tests/test_a.py", line=5, verdicts=(FAILED,)
)
SESSION = SessionResult(tests=(CASE,), exit_status=1, environment={"pytest-ftcheck": "0.1.0"})
ENTRY = Entry({"torch": "2.13.0"}, "3f2a91c07bd2", 5, {"loss.drop": RecordedMeasure(0.41, 0.021)}, {"steps": 20.0})
pytestmark = [  # a file is freed an instruction after it was opened; a generator is interrupted while it is freed
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FILES = Path("/proc/self/fd")
OLD = "the old file, which is longer than nothing\n"


def report(form):
    def write(path):
        traces = [CollectedTrace(lambda: pack(TRACE).text, (CASE,), ())] if form == "html" else []
        done = write_reports(SESSION, {form: path}, root=path.parent, github=False, traces=traces)
        # an exception while a report is written is a warning, for it must not cost the results of the tests
        assert done.files or "Boom" in done.warnings[0] or "was not written" in done.warnings[0]

    return write


#: What writes a file at a path.
WRITERS = {
    "Trace.save": TRACE.save,
    "json": report("json"),
    "sarif": report("sarif"),
    "gitlab": report("gitlab"),
    "html": report("html"),
    "job summary": lambda path: append_summary(SESSION, path),
    "baseline": lambda path: change(path, {"a": ENTRY}),
}
#: Of the many places of a page, in the whole: 0 is all; the other two write what "html" writes.
PAGES = {"html": 0, "Trace.to_html": 300, "ftcheck html": 300}
if WHOLE:
    WRITERS |= {
        "Trace.to_html": TRACE.to_html,
        "ftcheck html": lambda path: main(["html", str(path.parent / "saved.json"), "--output", str(path)]),
    }


def around():
    """What belongs to the process."""
    return threading.active_count(), process_state()


def open_files():
    """How many the process has; 0: the system does not say."""
    return len([*FILES.iterdir()]) if FILES.is_dir() else 0


def content(path):
    return path.read_text(encoding="utf-8") if path.exists() else None


@pytest.mark.parametrize("name", WRITERS)
def test_what_stops_a_writer_leaves_the_old_file_or_the_new_one(name, tmp_path, timer, capsys):  # noqa: F811
    if name in PAGES:
        pytest.importorskip("vl_convert", reason="the extra html is not installed")
    path, write = tmp_path / "report", WRITERS[name]
    old = Baseline().to_json() if name == "baseline" else OLD
    TRACE.save(tmp_path / "saved.json")

    def put(there):
        path.write_text(old, encoding="utf-8") if there else path.unlink(missing_ok=True)

    def run():
        write(path)

    # a line is added to a job summary; the file that was made for it may be there, and empty
    whole = {""} if name == "job summary" else set()
    for there in (True, False, True):  # the first time, imports and caches
        put(there)
        with Lines() as lines:
            run()
        whole.add(content(path))
    put(True)
    before, files_before = around(), open_files()
    sample = PAGES.get(name, 0) if WHOLE else 3 if name in PAGES else 9
    points = [(at, "", False) for at in lines.chosen(sample)]
    if WHOLE or name in ("Trace.save", "job summary"):
        with Lines(files="core/files.py", opcodes=True) as opcodes:
            run()
        points += [(at, "core/files.py", True) for at in opcodes.chosen(0 if WHOLE else 40)]
    for i, (at, files, single) in enumerate(points):
        for error in KINDS if WHOLE and name not in PAGES else (KINDS[i % len(KINDS)],):
            there = i % 4 != 3
            put(there)
            where = stopped(run, at, files, error, opcodes=single)
            assert content(path) in {*whole, old if there else None}, where
            assert sorted(p.name for p in tmp_path.iterdir() if p != path) == ["saved.json"], where
            assert around() == before, where
            if not single and error is not by_signal:  # else the system may have opened one that nobody has yet
                assert open_files() == files_before or (gc.collect() and open_files() == files_before), where


class Notes:
    """A tracker of the user's."""

    begun = closed = 0

    def settings(self, settings, results):
        self.begun += 1

    def scalars(self, step, values): ...

    def histogram(self, tag, step, histogram): ...

    def text(self, name, text): ...

    def close(self, failed):
        self.closed += 1


#: Tracker -> how many places the sample has.
TRACKERS = {"a TraceWriter": 12, "tensorboard": 12, "trackio": 3}
if WHOLE:  # to import them takes seconds
    TRACKERS |= {"mlflow": 0, "wandb": 0}


def begun(name, package):
    """Whether a run of the tracker is active."""
    if name == "mlflow":
        return package.active_run() is not None
    if name == "wandb":
        return package.run is not None
    from trackio import context_vars

    return context_vars.current_run.get() is not None


@pytest.mark.parametrize("name", TRACKERS)
def test_what_stops_a_tracker_leaves_no_run_and_no_thread_of_it(name, request, tmp_path, timer):  # noqa: F811
    if name == "a TraceWriter":
        notes = Notes()
        run, left = lambda: log(TRACE, notes), lambda: notes.begun > notes.closed
    elif name == "tensorboard":
        pytest.importorskip("tensorboard")
        run, left = lambda: log(TRACE, "tensorboard", directory=tmp_path), lambda: False
    else:
        package = request.getfixturevalue(name)
        run, left = lambda: log(TRACE, name), lambda: begun(name, package)
    for _ in range(2):  # the first time, imports and caches
        with Lines(files="reports/trackers") as lines:
            run()
        assert not left()
    before, files_before = around(), open_files()
    kinds = [k for k in KINDS if k is not Boom]  # of the code that runs there, nothing of the user's raises one
    for i, at in enumerate(lines.chosen(0 if WHOLE else TRACKERS[name])):
        where = f"{name}: {stopped(run, at, 'reports/trackers', kinds[i % len(kinds)])}"
        assert not left(), where
        assert (around(), open_files()) == (before, files_before), where
