"""In a worker of an executor: work is done with torch's state restored, and what it returns or raises goes back as JSON."""

from __future__ import annotations

import builtins
import json
import os
import platform
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

import torch

from ..core.formatting import text_of
from ..core.trace import Trace
from ..core.version import __version__
from ..instruments.global_state import GlobalState
from ..instruments.undo import Undo
from .payload import unpacked

#: Of this process, and of those that are forked from it.
_PROCESS = uuid.uuid4().hex
#: When this worker was last interrupted, in seconds since 1970. A pool cannot take back what its workers are to do next.
_interrupted_at = 0.0


class RaisedInWorker(RuntimeError):
    """An exception of a class that cannot be made again here; the message names it."""


class WorkersTraceback(Exception):
    """Where an exception was raised in a worker, as text: the cause of the exception that is raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def origin() -> dict[str, Any]:
    """The process that hands out work, when, and its versions."""
    return {"process": _PROCESS, "pid": os.getpid(), "thread": threading.get_ident(), "at": time.time(), **_versions()}


def _versions() -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "torch": str(torch.__version__), "pytest-ftcheck": __version__}


def work_there(
    work: Callable[..., dict[str, Any]], given: dict[str, Any], payload: bytes, threads: int, *args: Any
) -> str:
    """What an executor is given to call: ``work(arguments, *args)``, as JSON; an exception of it is a part of that.

    A worker that was interrupted does not begin what was handed out before.

    :param given: the `origin`.  :param payload: the arguments, by `packed`.  :param threads: torch's, meanwhile.
    """
    global _interrupted_at
    if given["at"] < _interrupted_at:
        raise KeyboardInterrupt
    try:
        _check_place(given)
        return json.dumps({"answer": _done(work, payload, threads, args)})
    except KeyboardInterrupt:
        _interrupted_at = time.time()
        raise
    except GeneratorExit:
        raise
    except BaseException as error:  # noqa: BLE001 - an exception of the future itself is a worker that died
        return json.dumps({"error": _in_words(error)})


def _done(work: Callable[..., dict[str, Any]], payload: bytes, threads: int, args: tuple[Any, ...]) -> dict[str, Any]:
    undo = Undo()

    def run() -> dict[str, Any]:  # one at a time in a process, whatever threads the executor has there
        undo.keep(GlobalState())
        torch.set_num_threads(threads)
        return work(unpacked(payload), *args)

    return undo.after(run)


def opened(text: str) -> dict[str, Any]:
    """The answer of `work_there`, in the process that handed out the work; an exception is raised again.

    >>> opened('{"answer": {"trace": ""}}')
    {'trace': ''}
    >>> opened('{"error": {"class": "ValueError", "args": ["lr=-1"], "text": "lr=-1", "where": "...", "trace": null}}')
    Traceback (most recent call last):
    ValueError: lr=-1
    """
    found: dict[str, Any] = json.loads(text)
    if "error" not in found:
        answer: dict[str, Any] = found["answer"]
        return answer
    error = _made_again(found["error"])
    if found["error"]["trace"]:
        error.ftcheck_trace = Trace.from_json(found["error"]["trace"])  # type: ignore[attr-defined]
    raise error from WorkersTraceback(found["error"]["where"])


def _check_place(given: dict[str, Any]) -> None:
    """:raises TypeError: a thread or a fork of the process that hands out work.  :raises RuntimeError: other versions than there."""
    if given["process"] == _PROCESS and given["pid"] != os.getpid():
        raise TypeError(
            "executor: its workers are forks of this process, and torch's threads do not survive a fork: expected processes that are "
            "started anew, such as ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn'))"
        )
    if given["process"] == _PROCESS and given["thread"] != threading.get_ident():
        raise TypeError(
            "executor: its workers are threads of this process, and random states and switches of torch belong to the process: "
            "expected workers that are processes"
        )
    differing = [
        f"{name} {given[name]} here, {there} there" for name, there in _versions().items() if there != given[name]
    ]
    if differing:
        raise RuntimeError(f"executor: its workers have other versions: {'; '.join(differing)}")


def _in_words(error: BaseException) -> dict[str, Any]:
    plain = type(error).__module__ == "builtins" and all(
        isinstance(a, (str, int, float, type(None))) for a in error.args
    )
    trace = getattr(error, "ftcheck_trace", None)
    where = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {
        "class": type(error).__name__,
        "args": list(error.args) if plain else None,
        "text": text_of(error),
        "where": f"in process {os.getpid()} on {socket.gethostname()}:\n{where}",
        "trace": trace.to_json() if isinstance(trace, Trace) else None,
    }


def _made_again(told: dict[str, Any]) -> BaseException:
    """The same exception where python itself has its class, which no module is imported for; else a `RaisedInWorker`."""
    kind = getattr(builtins, told["class"], None)
    if told["args"] is not None and isinstance(kind, type) and issubclass(kind, BaseException):
        made = kind(*told["args"])
        if str(made) == told["text"]:
            return made
    return RaisedInWorker(f"{told['class']}: {told['text']}")
