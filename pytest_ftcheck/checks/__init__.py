"""The checks: each one a function ``Trace -> Verdict``. They see numbers only, never a tensor, and raise only on bad arguments.

>>> from pytest_ftcheck import check_weights_move, example_trace
>>> check_weights_move(example_trace()).status
'pass'
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

from ..runs import Runs
from ..sequential import judge as over_seeds
from ..text import a
from ..trace import Trace
from ..verdict import Verdict
from . import (
    bounds,
    data,
    depth,
    evaluation,
    frozen,
    gradients,
    init,
    initial_loss,
    leakage,
    loss,
    loss_task,
    metrics,
    mode,
    numerics,
    overfitting,
    overwritten,
    pace,
    padding,
    permuted,
    pretrained,
    redundancy,
    reference,
    reload,
    rows,
    schedule,
    sensitivity,
    settings,
    stability,
    units,
    weights,
    wiring,
)

P = ParamSpec("P")


def _of_a_trace(check: Callable[Concatenate[Trace, P], Verdict]) -> Callable[Concatenate[Trace | Runs, P], Verdict]:
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


check_optimizer_covers_model = _of_a_trace(wiring.check_optimizer_covers_model)
check_optimizer_settings = _of_a_trace(settings.check_optimizer_settings)
check_lr_follows_schedule = _of_a_trace(schedule.check_lr_follows_schedule)
check_lr_sensible = _of_a_trace(pace.check_lr_sensible)
check_head_init = _of_a_trace(init.check_head_init)
check_pretrained_kept = _of_a_trace(pretrained.check_pretrained_kept)
check_initial_loss = _of_a_trace(initial_loss.check_initial_loss)
check_loss_matches_task = _of_a_trace(loss_task.check_loss_matches_task)
check_batches_sound = _of_a_trace(data.check_batches_sound)
check_labels_learnable = _of_a_trace(data.check_labels_learnable)
check_no_leak = _of_a_trace(leakage.check_no_leak)
check_padding_ignored = _of_a_trace(padding.check_padding_ignored)
check_rows_independent = _of_a_trace(rows.check_rows_independent)
check_output_depends_on_input = _of_a_trace(sensitivity.check_output_depends_on_input)
check_dropout_active = _of_a_trace(mode.check_dropout_active)
check_eval_deterministic = _of_a_trace(mode.check_eval_deterministic)
check_grads_nonzero = _of_a_trace(gradients.check_grads_nonzero)
check_grads_match_reference = _of_a_trace(reference.check_grads_match_reference)
check_grads_reach_depth = _of_a_trace(depth.check_grads_reach_depth)
check_all_finite = _of_a_trace(numerics.check_all_finite)
check_weights_move = _of_a_trace(weights.check_weights_move)
check_weights_kept = _of_a_trace(overwritten.check_weights_kept)
check_frozen_stay_frozen = _of_a_trace(frozen.check_frozen_stay_frozen)
check_loss_decreases = _of_a_trace(loss.check_loss_decreases)
check_loss_stable = _of_a_trace(stability.check_loss_stable)
check_overfits_one_batch = _of_a_trace(overfitting.check_overfits_one_batch)
check_logits_unbounded = _of_a_trace(bounds.check_logits_unbounded)
check_units_alive = _of_a_trace(units.check_units_alive)
check_metric_improves = _of_a_trace(metrics.check_metric_improves)
check_metric_matches_reference = _of_a_trace(evaluation.check_metric_matches_reference)
check_beats_permuted_labels = _of_a_trace(permuted.check_beats_permuted_labels)
check_reload_keeps_head = _of_a_trace(reload.check_reload_keeps_head)
check_head_needed = _of_a_trace(redundancy.check_head_needed)

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
