"""What the optimizer did to the weights is still there at the end: nothing resets or overwrites them."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_weights_kept(trace: Trace) -> Verdict:
    """What the optimizer did to the weights is still there at the end: nothing resets or overwrites them.

    >>> from pytest_ftcheck import example_trace
    >>> check_weights_kept(example_trace()).status
    'skipped'
    """
    return Verdict("weights_kept", "skipped", "not measured.")
