"""`TraceWriter`: the methods an experiment tracker needs, so that a Trace can be logged to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from .observations import Histogram

#: Types of settings that every tracker accepts.
Setting = str | int | float | bool
#: Default name of a new project or run, and prefix of all names in a run of the user's.
PROJECT = "ftcheck"


@runtime_checkable
class TraceWriter(Protocol):
    """Where a trace can be logged to: any object with these five methods.

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
        """Hyper-parameters; and the most informative results, by the tags of their scalars."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """All scalars of one step by their tags (``loss/train``); NaN and infinities are possible.

        :param step: optimizer steps from 1; 0 is before the run.
        """

    def histogram(self, tag: str, step: int, histogram: Histogram) -> None:
        """The values of one tensor after some step: finite edges, equal bins, not empty."""

    def text(self, name: str, text: str) -> None:
        """Lines of text with aligned columns."""

    def close(self, failed: bool) -> None:
        """The last call; ``failed``: because of an exception. It comes a second time if an interrupt (Ctrl-C) stopped the first."""
