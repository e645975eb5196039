"""Every tensor that should learn is in exactly one group of the optimizer, by identity, and nothing stale is."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_optimizer_covers_model(trace: Trace) -> Verdict:
    """Every tensor that should learn is in exactly one group of the optimizer, by identity, and nothing stale is.

    >>> from pytest_ftcheck import example_trace
    >>> check_optimizer_covers_model(example_trace()).status
    'skipped'
    """
    return Verdict("optimizer_covers_model", "skipped", "not measured.")


def check_optimizer_settings(trace: Trace) -> Verdict:
    """The optimizer's settings are those that were meant, and none is absurd.

    >>> from pytest_ftcheck import example_trace
    >>> check_optimizer_settings(example_trace()).status
    'skipped'
    """
    return Verdict("optimizer_settings", "skipped", "not measured.")
