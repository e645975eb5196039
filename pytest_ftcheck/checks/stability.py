"""The loss neither explodes nor spikes nor collapses to a constant prediction."""

from __future__ import annotations

from ..trace import Trace
from ..verdict import Verdict


def check_loss_stable(trace: Trace) -> Verdict:
    """The loss neither explodes nor spikes nor collapses to a constant prediction.

    >>> from pytest_ftcheck import example_trace
    >>> check_loss_stable(example_trace()).status
    'skipped'
    """
    return Verdict("loss_stable", "skipped", "not measured.")
