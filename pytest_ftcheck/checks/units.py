"""The head's units are alive, different from each other, and not saturated."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_units_alive(trace: Trace) -> Verdict:
    """The head's units are alive, different from each other, and not saturated.

    >>> from pytest_ftcheck import example_trace
    >>> check_units_alive(example_trace()).status
    'skipped'
    """
    return Verdict("units_alive", "skipped", "not measured.")
