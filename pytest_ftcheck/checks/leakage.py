"""Neither the inputs give the label away nor are evaluation rows training rows."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_no_leak(trace: Trace) -> Verdict:
    """Neither the inputs give the label away nor are evaluation rows training rows.

    >>> from pytest_ftcheck import example_trace
    >>> check_no_leak(example_trace()).status
    'skipped'
    """
    return Verdict("no_leak", "skipped", "not measured.")
