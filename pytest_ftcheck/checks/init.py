"""The head starts as declared, and not all the same."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_head_init(trace: Trace) -> Verdict:
    """The head starts as declared, and not all the same.

    >>> from pytest_ftcheck import example_trace
    >>> check_head_init(example_trace()).status
    'skipped'
    """
    return Verdict("head_init", "skipped", "not measured.")


def check_pretrained_kept(trace: Trace) -> Verdict:
    """The base starts from the declared pretrained values.

    >>> from pytest_ftcheck import example_trace
    >>> check_pretrained_kept(example_trace()).status
    'skipped'
    """
    return Verdict("pretrained_kept", "skipped", "not measured.")
