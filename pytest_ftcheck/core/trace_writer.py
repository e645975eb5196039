"""What an experiment tracker has to understand, for a Trace to be logged to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from .observations import Histogram

#: What a setting can be in every tracker.
Setting = str | int | float | bool
#: What a new project or probe is called where nobody named one, and what names begin with in a run of the user's.
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
