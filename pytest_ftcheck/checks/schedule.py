"""The learning rate really applied at each step is the declared one."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_lr_follows_schedule(trace: Trace) -> Verdict:
    """The learning rate really applied at each step is the declared one.

    >>> from pytest_ftcheck import example_trace
    >>> check_lr_follows_schedule(example_trace()).status
    'skipped'
    """
    return Verdict("lr_follows_schedule", "skipped", "not measured.")


def check_lr_sensible(trace: Trace) -> Verdict:
    """The learning rate fits the weights' scale and dtype.

    >>> from pytest_ftcheck import example_trace
    >>> check_lr_sensible(example_trace()).status
    'skipped'
    """
    return Verdict("lr_sensible", "skipped", "not measured.")
