"""The output depends on the input."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_output_depends_on_input(trace: Trace) -> Verdict:
    """The output depends on the input.

    >>> from pytest_ftcheck import example_trace
    >>> check_output_depends_on_input(example_trace()).status
    'skipped'
    """
    return Verdict("output_depends_on_input", "skipped", "not measured.")
