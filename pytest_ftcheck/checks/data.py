"""The batches are fit to learn from: mixed classes, real tokens, not the same rows again and again."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_batches_sound(trace: Trace) -> Verdict:
    """The batches are fit to learn from: mixed classes, real tokens, not the same rows again and again.

    >>> from pytest_ftcheck import example_trace
    >>> check_batches_sound(example_trace()).status
    'skipped'
    """
    return Verdict("batches_sound", "skipped", "not measured.")


def check_labels_learnable(trace: Trace) -> Verdict:
    """The labels depend on the inputs.

    >>> from pytest_ftcheck import example_trace
    >>> check_labels_learnable(example_trace()).status
    'skipped'
    """
    return Verdict("labels_learnable", "skipped", "not measured.")
