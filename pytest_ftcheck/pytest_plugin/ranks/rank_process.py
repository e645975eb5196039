"""One rank of a test: a pytest session of its own, which runs one test and reports it to the process that started it.

Its original stdout carries events to that process, a JSON object a line. Its original stdin carries that process' answers, a word or two a
line; where it ends, that process has ended, and this one ends, too.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Generator, Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest
from _pytest.runner import runtestprotocol

from ..call_site import library_folders
from ..plugin import LISTENER
from .marker import RANK_PLUGIN, TO_START
from .shared_traces import SharedTraces

#: Plugins of pytest that write to the project's cache at the end of a session: the starting process does.
_CACHE_WRITERS = ("lfplugin", "nfplugin", "stepwiseplugin")
#: torch's own limit of a collective is beyond the test's, so that the test's is the one that is told.
_BEYOND = 60.0


class Link:
    """Events to the process that started this one, and its answers."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._events = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._answers = os.fdopen(os.dup(0), "rb", buffering=0)
        self._lock = threading.Lock()
        self._received: queue.Queue[list[str]] = queue.Queue()
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 0)
        threading.Thread(target=self._listen, name="ftcheck-rank", daemon=True).start()

    def send(self, event: str, **fields: Any) -> None:
        """Tell it."""
        with self._lock, contextlib.suppress(OSError):  # where it has ended, this process is ending, too
            self._events.write(json.dumps({"event": event, **fields}, default=repr) + "\n")
            self._events.flush()

    def wait_for(self, answer: str) -> str:
        """The argument of the answer, once it comes."""
        while True:
            name, *arguments = self._received.get()
            if name == answer:
                return arguments[0] if arguments else ""

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            for line in self._answers:
                words = line.decode().split()
                if words == ["where"]:
                    self.send("where", **_where(sys._current_frames().get(threading.main_thread().ident or 0)))
                else:
                    self._received.put(words)
        shutil.rmtree(self._folder, ignore_errors=True)  # nobody else is left to do it
        _end_all()


def _end_all() -> NoReturn:
    """End this process and those that it started."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _where(frame: FrameType | None) -> dict[str, Any]:
    """The innermost line of the user's code, the innermost function where that is another one, and the stack from the user's code on."""
    stack = traceback.extract_stack(frame)
    users = [i for i, f in enumerate(stack) if _is_users(f.filename)]
    found: dict[str, Any] = {"stack": "".join(traceback.format_list(stack[users[0] if users else 0 :]))}
    if users:
        found |= {"file": stack[users[-1]].filename, "line": stack[users[-1]].lineno}
    if not users or users[-1] != len(stack) - 1:
        found["inside"] = stack[-1].name
    return found


def _is_users(file: str) -> bool:
    return Path(file).is_absolute() and not file.startswith(library_folders())


class RankPlugin:
    """Hooks of the session: runs the test inside the process group, and reports it."""

    def __init__(self, link: Link, spec: dict[str, Any], stdout: Any) -> None:
        self._link, self._spec, self._stdout = link, spec, stdout
        self._traces = SharedTraces(Path(spec["folder"]), spec["rank"], spec["world"])

    def pytest_configure(self, config: pytest.Config) -> None:
        """Reports are made by its plugins. At its end pytest collects garbage five times; with torch that takes seconds."""
        self._config = config
        with contextlib.suppress(ImportError):
            from _pytest.unraisableexception import gc_collect_iterations_key

            config.stash[gc_collect_iterations_key] = 0

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """What is printed from now on is the test's."""
        sys.stdout = self._stdout
        session.config.stash[LISTENER].shared_traces = self._traces
        self._link.send("started", stdout=os.fstat(1).st_size, stderr=os.fstat(2).st_size)
        for name in _CACHE_WRITERS:
            if session.config.pluginmanager.hasplugin(name):
                session.config.pluginmanager.unregister(name=name)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """The module cannot be imported here."""
        if report.failed:
            self._link.send("error", text=report.longreprtext)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """It has to be that one test."""
        if [item.nodeid for item in session.items] != [self._spec["nodeid"]]:
            self._link.send(
                "error",
                text="the test is not found when its module is imported again: its name or parameters are not the same in every process",
            )
            session.items.clear()

    def pytest_internalerror(self, excrepr: Any) -> None:
        """Of pytest or a plugin."""
        self._link.send("error", text=str(excrepr))

    def pytest_keyboard_interrupt(self, excinfo: Any) -> None:
        """The test itself has ended the session: `pytest.exit`, a debugger, an interrupt of its own."""
        self._link.send("error", text=f"the test has ended its session: {excinfo.exconly()}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """In place of pytest's, and of plugins that would run the test again on this rank alone."""
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_gloo_available():
            missing = "torch.distributed" if not dist.is_available() else "gloo backend"
            self._link.send(
                "unavailable", text=f"this build of torch has no {missing}, which a test of several ranks needs"
            )
            return True
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        with self._process_group():
            runtestprotocol(item, nextitem=None)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        # nobody reads the summary of this session, and plugins import much for theirs
        self._config.pluginmanager.unregister(name="terminalreporter")
        return True

    @contextlib.contextmanager
    def _process_group(self) -> Iterator[None]:
        """Rank 0 takes a free port of the loopback, which the others are told: no other process can take it in between."""
        import torch.distributed as dist
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        rank, world = self._spec["rank"], self._spec["world"]
        host = os.environ["MASTER_ADDR"]
        limit = timedelta(seconds=max(self._spec["timeout"], TO_START) + _BEYOND)
        options: dict[str, Any] = {}
        if rank == 0:
            listener = socket.create_server((host, 0))
            port = listener.getsockname()[1]
            # of several tenants: a group that the test itself makes from the environment uses the same store
            options = {"wait_for_workers": False, "multi_tenant": True, "master_listen_fd": listener.detach()}
            self._link.send("port", port=port)
        else:
            port = int(self._link.wait_for("port"))
        os.environ["MASTER_PORT"] = str(port)
        store = TCPStore(host, port, world, rank == 0, limit, **options)
        dist.init_process_group("gloo", store=PrefixStore("ftcheck", store), rank=rank, world_size=world, timeout=limit)
        self._link.send("joined")
        try:
            yield
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Each phase."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._link.send("report", report=data)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Generator[None, object, object]:
        """Not before all ranks are over: a rank that leaves breaks the connections of those that are still running."""
        self._traces.body_over()
        self._link.send("body over")
        self._link.wait_for("teardown")
        return (yield)


def main(spec: dict[str, Any]) -> None:
    """Run the test that the starting process has described."""
    link, stdout = Link(spec["folder"]), sys.stdout
    with open(spec["stdout"], "ab") as file:  # noqa: PTH123
        os.dup2(file.fileno(), 1)
    with open(os.devnull, "w", encoding="utf-8") as nothing:  # noqa: PTH123
        sys.stdout = nothing  # pytest's own terminal
        try:
            config = pytest.Config.fromdictargs(spec["options"], [spec["argument"]])
            config.pluginmanager.register(RankPlugin(link, spec, stdout), RANK_PLUGIN)
            try:
                config.hook.pytest_cmdline_main(config=config)
            finally:
                config._ensure_unconfigure()
        except pytest.UsageError as error:
            link.send("error", text=str(error))
        except BaseException as error:  # noqa: BLE001 - it is told where the test was started
            link.send("error", text="".join(traceback.format_exception(error)))
        finally:
            sys.stdout = stdout
    link.send("finished")
    # what is left to do at exit (coverage writes its data), and not the seconds in which Python takes torch apart
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)
