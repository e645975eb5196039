"""The checks: each one a function ``Trace -> Verdict``. They see numbers only, never a tensor, and raise only on bad arguments.

>>> from pytest_ftcheck import check_weights_move, example_trace
>>> check_weights_move(example_trace()).status
'pass'
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..runs import Runs
from ..sequential import judge as over_seeds
from ..text import a
from ..trace import Trace
from ..verdict import Verdict
from .bounds import check_logits_unbounded
from .data import check_batches_sound, check_labels_learnable
from .depth import check_grads_reach_depth
from .evaluation import check_metric_matches_reference
from .frozen import check_frozen_stay_frozen
from .gradients import check_grads_nonzero
from .init import check_head_init
from .initial_loss import check_initial_loss
from .leakage import check_no_leak
from .loss import check_loss_decreases
from .loss_task import check_loss_matches_task
from .metrics import check_metric_improves
from .mode import check_dropout_active, check_eval_deterministic
from .numerics import check_all_finite
from .overfitting import check_overfits_one_batch
from .overwritten import check_weights_kept
from .pace import check_lr_sensible
from .padding import check_padding_ignored
from .permuted import check_beats_permuted_labels
from .pretrained import check_pretrained_kept
from .redundancy import check_head_needed
from .reference import check_grads_match_reference
from .reload import check_reload_keeps_head
from .rows import check_rows_independent
from .schedule import check_lr_follows_schedule
from .sensitivity import check_output_depends_on_input
from .settings import check_optimizer_settings
from .stability import check_loss_stable
from .units import check_units_alive
from .weights import check_weights_move
from .wiring import check_optimizer_covers_model

#: Name -> check, in the order in which a run goes: wiring and data first, what came of it last.
CHECKS: dict[str, Callable[..., Verdict]] = {
    "optimizer_covers_model": check_optimizer_covers_model,
    "optimizer_settings": check_optimizer_settings,
    "lr_follows_schedule": check_lr_follows_schedule,
    "lr_sensible": check_lr_sensible,
    "head_init": check_head_init,
    "pretrained_kept": check_pretrained_kept,
    "initial_loss": check_initial_loss,
    "loss_matches_task": check_loss_matches_task,
    "batches_sound": check_batches_sound,
    "labels_learnable": check_labels_learnable,
    "no_leak": check_no_leak,
    "padding_ignored": check_padding_ignored,
    "rows_independent": check_rows_independent,
    "output_depends_on_input": check_output_depends_on_input,
    "dropout_active": check_dropout_active,
    "eval_deterministic": check_eval_deterministic,
    "grads_nonzero": check_grads_nonzero,
    "grads_match_reference": check_grads_match_reference,
    "grads_reach_depth": check_grads_reach_depth,
    "all_finite": check_all_finite,
    "weights_move": check_weights_move,
    "weights_kept": check_weights_kept,
    "frozen_stay_frozen": check_frozen_stay_frozen,
    "loss_decreases": check_loss_decreases,
    "loss_stable": check_loss_stable,
    "overfits_one_batch": check_overfits_one_batch,
    "logits_unbounded": check_logits_unbounded,
    "units_alive": check_units_alive,
    "metric_improves": check_metric_improves,
    "metric_matches_reference": check_metric_matches_reference,
    "beats_permuted_labels": check_beats_permuted_labels,
    "reload_keeps_head": check_reload_keeps_head,
    "head_needed": check_head_needed,
}


def _of_a_trace(check: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """The same check, over one trace or over several seeds; what is no trace is told apart from what is a bad one."""

    @functools.wraps(check)
    def judge(*arguments: Any, **options: Any) -> Verdict:
        trace = arguments[0] if arguments else options.get("trace")
        if isinstance(trace, Runs):
            rest = {name: value for name, value in options.items() if name != "trace"}
            return over_seeds(check, trace, arguments[1:], rest)
        if (arguments or "trace" in options) and not isinstance(trace, Trace):
            raise TypeError(f"trace is {a(trace)}: expected what finetune() or watch() gave")
        return check(*arguments, **options)

    return judge


CHECKS = {name: _of_a_trace(check) for name, check in CHECKS.items()}
globals().update({check.__name__: check for check in CHECKS.values()})

__all__ = [
    "CHECKS",
    "check_all_finite",
    "check_batches_sound",
    "check_beats_permuted_labels",
    "check_dropout_active",
    "check_eval_deterministic",
    "check_frozen_stay_frozen",
    "check_grads_match_reference",
    "check_grads_nonzero",
    "check_grads_reach_depth",
    "check_head_init",
    "check_head_needed",
    "check_initial_loss",
    "check_labels_learnable",
    "check_logits_unbounded",
    "check_loss_decreases",
    "check_loss_matches_task",
    "check_loss_stable",
    "check_lr_follows_schedule",
    "check_lr_sensible",
    "check_metric_improves",
    "check_metric_matches_reference",
    "check_no_leak",
    "check_optimizer_covers_model",
    "check_optimizer_settings",
    "check_output_depends_on_input",
    "check_overfits_one_batch",
    "check_padding_ignored",
    "check_pretrained_kept",
    "check_reload_keeps_head",
    "check_rows_independent",
    "check_units_alive",
    "check_weights_kept",
    "check_weights_move",
]
