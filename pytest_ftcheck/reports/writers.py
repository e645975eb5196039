"""From a trace to an experiment tracker: one small protocol, and who speaks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..text import a
from . import logged
from .logged import Setting

if TYPE_CHECKING:
    from ..trace import Histogram, Trace

#: What a new project or experiment is called where nobody named one, and what names begin with in a run of the user's.
PROJECT = "ftcheck"


@runtime_checkable
class TraceWriter(Protocol):
    """Where a trace can be logged to. Any object with these five methods will do.

    Calls come in this order: ``settings``, ``scalars`` (steps ascending), ``histogram``, ``text``, and always ``close``.

    >>> from pytest_ftcheck import example_trace
    >>> class Printer:
    ...     def settings(self, settings, results): print(settings["status"], results["result/loss.final"])
    ...     def scalars(self, step, values): ...
    ...     def histogram(self, tag, step, histogram): ...
    ...     def text(self, name, text): ...
    ...     def close(self, failed): print("failed" if failed else "done")
    >>> example_trace().log_to(Printer())
    healthy 0.32
    done
    """

    def settings(self, settings: Mapping[str, Setting], results: Mapping[str, float]) -> None:
        """Hyper-parameters, and by the tags of their scalars the numbers that say most about the run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """All scalars of one step by their tags (``loss/train``); NaN and infinities are among them.

        :param step: optimizer steps from 1; 0 is before the run.
        """

    def histogram(self, tag: str, step: int, histogram: Histogram) -> None:
        """The values of one tensor after some step: finite borders, equal bins, not empty."""

    def text(self, name: str, text: str) -> None:
        """Some lines in which columns are aligned."""

    def close(self, failed: bool) -> None:
        """Nothing more is coming; ``failed``: because something was raised."""


def log(trace: Trace, to: str | TraceWriter, *, tensors: bool = False, **options: Any) -> None:
    """Log a trace; see :meth:`pytest_ftcheck.Trace.log_to`."""
    if isinstance(to, str):
        if to not in WRITERS:
            raise ValueError(f"to={to!r}: expected one of {', '.join(WRITERS)}, or a TraceWriter")
        writer = WRITERS[to](options)
    elif isinstance(to, TraceWriter) and not isinstance(to, type):
        if options:
            raise TypeError(
                f"{next(iter(options))}=...: options are for a tracker by name, {a(to)} has been made already"
            )
        writer = to
    else:
        what = f"the class {to.__name__}" if isinstance(to, type) else a(to)
        raise TypeError(
            f"to={what}: expected one of {', '.join(WRITERS)}, or an object with the methods of a TraceWriter"
        )
    failed = True
    try:
        write(trace, writer, tensors=tensors)
        failed = False
    finally:
        writer.close(failed)


def write(trace: Trace, writer: TraceWriter, *, tensors: bool) -> None:
    """All that is to be told, in the order that `TraceWriter` promises."""
    diagnosis = logged.judged(trace)
    steps: dict[int, dict[str, float]] = {}
    for tag, value, step in logged.scalars(trace, tensors=tensors):
        steps.setdefault(step, {})[tag] = value
    results = logged.results(trace, diagnosis)
    steps.setdefault(len(trace.steps), {}).update(results)
    writer.settings(logged.settings(trace, diagnosis), results)
    for step in sorted(steps):
        writer.scalars(step, steps[step])
    for tag, step, histogram in logged.histograms(trace, tensors=tensors):
        writer.histogram(tag, step, histogram)
    for name, text in logged.texts(trace, diagnosis):
        writer.text(name, text)


# ------------------------------------------------------------------ by name
def _tensorboard(options: Mapping[str, Any]) -> TraceWriter:
    from .tensorboard import TensorBoardWriter

    return TensorBoardWriter(**options)


def _wandb(options: Mapping[str, Any]) -> TraceWriter:
    from .loggers import WandbWriter

    return WandbWriter(**options)


def _mlflow(options: Mapping[str, Any]) -> TraceWriter:
    from .loggers import MlflowWriter

    return MlflowWriter(**options)


def _trackio(options: Mapping[str, Any]) -> TraceWriter:
    from .loggers import TrackioWriter

    return TrackioWriter(**options)


#: Trackers by name.
WRITERS: dict[str, Callable[[Mapping[str, Any]], TraceWriter]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
