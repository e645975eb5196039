"""Saving and loading keeps the trained model, head and all."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_reload_keeps_head(trace: Trace) -> Verdict:
    """Saving and loading keeps the trained model, head and all.

    >>> from pytest_ftcheck import example_trace
    >>> check_reload_keeps_head(example_trace()).status
    'skipped'
    """
    return Verdict("reload_keeps_head", "skipped", "not measured.")
