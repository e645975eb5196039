"""The processes of one test of several ranks: started, listened to, and ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from .marker import TO_START, Declared
from .printed import Printed
from .process_settings import environment, options

#: Seconds that the other ranks have to report a failure of their own after the first has failed: those that fail alike do so within the
#: jitter of a busy machine. Then they are ended.
GRACE = 2.0
#: Seconds for the teardown of ranks after others were ended, and for the end of a process that has reported all.
TO_END = 10.0
#: Seconds that a rank has to answer where it is. It needs Python's lock for that, which collectives and sleeps do not hold.
TO_ANSWER = 1.0
#: Seconds between two looks at the processes.
_TICK = 0.1
_BOOT = (
    "import json, sys; spec = json.loads(open(0, 'rb', 0, closefd=False).readline()); sys.path[:] = spec['path']; "
    "from pytest_ftcheck.pytest_plugin.ranks.rank_process import main; main(spec)"
)

Phase = Literal["setup", "call", "teardown"]


class Rank:
    """One process, and what is known of it."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], stdout: Printed, stderr: Printed) -> None:
        self.number, self.process = number, process
        self.printed = {"stdout": stdout, "stderr": stderr}
        #: Takes its events; a thread, because pipes cannot be waited for together on every system.
        self.reader: threading.Thread | None = None
        self.reports: dict[str, pytest.TestReport] = {}
        #: What kept it from running the test.
        self.error = ""
        #: Why no process group can be made on this machine.
        self.unavailable = ""
        #: It is in the process group.
        self.joined = False
        #: The test's body is over, with whatever outcome.
        self.body_over = False
        #: It has reported all that there was.
        self.finished = False
        #: Exit status, once the process has ended.
        self.status: int | None = None
        #: It was ended before its body was over.
        self.ended = False
        #: Its answer to where it is.
        self.where: dict[str, Any] | None = None

    @property
    def gone(self) -> bool:
        """Its process has ended."""
        return self.status is not None

    @property
    def died(self) -> bool:
        """Its process has ended by itself before the test was over, and did not say why."""
        return self.gone and not (self.finished or self.ended or self.error or self.unavailable)

    @property
    def phase(self) -> Phase:
        """The phase that it is in, or was in when it ended."""
        if self.body_over:
            return "teardown"
        return "call" if "setup" in self.reports else "setup"

    @property
    def stopped(self) -> bool:
        """It failed, expectedly or not, and does not go on."""
        reports = [self.reports[when] for when in ("setup", "call") if when in self.reports]
        failed = any(report.failed or (report.skipped and hasattr(report, "wasxfail")) for report in reports)
        return failed or bool(self.error) or self.died

    def tell(self, answer: str) -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended, and its pipe was closed
            self.process.stdin.write(answer.encode() + b"\n")
            self.process.stdin.flush()

    def kill(self) -> None:
        """End it and what it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            elif self.process.poll() is None:
                self.process.kill()

    def wait(self) -> int:
        """Its exit status, once it has ended, and what it has started with it; after `kill`."""
        status = self.process.wait()
        until = time.monotonic() + TO_ANSWER  # where nobody reaps orphans, they stay in the group when they have ended
        with contextlib.suppress(ProcessLookupError, PermissionError):
            while hasattr(os, "killpg") and time.monotonic() < until:
                os.killpg(self.process.pid, 0)
                time.sleep(0.01)
        return status

    def join(self) -> None:
        """Wait for its last events."""
        if self.reader is not None:
            self.reader.join(TO_ANSWER)

    def close(self) -> None:
        """Close its pipes; not one that a process which it has started and which left its group still holds: reading would not end."""
        reading = self.reader is not None and self.reader.is_alive()
        for pipe in (self.process.stdin, None if reading else self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


class Launch:
    """The ranks of one test, from their start to their end."""

    def __init__(self, item: pytest.Item, declared: Declared) -> None:
        self.declared, self._config = declared, item.config
        #: Where the test is, its line from 1.
        self.file, self.line = str(item.path), (item.location[1] or 0) + 1
        self.ranks: list[Rank] = []
        #: The phase in which the time limit was reached; None: it was not.
        self.timed_out: Phase | None = None
        self._events: queue.Queue[tuple[Rank, dict[str, Any]]] = queue.Queue()
        self._deadline = time.monotonic() + TO_START
        self._first_stop: float | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="ftcheck-ranks-"))
        try:
            for number in range(declared.ranks):
                self._start(item, number)
        except BaseException:
            self.kill()
            self.remove_files()
            raise

    def _start(self, item: pytest.Item, number: int) -> None:
        stdout, stderr = self._folder / f"stdout-{number}", self._folder / f"stderr-{number}"
        stdout.touch()
        with stderr.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-u", "-c", _BOOT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=item.config.invocation_params.dir,
                env=environment(item.config, number, self.declared.ranks),
                start_new_session=True,  # neither the terminal's Ctrl-C nor its end: this process ends them
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        rank = Rank(number, process, Printed(stdout), Printed(stderr))
        self.ranks.append(rank)
        rank.reader = threading.Thread(target=self._read, args=(rank,), name=f"ftcheck-rank-{number}", daemon=True)
        rank.reader.start()
        names = item.nodeid.partition("::")[2]
        spec = {
            "path": sys.path,
            "options": options(item.config, number),
            "argument": f"{item.path}::{names}",
            "nodeid": item.nodeid,
            "rank": number,
            "world": self.declared.ranks,
            "timeout": self.declared.timeout,
            "stdout": str(stdout),
            "folder": str(self._folder),
        }
        rank.tell(json.dumps(spec))

    def _read(self, rank: Rank) -> None:
        assert rank.process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in rank.process.stdout:
                self._events.put((rank, json.loads(line)))

    # ------------------------------------------------------------------ phases
    def set_up(self) -> None:
        """Wait until every rank has set the test up."""
        self._wait("setup", lambda rank: "setup" in rank.reports)

    def call(self) -> None:
        """Wait until every rank's body is over."""
        self._wait("call", lambda rank: rank.body_over)

    def tear_down(self) -> None:
        """Let the ranks tear down what they have set up, and end."""
        try:
            self.call()
            end = time.monotonic() + TO_END
            self._deadline = end if self.broken else max(self._deadline, end)
            for rank in self.ranks:
                rank.tell("teardown")
            self._wait("teardown", lambda rank: rank.finished)
            end = time.monotonic() + TO_END
            while not all(rank.gone for rank in self.ranks) and time.monotonic() < end:
                self._take_events()
            self._echo()
        finally:
            self.kill()

    @property
    def broken(self) -> bool:
        """A rank was ended, or died: what the others report after that may be its consequence."""
        return any(rank.ended or rank.died for rank in self.ranks)

    def _wait(self, phase: Phase, over: Callable[[Rank], bool]) -> None:
        try:
            while pending := [rank for rank in self.ranks if not (rank.gone or over(rank))]:
                self._take_events()
                now = time.monotonic()
                if self._first_stop is None and any(rank.stopped for rank in self.ranks):
                    self._first_stop = now
                if now > self._deadline:
                    # after others were ended, the time of its teardown is not the test's
                    self.timed_out = None if self.broken else phase
                    self._end(
                        [rank for rank in self.ranks if not rank.gone and (rank in pending or not rank.body_over)]
                    )
                elif self._first_stop is not None and now > self._first_stop + GRACE:
                    self._end([rank for rank in self.ranks if not (rank.gone or rank.body_over)])
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                self.kill()
                self.remove_files()
            else:  # a plugin's time limit, for example
                self._ask([rank for rank in self.ranks if not (rank.gone or rank.body_over)])
                self.kill()
            raise

    def _end(self, ranks: Sequence[Rank]) -> None:
        """Ask them where they are, and end them."""
        self._ask([rank for rank in ranks if not rank.body_over])
        for rank in ranks:
            rank.ended = not rank.finished
            rank.kill()
        for rank in ranks:
            rank.status = rank.wait()

    def _ask(self, ranks: Sequence[Rank]) -> None:
        for rank in ranks:
            rank.tell("where")
        until = time.monotonic() + TO_ANSWER
        while time.monotonic() < until and any(rank.where is None and not rank.gone for rank in ranks):
            self._take_events()

    # ------------------------------------------------------------------ events
    def _take_events(self) -> None:
        """What the ranks have sent, and which processes have ended."""
        with contextlib.suppress(queue.Empty):
            self._take(*self._events.get(timeout=_TICK))
        ended = [r for r in self.ranks if r.status is None and r.process.poll() is not None]
        for rank in ended:
            rank.kill()  # what it has started and left
            rank.join()
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(*self._events.get_nowait())
        for rank in ended:
            rank.status = rank.process.returncode
        self._echo()

    def _take(self, rank: Rank, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "report":
            hook = self._config.hook.pytest_report_from_serializable
            report = hook(config=self._config, data=event["report"])
            rank.reports[report.when] = report
        elif kind == "port":
            for other in self.ranks:
                other.tell(f"port {event['port']}")
        elif kind == "started":
            for name, printed in rank.printed.items():
                printed.begin(event[name])
        elif kind == "joined":
            rank.joined = True
            if all(other.joined for other in self.ranks):
                self._deadline = time.monotonic() + self.declared.timeout
        elif kind == "where":
            rank.where = event
        elif kind == "body over":
            rank.body_over = True
        elif kind == "finished":
            rank.finished = True
        elif kind == "unavailable":
            rank.unavailable = event["text"]
        else:
            rank.error = rank.error or event["text"]

    def _echo(self) -> None:
        """With ``-s``: show what the ranks print, while they print it."""
        if self._config.getoption("capture") != "no":
            return
        for rank in self.ranks:
            for name, printed in rank.printed.items():
                for line in printed.new_lines():
                    print(f"[rank {rank.number}] {line}", file=getattr(sys, name), flush=True)

    # ------------------------------------------------------------------ the end
    def kill(self) -> None:
        """End all processes; whatever was raised before."""
        try:
            for rank in self.ranks:
                rank.kill()
        finally:
            for rank in self.ranks:
                rank.ended = rank.ended or not (rank.gone or rank.finished)
                rank.status = rank.wait()
                rank.join()
                rank.close()

    def remove_files(self) -> None:
        """What the ranks printed."""
        shutil.rmtree(self._folder, ignore_errors=True)
