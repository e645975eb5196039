"""The trained head does what a simpler one, or the untrained one, could not."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_head_needed(trace: Trace) -> Verdict:
    """The trained head does what a simpler one, or the untrained one, could not.

    >>> from pytest_ftcheck import example_trace
    >>> check_head_needed(example_trace()).status
    'skipped'
    """
    return Verdict("head_needed", "skipped", "not measured.")
