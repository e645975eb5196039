"""pytest-ftcheck: know within seconds whether a fine-tune really learns.

The public names are imported when first used, so that importing the package, as pytest does at start-up, costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asserts import (
        assert_all_finite,
        assert_frozen_stay_frozen,
        assert_grads_nonzero,
        assert_loss_decreases,
        assert_metric_improves,
        assert_weights_move,
    )
    from .checks import (
        check_all_finite,
        check_frozen_stay_frozen,
        check_grads_nonzero,
        check_loss_decreases,
        check_metric_improves,
        check_weights_move,
    )
    from .explain import explain_weight_motion
    from .recipe import Recipe
    from .trace import Trace, example_trace
    from .training.loop import finetune
    from .training.toys import tiny_distilbert, toy_batches
    from .training.watching import watch
    from .verdict import CheckFailed, Verdict

__version__ = "0.1.0"

#: Public name -> module that has it.
_HOMES = {
    "assert_all_finite": "asserts",
    "assert_frozen_stay_frozen": "asserts",
    "assert_grads_nonzero": "asserts",
    "assert_loss_decreases": "asserts",
    "assert_metric_improves": "asserts",
    "assert_weights_move": "asserts",
    "check_all_finite": "checks",
    "check_frozen_stay_frozen": "checks",
    "check_grads_nonzero": "checks",
    "check_loss_decreases": "checks",
    "check_metric_improves": "checks",
    "check_weights_move": "checks",
    "explain_weight_motion": "explain",
    "Recipe": "recipe",
    "Trace": "trace",
    "example_trace": "trace",
    "finetune": "training.loop",
    "tiny_distilbert": "training.toys",
    "toy_batches": "training.toys",
    "watch": "training.watching",
    "CheckFailed": "verdict",
    "Verdict": "verdict",
}

__all__ = [
    "CheckFailed",
    "Recipe",
    "Trace",
    "Verdict",
    "__version__",
    "assert_all_finite",
    "assert_frozen_stay_frozen",
    "assert_grads_nonzero",
    "assert_loss_decreases",
    "assert_metric_improves",
    "assert_weights_move",
    "check_all_finite",
    "check_frozen_stay_frozen",
    "check_grads_nonzero",
    "check_loss_decreases",
    "check_metric_improves",
    "check_weights_move",
    "example_trace",
    "explain_weight_motion",
    "finetune",
    "tiny_distilbert",
    "toy_batches",
    "watch",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
