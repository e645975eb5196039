"""The assertions: a check that tells the listener and raises."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec

from . import checks, gate, listener
from .border import toward_border
from .runs import Runs, repeatable
from .text import a
from .trace import Trace
from .verdict import Verdict

P = ParamSpec("P")


def _asserting(check: Callable[P, Verdict]) -> Callable[P, Verdict]:
    """The assertion of a check: same arguments, and it raises what does not pass."""
    name = check.__name__.removeprefix("check_")

    @functools.wraps(check)
    def assertion(*arguments: P.args, **options: P.kwargs) -> Verdict:
        __tracebackhide__ = True
        trace: Any = arguments[0] if arguments else options.get("trace")
        if not isinstance(trace, (Trace, Runs)):
            raise TypeError(f"trace is {a(trace)}: expected what finetune() or watch() gave")
        return settle(check(*arguments, **options), trace)

    assertion.__name__ = assertion.__qualname__ = f"assert_{name}"
    assertion.__module__ = __name__
    assertion.__doc__ = f"""Raise `CheckFailed` unless ``{name}`` passes; arguments as :func:`~pytest_ftcheck.check_{name}`.

    {(check.__doc__ or "").strip().splitlines()[0]}

    >>> from pytest_ftcheck import example_trace
    >>> assert_{name}(example_trace()).ok
    True
    """
    return assertion


def settle(verdict: Verdict, trace: Trace | Runs | None = None) -> Verdict:
    """Tell the listener, and hypothesis if it searches; raise if the verdict is none to let through."""
    __tracebackhide__ = True
    if trace is not None and gate.raises(verdict) and (again := repeatable(trace)):
        verdict = dataclasses.replace(verdict, notes=(*verdict.notes, again))
    if isinstance(trace, Runs):
        trace = trace[0]
    if told := listener.current():
        told.judged(verdict, trace)
    toward_border(verdict)
    if gate.raises(verdict):
        raise gate.error(verdict) from None
    return verdict


assert_optimizer_covers_model = _asserting(checks.check_optimizer_covers_model)
assert_optimizer_settings = _asserting(checks.check_optimizer_settings)
assert_lr_follows_schedule = _asserting(checks.check_lr_follows_schedule)
assert_lr_sensible = _asserting(checks.check_lr_sensible)
assert_head_init = _asserting(checks.check_head_init)
assert_pretrained_kept = _asserting(checks.check_pretrained_kept)
assert_initial_loss = _asserting(checks.check_initial_loss)
assert_loss_matches_task = _asserting(checks.check_loss_matches_task)
assert_batches_sound = _asserting(checks.check_batches_sound)
assert_labels_learnable = _asserting(checks.check_labels_learnable)
assert_no_leak = _asserting(checks.check_no_leak)
assert_padding_ignored = _asserting(checks.check_padding_ignored)
assert_rows_independent = _asserting(checks.check_rows_independent)
assert_output_depends_on_input = _asserting(checks.check_output_depends_on_input)
assert_dropout_active = _asserting(checks.check_dropout_active)
assert_eval_deterministic = _asserting(checks.check_eval_deterministic)
assert_grads_nonzero = _asserting(checks.check_grads_nonzero)
assert_grads_match_reference = _asserting(checks.check_grads_match_reference)
assert_grads_reach_depth = _asserting(checks.check_grads_reach_depth)
assert_all_finite = _asserting(checks.check_all_finite)
assert_weights_move = _asserting(checks.check_weights_move)
assert_weights_kept = _asserting(checks.check_weights_kept)
assert_frozen_stay_frozen = _asserting(checks.check_frozen_stay_frozen)
assert_loss_decreases = _asserting(checks.check_loss_decreases)
assert_loss_stable = _asserting(checks.check_loss_stable)
assert_overfits_one_batch = _asserting(checks.check_overfits_one_batch)
assert_logits_unbounded = _asserting(checks.check_logits_unbounded)
assert_units_alive = _asserting(checks.check_units_alive)
assert_metric_improves = _asserting(checks.check_metric_improves)
assert_metric_matches_reference = _asserting(checks.check_metric_matches_reference)
assert_beats_permuted_labels = _asserting(checks.check_beats_permuted_labels)
assert_reload_keeps_head = _asserting(checks.check_reload_keeps_head)
assert_head_needed = _asserting(checks.check_head_needed)
