"""From a trace to an experiment tracker: one small protocol, and the trackers that implement it."""

from __future__ import annotations

import importlib
import inspect
import random
from typing import TYPE_CHECKING, Any

from ...core import arguments
from ...core.formatting import as_given, describe_type
from ...core.trace_writer import TraceWriter
from ..session_diagnosis import diagnosis_of
from . import content

if TYPE_CHECKING:
    from os import PathLike

    from ...core.trace import Trace


#: Trackers by name: module and class of the writer, which is imported when it is used.
WRITERS = {
    "tensorboard": (".tensorboard", "TensorBoardWriter"),
    "wandb": (".loggers", "WandbWriter"),
    "mlflow": (".loggers", "MlflowWriter"),
    "trackio": (".loggers", "TrackioWriter"),
}


def log(trace: Trace, to: str | TraceWriter, *, tensors: bool = False, **options: Any) -> None:
    """Log a trace; see :meth:`pytest_ftcheck.Trace.log_to`."""
    arguments.flag("tensors", tensors)
    if isinstance(to, str):
        if to not in WRITERS:
            raise ValueError(f"to={as_given(to)}: expected one of {', '.join(WRITERS)}, or a TraceWriter")
        module, name = WRITERS[to]
        kind = getattr(importlib.import_module(module, __package__), name)
        known = inspect.signature(kind).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            for option in options:
                if option not in known:
                    raise TypeError(
                        f"{option}={as_given(options[option])}: {to} has no such option; it has {', '.join(known)}"
                    )
        writer: TraceWriter = kind(**options)
    elif _is_writer(to):
        if options:
            raise TypeError(
                f"{next(iter(options))}=...: options are for trackers given by name, and this is {describe_type(to)}"
            )
        writer = to
    else:
        what = f"the class {to.__name__}" if isinstance(to, type) else describe_type(to)
        raise TypeError(
            f"to={what}: expected one of {', '.join(WRITERS)}, or an object with the methods of a TraceWriter"
        )
    closing = _Closing(writer)
    try:
        try:
            write(trace, writer, tensors=tensors)
            closing.failed = False
        finally:
            closing.close()
    finally:  # for an interrupt in the line above
        closing.close()


class _Closing:
    """Closes a writer once, again only if an interrupt stopped that. Python's random state is as before: trackers draw names for runs."""

    def __init__(self, writer: TraceWriter) -> None:
        self._writer, self._closed, self.failed = writer, False, True
        self._drawn = random.getstate()

    def close(self) -> None:
        try:
            if not self._closed:
                self._writer.close(self.failed)
                self._closed = True
        except Exception:
            self._closed = True
            raise
        finally:
            random.setstate(self._drawn)


def _is_writer(to: Any) -> bool:
    try:
        return isinstance(to, TraceWriter) and not isinstance(to, type)
    except Exception:  # noqa: BLE001 - an object of the user's whose attributes raise
        return False


def to_tensorboard(trace: Trace, directory: str | PathLike[str]) -> None:
    """Write the whole trace as event files into ``directory`` (one directory a run).

    :raises ImportError: the package ``tensorboard`` is missing.
    """
    log(trace, "tensorboard", tensors=True, directory=directory)


def write(trace: Trace, writer: TraceWriter, *, tensors: bool) -> None:
    """Write everything, in the order that `TraceWriter` promises."""
    diagnosis = diagnosis_of(trace)
    steps: dict[int, dict[str, float]] = {}
    for tag, value, step in content.scalars(trace, tensors=tensors):
        steps.setdefault(step, {})[tag] = value
    results = content.results(trace, diagnosis)
    steps.setdefault(len(trace.steps), {}).update(results)
    writer.settings(content.settings(trace, diagnosis), results)
    for step in sorted(steps):
        writer.scalars(step, steps[step])
    for tag, step, histogram in content.histograms(trace, tensors=tensors):
        writer.histogram(tag, step, histogram)
    for name, text in content.texts(trace, diagnosis):
        writer.text(name, text)
