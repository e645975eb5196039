"""A Python that starts with torch and transformers imported: a fork of one process that has imported them, and has run nothing.

Importing them takes most of the processor time of a small session of pytest that trains, and each worker of pytest-xdist in it imports
them again. `Preloaded.executable` is a command that takes the arguments of ``python``. It hands them over, with its environment, its
working directory and all its open files, to a server, which forks; signals are passed on to the fork, and its exit status comes back. It is
``sys.executable`` of the fork, so what that starts is a fork, too. As in a new process, torch, numpy and ``random`` have another
seed each time, and neither pytest nor pytest_ftcheck is imported yet.

Where a fork cannot be what was asked for (an environment variable that an import reads has another value, or an option of Python is not
known here), the command starts the real Python.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import importlib.metadata
import json
import os
import random
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import ask_for_python as asker

#: What a fine-tune and its checks import of other packages.
MODULES = (
    "torch._dynamo",
    "torch.func",
    "transformers.modeling_outputs",
    "transformers.modeling_utils",
    "transformers.models.distilbert.modeling_distilbert",
    "transformers.trainer_utils",
    "scipy.optimize",
    "scipy.stats",
)
#: How environment variables begin that are read when Python starts or these modules are imported.
READ_ONCE = (
    *("PYTHON", "OMP_", "KMP_", "MKL_", "OPENBLAS_", "ATEN_", "TORCH", "PYTORCH_", "CUDA_"),
    *("HF_", "TRANSFORMERS_", "USE_", "LD_", "MALLOC_", "GLIBC_", "LANG", "LC_"),
)
#: Of these, the ones that a fork can follow; the last is set by torch when it is imported.
FOLLOWED = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "TORCHINDUCTOR_CACHE_DIR")
#: From here on, numbers of open files that those of a process do not reach.
FAR = 700


def available() -> bool:
    """Whether this system forks, and passes open files from process to process."""
    return sys.platform == "linux"


class Preloaded:
    """The server, and the command that asks it for a fork.

    :raises RuntimeError: the server did not start.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ftcheck-python-"))  # a socket's path is short
        self.executable, path = self.folder / "python", self.folder / "socket"
        words = [sys.executable, "-ISE", asker.__file__, str(path), sys.executable]
        self.executable.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        self.executable.chmod(0o755)
        self.server = subprocess.Popen(
            [sys.executable, __file__, str(path), str(self.executable)],
            stdin=subprocess.PIPE,  # its end is the server's end
            stdout=subprocess.PIPE,
        )
        if self.server.stdout.readline() != b"ready\n":
            self.close()
            raise RuntimeError("the server of preloaded Pythons did not start")

    def close(self) -> None:
        """End the server and what it has forked."""
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()
        shutil.rmtree(self.folder)


# ---------------------------------------------------------------------- the server
class Server:
    """Forks for each request."""

    def __init__(self, path: str) -> None:
        #: ``sys.path`` of a Python that is started without ``PYTHONPATH``, but for its first entry.
        self.path = [p for p in sys.path[1:] if p not in map(os.path.abspath, _python_path())]
        for name in MODULES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        # plugins of pytest among what they import: pytest warns where one is imported before it starts
        plugins = {point.value.partition(".")[0] for point in importlib.metadata.entry_points(group="pytest11")}
        for name in [name for name in sys.modules if name.partition(".")[0] in plugins]:
            del sys.modules[name]
        if len(list(Path("/proc/self/task").iterdir())) > 1:
            raise RuntimeError("a process of more than one thread can't be forked")
        gc.collect()
        gc.freeze()  # what is here now is looked through by no fork
        self.own = read_once(dict(os.environ))
        self.waking, self.woken = socket.socketpair()
        self.waking.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.waking.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its owner
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        self.ready = selectors.DefaultSelector()
        for source in (sys.stdin, self.woken, self.listener):
            self.ready.register(source, selectors.EVENT_READ)
        #: Whoever asked -> the fork's process.
        self.forks: dict[socket.socket, int] = {}

    def serve(self) -> dict:
        """Until the input ends; comes back in the forks only, with what was asked for."""
        while True:
            for key, _ in self.ready.select():
                source = key.fileobj
                if source is sys.stdin:
                    for child in self.forks.values():
                        _signal(child, signal.SIGKILL)
                    os._exit(0)
                elif source is self.woken:
                    self.woken.recv(4096)
                    self.reap()
                elif source is self.listener:
                    if request := self.fork(self.listener.accept()[0]):
                        return request
                elif source in self.forks:
                    self.pass_on(source)

    def fork(self, connection: socket.socket) -> dict | None:
        """The request, in the fork; None in the server."""
        head, files, _, _ = socket.recv_fds(connection, asker.NUMBER.size, asker.FILES)
        request = json.loads(asker.exactly(connection, *asker.NUMBER.unpack(head)))
        refused = plan(request["arguments"]) is None or read_once(request["environment"]) != self.own
        connection.sendall(asker.NUMBER.pack(asker.REFUSED if refused else asker.FORKED))
        child = None if refused else os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setpgid(0, 0)
            _take(files, request["files"])
            return request | {"path": self.path}
        for file in files:
            os.close(file)
        if child is None:
            connection.close()
        else:
            self.forks[connection] = child
            self.ready.register(connection, selectors.EVENT_READ)
        return None

    def pass_on(self, connection: socket.socket) -> None:
        """Signals for the fork; where whoever asked has ended, the fork ends, too."""
        numbers = b""
        with contextlib.suppress(OSError):
            numbers = connection.recv(64)
        for number in numbers or [signal.SIGKILL]:
            _signal(self.forks[connection], number)
        if not numbers:
            self.forget(connection)

    def reap(self) -> None:
        """Tell exit statuses."""
        with contextlib.suppress(ChildProcessError):
            while True:
                child, status = os.waitpid(-1, os.WNOHANG)
                if child == 0:
                    return
                for connection in [c for c, pid in self.forks.items() if pid == child]:
                    with contextlib.suppress(OSError):
                        connection.sendall(asker.NUMBER.pack(os.waitstatus_to_exitcode(status)))
                    self.forget(connection)

    def forget(self, connection: socket.socket) -> None:
        del self.forks[connection]
        self.ready.unregister(connection)
        connection.close()


