"""The first loss is what a model scores that knows nothing: near the class-prior entropy, from both sides."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_initial_loss(trace: Trace) -> Verdict:
    """The first loss is what a model scores that knows nothing: near the class-prior entropy, from both sides.

    >>> from pytest_ftcheck import example_trace
    >>> check_initial_loss(example_trace()).status
    'skipped'
    """
    return Verdict("initial_loss", "skipped", "not measured.")
