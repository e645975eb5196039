"""Gradients neither vanish nor explode along the depth of the model."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_grads_reach_depth(trace: Trace) -> Verdict:
    """Gradients neither vanish nor explode along the depth of the model.

    >>> from pytest_ftcheck import example_trace
    >>> check_grads_reach_depth(example_trace()).status
    'skipped'
    """
    return Verdict("grads_reach_depth", "skipped", "not measured.")
