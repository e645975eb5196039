"""The checks: each one a function ``Trace -> Verdict``. They see numbers only, never a tensor, and raise only on bad arguments.

>>> from pytest_ftcheck import check_weights_move, example_trace
>>> check_weights_move(example_trace()).status
'pass'
"""

from __future__ import annotations

from collections.abc import Callable

from ..verdict import Verdict
from .frozen import check_frozen_stay_frozen
from .gradients import check_grads_nonzero
from .loss import check_loss_decreases
from .metrics import check_metric_improves
from .numerics import check_all_finite
from .weights import check_weights_move

#: Name -> check.
CHECKS: dict[str, Callable[..., Verdict]] = {
    "weights_move": check_weights_move,
    "grads_nonzero": check_grads_nonzero,
    "loss_decreases": check_loss_decreases,
    "metric_improves": check_metric_improves,
    "all_finite": check_all_finite,
    "frozen_stay_frozen": check_frozen_stay_frozen,
}

__all__ = [
    "CHECKS",
    "check_all_finite",
    "check_frozen_stay_frozen",
    "check_grads_nonzero",
    "check_loss_decreases",
    "check_metric_improves",
    "check_weights_move",
]