def read_once(environment: dict[str, str]) -> dict[str, str]:
    """The variables that a fork cannot follow."""
    return {k: v for k, v in environment.items() if k.startswith(READ_ONCE) and k not in FOLLOWED}


def plan(arguments: list[str]) -> tuple[str, str, list[str], list[str]] | None:
    """``-c``, ``-m`` or nothing, its text, name or file, its arguments, and Python's own options; None: not known here."""
    known = [word for word in arguments[:2] if word in ("-u", "-B")]
    rest = arguments[len(known) :]
    for kind in ("-c", "-m"):
        if rest and rest[0].startswith(kind):
            words = [rest[0][2:], *rest[1:]] if len(rest[0]) > 2 else rest[1:]
            return (kind, words[0], words[1:], known) if words else None
    return None if not rest or rest[0].startswith("-") else ("", rest[0], rest[1:], known)


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _signal(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _take(files: list[int], numbers: list[int]) -> None:
    """The open files of whoever asked, under their numbers; none else stays open."""
    far = [fcntl.fcntl(file, fcntl.F_DUPFD, FAR) for file in files]
    os.closerange(0, FAR)
    for file, number in zip(far, numbers, strict=True):
        os.dup2(file, number)
    os.closerange(FAR, FAR + asker.FILES + 1)


# ---------------------------------------------------------------------- the fork
def become(request: dict, executable: str) -> None:
    """Run what was asked for, as a Python that was just started."""
    kind, text, arguments, options = plan(request["arguments"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.executable = executable
    sys.orig_argv[:] = [executable, *request["arguments"]]
    sys.dont_write_bytecode = "-B" in options or bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    _streams("-u" in options or bool(os.environ.get("PYTHONUNBUFFERED")))
    first = {"-c": "", "-m": str(Path.cwd())}.get(kind, str(Path(text).resolve().parent))
    sys.path[:] = [first, *map(os.path.abspath, _python_path()), *request["path"]]
    importlib.invalidate_caches()
    for module in (random, sys.modules["torch"], sys.modules["numpy"].random):
        module.seed()
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv[:] = ["-c" if kind == "-c" else text, *arguments]
    if kind == "-m":
        runpy._run_module_as_main(text)
    elif kind == "-c":
        exec(text, vars(main))
    else:
        main.__file__ = text
        exec(compile(Path(text).read_bytes(), text, "exec"), vars(main))


def _streams(unbuffered: bool) -> None:
    """New ones: what the server's have buffered is not the fork's."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old, new = getattr(sys, name), None
        with contextlib.suppress(OSError):  # closed
            new = open(number, "r" if number == 0 else "w", encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
        if new is not None and number:
            new.reconfigure(write_through=unbuffered, line_buffering=number == 2 or new.isatty())
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


if __name__ == "__main__":
    _main = sys.modules["__main__"]  # the functions of this file need it
    _server = Server(sys.argv[1])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    become(_server.serve(), sys.argv[2])
