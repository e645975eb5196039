"""Dropout is on in training, at the declared rate."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_dropout_active(trace: Trace) -> Verdict:
    """Dropout is on in training, at the declared rate.

    >>> from pytest_ftcheck import example_trace
    >>> check_dropout_active(example_trace()).status
    'skipped'
    """
    return Verdict("dropout_active", "skipped", "not measured.")


def check_eval_deterministic(trace: Trace) -> Verdict:
    """In evaluation mode the same input gives the same output.

    >>> from pytest_ftcheck import example_trace
    >>> check_eval_deterministic(example_trace()).status
    'skipped'
    """
    return Verdict("eval_deterministic", "skipped", "not measured.")
