"""Why tensors did not learn: how each of them was updated, and the fault behind those of one state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ...core.formatting import number, plural
from ...core.observations import Tensor
from ...core.trace import Trace
from ..gradients.missing_gradient import MissingKind, explain_missing_gradient
from ..optimizer import faults as optimizer_faults
from ..optimizer.fresh_start import optimizer_start
from ..spec import Fault
from . import faults

#: How a tensor that should learn failed to.
UpdateState = Literal[
    "frozen",
    "not_in_optimizer",
    "lr_zero",
    "no_gradient",
    "zero_gradient",
    "decay_only",
    "below_eps",
    "below_budget",
    "slow",
    "rounded_away",
    "rounded_in_loop",
    "restored",
    "unexplained",
]


class _Description(NamedTuple):
    one: str
    several: str


DESCRIPTIONS: dict[UpdateState, _Description] = {
    "frozen": _Description("frozen (requires_grad=False)", "they are frozen (requires_grad=False)"),
    "not_in_optimizer": _Description(
        "in no parameter group of the optimizer", "they are in no parameter group of the optimizer"
    ),
    "lr_zero": _Description("learning rate 0", "their learning rate was 0"),
    "no_gradient": _Description("no gradient reached it", "no gradient reached them"),
    "zero_gradient": _Description("gradient exactly zero", "their gradient is exactly zero"),
    "decay_only": _Description("moved by weight decay alone", "they were moved by weight decay alone"),
    "below_eps": _Description(
        "gradient negligible beside Adam's eps", "their gradients are negligible beside Adam's eps"
    ),
    "below_budget": _Description(
        "moved far less than its learning rate allows", "they moved far less than their learning rates allow"
    ),
    "slow": _Description("steps negligible beside its size", "their steps are negligible beside their size"),
    "rounded_away": _Description("updates rounded away", "their updates are rounded away"),
    "rounded_in_loop": _Description(
        "moved by the optimizer, then rounded back", "the optimizer moved them, then they were rounded back"
    ),
    "restored": _Description("moved by the optimizer, then reset", "the optimizer moved them, then they were reset"),
    "unexplained": _Description("nothing changed it", "nothing changed them"),
}
#: States in which weights may move, but too little, or not by their gradients.
DID_NOT_LEARN = ("decay_only", "below_eps", "below_budget", "slow")
#: States whose limit is the LR budget.
BELOW_BUDGET = ("decay_only", "below_eps", "below_budget")


def describe(state: UpdateState, tensors: Sequence[Tensor], trace: Trace, *, several: bool) -> str:
    """What happened to the tensors of one state, with the deciding number; ``several``: the sentence is about more than one tensor."""
    text = DESCRIPTIONS[state].several if several else DESCRIPTIONS[state].one
    if state == "slow" and (peak := max(t.lr_peak for t in tensors)):
        return f"{text} (peak LR {number(peak)})"
    if state in ("restored", "rounded_in_loop") and (update := max(t.motion.max_update for t in tensors)):
        return f"{text} (steps of rms {number(update)})"
    if state == "not_in_optimizer":
        held = sum(g.tensors for g in trace.optimizer.groups)
        stale = sum(g.not_in_model for g in trace.optimizer.groups)
        others = f", and {plural(stale, 'tensor')} that are not in this model" if stale else ""
        return f"{text} ({trace.optimizer.name} holds {plural(held, 'tensor')} of this model{others})"
    return text


def explain_no_update(state: UpdateState, tensors: Sequence[Tensor], trace: Trace) -> Fault:
    """The fault behind tensors of one state, with its cause and remedy in this run.

    >>> from pytest_ftcheck import example_trace
    >>> trace = example_trace()
    >>> explain_no_update("unexplained", trace.tensors, trace).name
    'weights_still'
    """
    optimizer = trace.optimizer.name
    if state == "frozen":
        return optimizer_faults.FROZEN_BY_MISTAKE
    if state == "not_in_optimizer":
        stale = any(g.not_in_model for g in trace.optimizer.groups)
        fault = optimizer_faults.STALE_OPTIMIZER if stale else optimizer_faults.NOT_IN_OPTIMIZER
        return fault.with_details(optimizer=optimizer)
    if state == "lr_zero":
        return _lr_zero(tensors, trace)
    if state == "slow":
        return _lr_too_small(tensors, trace)
    if state == "rounded_away":
        first = tensors[0]
        return optimizer_faults.LR_BELOW_SPACING.with_details(
            dtype=first.dtype, lr=number(first.lr_peak), rms=number(first.first.rms)
        )
    if state == "rounded_in_loop":
        return faults.WEIGHTS_ROUNDED.with_details(optimizer=optimizer)
    if state == "restored":
        return faults.WEIGHTS_OVERWRITTEN.with_details(optimizer=optimizer)
    if state == "unexplained":
        return faults.WEIGHTS_STILL.with_details(optimizer=optimizer, tensor=tensors[0].name)
    return explain_missing_gradient(tensors, _gradient_kind(state, tensors), trace)


def decay_cause(tensors: Sequence[Tensor], trace: Trace) -> str:
    """What moved the tensors that did not learn from their gradients."""
    moved = [t.motion.by_decay for t in tensors]
    spread = f"{number(min(moved))} to {number(max(moved))}" if len(tensors) > 1 else number(moved[0])
    index = tensors[0].group
    group = trace.optimizer.groups[index] if index is not None and index < len(trace.optimizer.groups) else None
    decay = f"weight decay {group.weight_decay:g}" if group is not None else "weight decay"
    gradient = {
        "none": DESCRIPTIONS["no_gradient"].several,
        "zero": DESCRIPTIONS["zero_gradient"].several,
        "negligible": "their gradients did less",
    }[_gradient_kind("decay_only", tensors)]
    return f"what moved them (rms {spread}) is {decay}; {gradient}"


def _gradient_kind(state: UpdateState, tensors: Sequence[Tensor]) -> MissingKind:
    if state == "no_gradient":
        return "none"
    if state == "zero_gradient":
        return "zero"
    if state == "decay_only" and all(t.gradients.none == t.gradients.steps for t in tensors):
        return "none"
    if state == "decay_only" and all(t.gradients.max_norm == 0 for t in tensors):
        return "zero"
    return "negligible"


def _lr_zero(tensors: Sequence[Tensor], trace: Trace) -> Fault:
    fault = optimizer_faults.LR_ZERO
    if trace.recipe is not None and trace.recipe.lr == 0 and len(trace.optimizer.groups) == 1:
        return fault.because("the run was requested with lr=0", "set a learning rate (5e-5 is usual for Adam)")
    group = f" of parameter group {tensors[0].group}" if len(trace.optimizer.groups) > 1 else ""
    steps = f"at each of the {len(trace.steps)} steps" if len(trace.steps) > 1 else "at the only step"
    zero = f"the learning rate{group} was 0 {steps}"
    others = max((g.lr_peak for g in trace.optimizer.groups if g.index != tensors[0].group), default=0.0)
    if others:
        return fault.because(
            f"{zero} (other groups: up to {number(others)}): lr=0 in this group, or a factor of 0 in its part of the schedule",
            "set the group's learning rate; if these should not learn, freeze them with requires_grad_(False)",
        )
    if before := steps_before(trace):
        return fault.because(
            f"{zero}, and {trace.optimizer.name} had taken {plural(before, 'step')} before: a training was resumed whose schedule had "
            "ended, so nothing was left to train",
            "raise max_steps or num_train_epochs, or start anew, without the checkpoint",
        )
    return fault.because(f"{zero}: {fault.cause}")


def steps_before(trace: Trace) -> int:
    """Steps that the optimizer had taken before the run."""
    start = optimizer_start(trace)
    return 0 if start is None else start.steps


def _lr_too_small(tensors: Sequence[Tensor], trace: Trace) -> Fault:
    largest = max(tensors, key=lambda t: t.first.rms)
    fault, rms = optimizer_faults.LR_TOO_SMALL, number(largest.first.rms)
    if largest.group is None:
        return fault.because(
            f"another optimizer than {trace.optimizer.name} moves them, by rms {number(largest.motion.max_update)} a step at most, too "
            f"little for weights of rms {rms}",
            "raise the learning rate of that optimizer",
        )
    peak = number(largest.lr_peak)
    others = [g.lr_peak for g in trace.optimizer.groups if g.index != largest.group]
    if others:
        group = f"parameter group {largest.group} peaks at LR {peak} (other groups: up to {number(max(others))})"
        return fault.because(f"{group}, too small for weights of rms {rms}")
    return fault.with_details(peak=peak, rms=rms)
