"""Padding changes nothing: neither what is in it nor how much of it there is."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_padding_ignored(trace: Trace) -> Verdict:
    """Padding changes nothing: neither what is in it nor how much of it there is.

    >>> from pytest_ftcheck import example_trace
    >>> check_padding_ignored(example_trace()).status
    'skipped'
    """
    return Verdict("padding_ignored", "skipped", "not measured.")
